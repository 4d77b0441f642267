//! System calls made in the name of a running agent's threads, as somebody who had got their own code into it would.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _},
    path::Path,
};

use nix::{
    errno::Errno,
    libc::{self, c_long},
    sys::{
        ptrace,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

use super::{one_profile, port};
use crate::host::is_root;

/// A thread that stands still in a system call of its own, and is let go when this is dropped.
struct Held {
    thread: Pid,
    registers: libc::user_regs_struct,
    memory: fs::File,
}

impl Held {
    /// Waits until it is in one; None if it has ended.
    fn new(thread: Pid) -> Option<Self> {
        loop {
            if let Some(held) = Self::now(thread)? {
                return Some(held);
            }
            std::thread::yield_now();
        }
    }

    /// None if it has ended, and nothing in that if it is not in a system call.
    fn now(thread: Pid) -> Option<Option<Self>> {
        ptrace::seize(thread, ptrace::Options::empty()).ok()?;
        ptrace::interrupt(thread).ok()?;
        waitpid(thread, Some(WaitPidFlag::__WALL)).ok()?;
        let registers = ptrace::getregs(thread).ok()?;
        let memory =
            fs::OpenOptions::new().read(true).write(true).open(format!("/proc/{thread}/mem")).unwrap();
        let held = Self { thread, registers, memory };
        let mut instruction = [0; 2];
        held.memory.read_exact_at(&mut instruction, registers.rip - 2).unwrap();
        // `syscall`
        Some((instruction == [0x0f, 0x05]).then_some(held))
    }

    /// Where nothing of the thread's is: far below its stack's end.
    fn scratch(&self) -> u64 {
        self.registers.rsp - 4096
    }

    /// Puts bytes there, and returns where.
    fn bytes(&self, bytes: &[u8]) -> c_long {
        self.memory.write_all_at(bytes, self.scratch()).unwrap();
        self.scratch().cast_signed()
    }

    fn path(&self, path: &Path) -> c_long {
        self.bytes(&[path.as_os_str().as_bytes(), b"\0"].concat())
    }

    fn call(&self, number: c_long, arguments: [c_long; 4]) -> Result<c_long, Errno> {
        let mut registers = self.registers;
        let [a, b, c, d] = arguments.map(c_long::cast_unsigned);
        (registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8) = (a, b, c, d, 0);
        // Not to be taken for a call that is to be started again.
        (registers.rax, registers.orig_rax) = (number.cast_unsigned(), u64::MAX);
        registers.rip = self.registers.rip - 2;
        ptrace::setregs(self.thread, registers).unwrap();
        ptrace::step(self.thread, None).unwrap();
        waitpid(self.thread, Some(WaitPidFlag::__WALL)).unwrap();
        let answer = ptrace::getregs(self.thread).unwrap().rax.cast_signed();
        let errno = i32::try_from(-answer).ok().filter(|errno| (1..4096).contains(errno));
        errno.map_or(Ok(answer), |errno| Err(Errno::from_raw(errno)))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // With its registers as they were the kernel goes on with the call that it was in.
        ptrace::setregs(self.thread, self.registers).unwrap();
        ptrace::detach(self.thread, None).unwrap();
    }
}

/// `struct sockaddr_in` of the loopback.
fn address(port: u16) -> Vec<u8> {
    let family = u16::try_from(libc::AF_INET).unwrap().to_ne_bytes();
    [&family[..], &port.to_be_bytes(), &Ipv4Addr::LOCALHOST.octets(), &[0; 8]].concat()
}

pub(super) fn attempts_from_every_thread() {
    if !is_root("whatever_a_thread_of_the_agent_were_made_to_do_would_fail") {
        return;
    }
    let host = one_profile();
    let agent = host.run();
    assert!(host.cli(&["token", "bloom"]).status.success());
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (other, configured) = (other.local_addr().unwrap().port(), port(&host));
    let own = c_long::from(agent.pid().as_raw());
    let parent = c_long::from(std::process::id().cast_signed());
    let at = c_long::from(libc::AT_FDCWD);
    let mut tried = Vec::new();
    for task in fs::read_dir(format!("/proc/{own}/task")).unwrap() {
        let task = task.unwrap();
        // One that has ended meanwhile has no name.
        let Ok(name) = fs::read_to_string(task.path().join("comm")) else { continue };
        let Some(held) = Held::new(Pid::from_raw(task.file_name().to_str().unwrap().parse().unwrap())) else {
            continue;
        };
        let connect = |port: u16| {
            let stream = c_long::from(libc::SOCK_STREAM | libc::SOCK_CLOEXEC);
            let socket = held.call(libc::SYS_socket, [libc::AF_INET.into(), stream, 0, 0]).unwrap();
            let answer = held.call(libc::SYS_connect, [socket, held.bytes(&address(port)), 16, 0]);
            held.call(libc::SYS_close, [socket, 0, 0, 0]).unwrap();
            answer
        };
        let create = c_long::from(libc::O_CREAT | libc::O_WRONLY);
        let open =
            |path: &Path, flags: c_long| held.call(libc::SYS_openat, [at, held.path(path), flags, 0o600]);
        let rows = [
            ("make a file", open(&host.path("new"), create), Err(Errno::EACCES)),
            ("write the config", open(&host.path("config.toml"), libc::O_WRONLY.into()), Err(Errno::EACCES)),
            ("write the secret", open(&host.path("secret"), libc::O_WRONLY.into()), Err(Errno::EACCES)),
            (
                "make a directory",
                held.call(libc::SYS_mkdirat, [at, held.path(&host.path("new")), 0o700, 0]),
                Err(Errno::EACCES),
            ),
            (
                "remove what is elsewhere than the socket",
                held.call(libc::SYS_unlinkat, [at, held.path(elsewhere.path()), 0, 0]),
                Err(Errno::EACCES),
            ),
            (
                "open the secret to all",
                held.call(libc::SYS_fchmodat, [at, held.path(&host.path("secret")), 0o644, 0]),
                Err(Errno::EPERM),
            ),
            (
                "run a program",
                held.call(libc::SYS_execve, [held.path(Path::new("/bin/true")), 0, 0, 0]),
                Err(Errno::EPERM),
            ),
            (
                "trace its parent",
                held.call(libc::SYS_ptrace, [libc::PTRACE_SEIZE.into(), parent, 0, 0]),
                Err(Errno::EPERM),
            ),
            ("signal its parent", held.call(libc::SYS_kill, [parent, 0, 0, 0]), Err(Errno::EPERM)),
            ("load a program into the kernel", held.call(libc::SYS_bpf, [0; 4]), Err(Errno::EPERM)),
            ("have calls made for it", held.call(libc::SYS_io_uring_setup, [0; 4]), Err(Errno::EPERM)),
            ("reach another port", connect(other), Err(Errno::EACCES)),
            ("reach the issuer", connect(configured), Ok(0)),
            (
                "read the config",
                open(&host.path("config.toml"), 0)
                    .map(|file| held.call(libc::SYS_close, [file, 0, 0, 0]).unwrap()),
                Ok(0),
            ),
            ("ask who it is", held.call(libc::SYS_getpid, [0; 4]), Ok(own)),
        ];
        for (row, found, expected) in rows {
            assert_eq!(found, expected, "{row}, in the thread {}", name.trim());
        }
        tried.push(name.trim().to_owned());
    }
    // Those that are always there; of the others as many as there were.
    for name in ["bloom-agent", "log"] {
        assert!(tried.iter().any(|tried| tried == name), "not the thread {name}: {tried:?}");
    }
    // And it lives on.
    let output = host.cli(&["refresh", "bloom"]);
    assert!(output.status.success(), "{}", agent.log());
    let (status, _, log) = agent.stop();
    assert_eq!(status.code(), Some(0), "{log}");
}
