#![expect(unsafe_code, reason = "what the wall takes away is tried by raw system calls")]

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{self, IoSlice, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            fs::{OpenOptionsExt as _, symlink},
            net::{UnixDatagram, UnixListener, UnixStream},
        },
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use nix::{
    fcntl::{OFlag, open},
    libc::{self, c_int, c_long},
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        signal::{Signal, kill, raise as signal_to_self},
        socket::{
            AddressFamily, ControlMessage, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendmsg,
            sendto, socket,
        },
        stat::Mode,
    },
    unistd::{Pid, Uid, UnlinkatFlags, User, linkat, mkfifoat, unlinkat},
};

use super::*;
use crate::hardening::{self, trial};

/// Not in libc's list.
const AF_SMC: c_int = 43;

/// What there is before the wall.
struct Scene {
    /// Of the agent's socket: `gate` is the only place where something can be removed.
    directory: tempfile::TempDir,
    gate: OwnedFd,
    /// A TCP port of the config, and another.
    configured: TcpListener,
    other: TcpListener,
    /// A socket of the host, by its path.
    unix: UnixListener,
    _abstract_listener: UnixListener,
    abstract_address: std::os::unix::net::SocketAddr,
    /// A file that is open, as the log is.
    log: File,
    /// A process of the same user.
    neighbour: Child,
    terminal: File,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["gate", "empty"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("there"), "text").unwrap();
        fs::write(at("gate/agent.sock"), "").unwrap();
        let loopback = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // The directory's own name, which is nobody else's.
        let abstract_name = directory.path().as_os_str().as_bytes();
        let abstract_address = std::os::unix::net::SocketAddr::from_abstract_name(abstract_name).unwrap();
        Self {
            gate: open(&at("gate"), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                .unwrap(),
            configured: loopback(),
            other: loopback(),
            unix: UnixListener::bind(at("host.sock")).unwrap(),
            _abstract_listener: UnixListener::bind_addr(&abstract_address).unwrap(),
            abstract_address,
            log: File::create(at("log")).unwrap(),
            // It ends with its input, which is this process's.
            neighbour: Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap(),
            terminal: File::open("/dev/null").unwrap(),
            directory,
        }
    }

    fn gates(&self) -> Gates<'_> {
        Gates {
            ports: [self.configured.local_addr().unwrap().port()].into(),
            removes_in: Some(self.gate.as_fd()),
            abstract_sockets: AbstractSockets::Closed,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn c(&self, name: &str) -> CString {
        CString::new(self.at(name).as_os_str().as_bytes()).unwrap()
    }

    fn other_port(&self) -> SockaddrIn {
        SockaddrIn::new(127, 0, 0, 1, self.other.local_addr().unwrap().port())
    }
}

/// One attempt, and how it must end.
type Attempt = (&'static str, fn(&Scene) -> io::Result<()>, Errno);

fn result(answer: c_long) -> io::Result<()> {
    Ok(Errno::result(answer).map(drop)?)
}

/// `socket(family, kind, protocol)`, and no more.
fn a_socket(family: c_int, kind: c_int, protocol: c_int) -> io::Result<()> {
    // SAFETY: numbers only; the descriptor, if there is one, ends with the process.
    result(unsafe { libc::syscall(libc::SYS_socket, family, kind, protocol) })
}

const NOBODY_CAN: &[Attempt] = &[
    // Files, by Landlock.
    ("make a file", |s| File::create(s.at("new")).map(drop), Errno::EACCES),
    (
        "write a file that is there",
        |s| OpenOptions::new().write(true).open(s.at("there")).map(drop),
        Errno::EACCES,
    ),
    ("add to a file", |s| OpenOptions::new().append(true).open(s.at("there")).map(drop), Errno::EACCES),
    (
        "empty a file that is opened to be read",
        |s| OpenOptions::new().read(true).custom_flags(libc::O_TRUNC).open(s.at("there")).map(drop),
        Errno::EACCES,
    ),
    (
        "make a file without a name",
        |s| OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(s.directory.path()).map(drop),
        Errno::EACCES,
    ),
    ("make a directory", |s| fs::create_dir(s.at("new")), Errno::EACCES),
    ("make a symbolic link", |s| symlink("/", s.at("new")), Errno::EACCES),
    (
        "make a hard link",
        |s| {
            let flags = nix::fcntl::AtFlags::empty();
            Ok(linkat(nix::fcntl::AT_FDCWD, &s.at("there"), nix::fcntl::AT_FDCWD, &s.at("new"), flags)?)
        },
        Errno::EACCES,
    ),
    (
        "make a pipe with a name",
        |s| Ok(mkfifoat(nix::fcntl::AT_FDCWD, &s.at("new"), Mode::S_IRUSR)?),
        Errno::EACCES,
    ),
    ("make a socket with a name", |s| UnixListener::bind(s.at("new")).map(drop), Errno::EACCES),
    (
        "make a socket beside the agent's own",
        |s| UnixListener::bind(s.at("gate/new")).map(drop),
        Errno::EACCES,
    ),
    ("rename a file", |s| fs::rename(s.at("there"), s.at("new")), Errno::EACCES),
    ("remove a file", |s| fs::remove_file(s.at("there")), Errno::EACCES),
    ("remove a directory", |s| fs::remove_dir(s.at("empty")), Errno::EACCES),
    (
        "make shared memory with a name",
        |_| File::create("/dev/shm/bloom-agent-wall").map(drop),
        Errno::EACCES,
    ),
    (
        "change its own standing at the OOM killer",
        |_| OpenOptions::new().write(true).open("/proc/self/oom_score_adj").map(drop),
        Errno::EACCES,
    ),
    (
        "control a device",
        |_| {
            let device = File::open("/dev/zero").unwrap();
            // SAFETY: nothing is written but the struct that is given.
            let answer = unsafe {
                libc::ioctl(device.as_raw_fd(), libc::TCGETS, &mut std::mem::zeroed::<libc::termios>())
            };
            result(answer.into())
        },
        Errno::EACCES,
    ),
    // The attributes of files, by seccomp.
    (
        "change a file's mode",
        // SAFETY: a C string that outlives the call.
        |s| result(unsafe { libc::chmod(s.c("there").as_ptr(), 0o777) }.into()),
        Errno::EPERM,
    ),
    (
        "change the mode of a file that is open",
        // SAFETY: numbers only.
        |s| result(unsafe { libc::fchmod(s.log.as_raw_fd(), 0o777) }.into()),
        Errno::EPERM,
    ),
    ("change a file's owner", |s| std::os::unix::fs::chown(s.at("there"), Some(1), Some(1)), Errno::EPERM),
    ("change a file's times", |s| s.log.set_modified(std::time::UNIX_EPOCH), Errno::EPERM),
    (
        "empty a file by its name",
        // SAFETY: a C string that outlives the call.
        |s| result(unsafe { libc::truncate(s.c("there").as_ptr(), 0) }.into()),
        Errno::EPERM,
    ),
    // Programs.
    (
        "become another program",
        |_| {
            let arguments = [c"/bin/true".as_ptr(), std::ptr::null()];
            // SAFETY: C strings and an array that ends in null.
            result(unsafe { libc::execv(arguments[0], arguments.as_ptr()) }.into())
        },
        Errno::EPERM,
    ),
    ("start another program", |_| Command::new("/bin/true").status().map(drop), Errno::EPERM),
    (
        "become a program that lies in memory",
        |_| {
            let program = fs::read("/bin/true").unwrap();
            let memory = crate::sealed::seal(&program).unwrap();
            let arguments = [c"true".as_ptr(), std::ptr::null()];
            // SAFETY: arrays that end in null.
            result(
                unsafe { libc::fexecve(memory.as_raw_fd(), arguments.as_ptr(), [std::ptr::null()].as_ptr()) }
                    .into(),
            )
        },
        Errno::EPERM,
    ),
    (
        "have a child in a namespace of its own",
        // SAFETY: with these flags it is fork(2), and a child ends at once.
        |_| match unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, 0, 0, 0, 0) } {
            // SAFETY: ends the child without running anything of the parent's.
            0 => unsafe { libc::_exit(0) },
            answer => result(answer),
        },
        Errno::EPERM,
    ),
    (
        "have a child whose flags nobody sees",
        // SAFETY: without a struct it is refused before anything happens.
        |_| result(unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<u8>(), 0) }),
        Errno::ENOSYS,
    ),
    // Other processes.
    (
        "signal another process",
        |s| Ok(kill(Pid::from_raw(s.neighbour.id().cast_signed()), Signal::SIGTERM)?),
        Errno::EPERM,
    ),
    (
        "read another process's memory by its file",
        |s| File::open(format!("/proc/{}/mem", s.neighbour.id())).map(drop),
        Errno::EACCES,
    ),
    (
        "see what another process has open",
        |s| fs::read_link(format!("/proc/{}/fd/0", s.neighbour.id())).map(drop),
        Errno::EACCES,
    ),
    (
        "reach another's abstract socket",
        |s| UnixStream::connect_addr(&s.abstract_address).map(drop),
        Errno::EPERM,
    ),
    // The network.
    (
        "reach another TCP port",
        |s| TcpStream::connect(s.other.local_addr().unwrap()).map(drop),
        Errno::EACCES,
    ),
    (
        "reach another TCP port while it sends",
        |s| {
            let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            let fast_open = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
            Ok(sendto(socket.as_raw_fd(), b"x", &s.other_port(), fast_open).map(drop)?)
        },
        Errno::EPERM,
    ),
    (
        "reach another TCP port while it sends a message",
        |s| {
            let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            let fast_open = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
            Ok(sendmsg(socket.as_raw_fd(), &[IoSlice::new(b"x")], &[], fast_open, Some(&s.other_port()))
                .map(drop)?)
        },
        Errno::EPERM,
    ),
    ("speak TCP by MPTCP", |_| a_socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP), Errno::EPERM),
    ("speak TCP by SMC", |_| a_socket(AF_SMC, libc::SOCK_STREAM, 0), Errno::EPERM),
    ("speak SCTP", |_| a_socket(libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_SCTP), Errno::EPERM),
    ("speak SCTP without its name", |_| a_socket(libc::AF_INET, libc::SOCK_SEQPACKET, 0), Errno::EPERM),
    ("speak IP itself", |_| a_socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP), Errno::EPERM),
    ("hear the wire", |_| a_socket(libc::AF_PACKET, libc::SOCK_RAW, 0), Errno::EPERM),
    ("speak to a virtual machine's host", |_| a_socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0), Errno::EPERM),
    ("speak to the audit", |_| a_socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT), Errno::EPERM),
    ("take a TCP port", |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop), Errno::EACCES),
    (
        "listen at a TCP port that the kernel chooses",
        |_| {
            let socket =
                socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)?;
            // SAFETY: numbers only.
            result(unsafe { libc::listen(socket.as_raw_fd(), 1) }.into())
        },
        Errno::EPERM,
    ),
    // The terminal that it was started from.
    (
        "type into a terminal",
        // SAFETY: one byte is read.
        |s| result(unsafe { libc::ioctl(s.terminal.as_raw_fd(), libc::TIOCSTI, b"\n".as_ptr()) }.into()),
        Errno::EPERM,
    ),
];

/// What must end well.
type Deed = (&'static str, fn(&Scene) -> io::Result<()>);

const IT_STILL_CAN: &[Deed] = &[
    ("read any file", |s| fs::read("/proc/self/status").and(fs::read(s.at("there"))).map(drop)),
    ("list a directory", |_| fs::read_dir("/etc").map(drop)),
    ("write where it is open already, as the log is", |s| (&s.log).write_all(b"line\n")),
    ("reach a port of the config", |s| TcpStream::connect(s.configured.local_addr().unwrap()).map(drop)),
    (
        // Nobody listens there, or somebody does.
        "reach port 53",
        |_| match TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, 53))) {
            Err(error) if error.kind() != io::ErrorKind::ConnectionRefused => Err(error),
            _ => Ok(()),
        },
    ),
    ("ask by UDP", |_| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::LOCALHOST, 53))?;
        socket.send(b"?").map(drop)
    }),
    ("reach a socket of the host", |s| UnixStream::connect(s.at("host.sock")).map(drop)),
    ("accept at a socket that listens already", |s| s.unix.accept().map(drop)),
    ("look a host up", |_| ("localhost", 0).to_socket_addrs().map(drop)),
    ("look a user up", |_| match User::from_uid(Uid::from_raw(0))? {
        Some(_) => Ok(()),
        None => Err(io::ErrorKind::NotFound.into()),
    }),
    ("ask for the routes, by which addresses are sorted", |_| {
        a_socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE)
    }),
    ("start a thread, and block in it", |_| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let text =
            runtime.block_on(async { tokio::task::spawn_blocking(|| fs::read("/proc/self/comm")).await });
        text?.map(drop)
    }),
    ("seal memory and hand it on, as to the service manager", |_| {
        let memory = crate::sealed::seal(b"a token")?;
        let (ours, theirs) = UnixDatagram::pair()?;
        let numbers = [memory.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&numbers)];
        sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(b"FDSTORE=1")], &rights, MsgFlags::empty(), None)?;
        let mut text = [0; 16];
        theirs.recv(&mut text).map(drop)
    }),
    ("lock pages", |_| {
        let pages = crate::locked::LockedPages::default();
        let copy = pages.copy(b"a token");
        assert!(!pages.is_degraded() && copy == b"a token"[..]);
        Ok(())
    }),
    ("watch a file", |s| {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(&s.at("there"), AddWatchFlags::IN_CLOSE_WRITE)?;
        Ok(())
    }),
    ("have timers", |_| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let _entered = runtime.enter();
        crate::timer::KernelTime::new().map(drop)
    }),
    ("signal itself", |_| Ok(signal_to_self(Signal::SIGURG)?)),
    ("fork, and wait for the child", |_| {
        // SAFETY: the child calls _exit and nothing else.
        match unsafe { nix::unistd::fork() }? {
            // SAFETY: ends the child without running anything of the parent's.
            nix::unistd::ForkResult::Child => unsafe { libc::_exit(0) },
            nix::unistd::ForkResult::Parent { child } => Ok(nix::sys::wait::waitpid(child, None).map(drop)?),
        }
    }),
    ("remove the agent's own socket", |s| Ok(unlinkat(&s.gate, "agent.sock", UnlinkatFlags::NoRemoveDir)?)),
];

/// How an attempt ended, in the kernel's words.
fn errno(result: io::Result<()>) -> Option<Errno> {
    result.err().map(|error| Errno::from_raw(error.raw_os_error().unwrap_or(-1)))
}

#[test]
fn behind_the_wall_nothing_is_written_run_or_reached_and_all_that_an_agent_does_is_done() {
    let name =
        "wall::tests::behind_the_wall_nothing_is_written_run_or_reached_and_all_that_an_agent_does_is_done";
    trial::in_own_process(name, || {
        let scene = Scene::new();
        hardening::no_new_privileges().unwrap();
        let wall = raise(scene.gates());
        assert_eq!(wall.missing(), [], "{wall}");
        let wrong: Vec<_> = NOBODY_CAN
            .iter()
            .map(|(name, attempt, expected)| (name, errno(attempt(&scene)), Some(*expected)))
            .filter(|(_, found, expected)| found != expected)
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        // A thread that is started later is behind it too.
        let in_thread = trial::on_own_thread(|| errno(File::create(scene.at("new")).map(drop)));
        assert_eq!(in_thread, Some(Errno::EACCES));
        let wrong: Vec<_> = IT_STILL_CAN
            .iter()
            .filter_map(|(name, attempt)| attempt(&scene).err().map(|error| (name, error)))
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    });
}

/// The same attempts without a wall: each does something, so that an errno above is the wall's.
#[test]
fn before_the_wall_the_same_is_possible() {
    let name = "wall::tests::before_the_wall_the_same_is_possible";
    trial::in_own_process(name, || {
        // What a kernel need not have, what would end this process, and what is always an error.
        let others = [
            "become another program",
            "become a program that lies in memory",
            "have a child whose flags nobody sees",
            "control a device",
            "speak TCP by SMC",
            "speak SCTP",
            "speak SCTP without its name",
            "speak to a virtual machine's host",
            "type into a terminal",
        ];
        if !trial::is_root(name) {
            return;
        }
        for (name, attempt, denied) in NOBODY_CAN.iter().filter(|(name, ..)| !others.contains(name)) {
            let scene = Scene::new();
            let found = errno(attempt(&scene));
            assert!(found.is_none(), "{name}: {found:?}, and {denied:?} behind the wall");
        }
        let _removed = fs::remove_file("/dev/shm/bloom-agent-wall");
    });
}

#[test]
fn every_call_of_the_list_is_denied_whatever_its_arguments_and_so_are_other_architectures() {
    let name =
        "wall::tests::every_call_of_the_list_is_denied_whatever_its_arguments_and_so_are_other_architectures";
    trial::in_own_process(name, || {
        hardening::no_new_privileges().unwrap();
        // Before there is a filter, to see that it reaches threads that are there.
        let (go, waits) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            waits.recv().unwrap();
            // SAFETY: without a struct it is refused before anything happens.
            Errno::result(unsafe { libc::syscall(libc::SYS_bpf, 0, 0, 0) }).map(drop)
        });
        seccomp::filter().unwrap();
        go.send(()).unwrap();
        assert_eq!(thread.join().unwrap(), Err(Errno::EPERM));
        for (name, number) in seccomp::DENIED.iter().copied().flatten() {
            for argument in [0, !0] {
                let a: c_long = argument;
                // SAFETY: the filter answers, before the call looks at an argument.
                let answer = Errno::result(unsafe { libc::syscall(*number, a, a, a, a, a, a) });
                assert_eq!(answer, Err(Errno::EPERM), "{name}");
            }
        }
        #[cfg(target_arch = "x86_64")]
        {
            let x32 = 0x4000_0000 | libc::SYS_getpid;
            // SAFETY: no arguments.
            assert_eq!(Errno::result(unsafe { libc::syscall(x32) }), Err(Errno::EPERM));
            // In a child: a kernel without i386 kills it.
            // SAFETY: the child makes one system call and ends.
            match unsafe { nix::unistd::fork() }.unwrap() {
                nix::unistd::ForkResult::Child => {
                    let answer: i32;
                    // SAFETY: getpid(2) of i386 (20): no arguments; of the registers that a program may count on the
                    // kernel changes these.
                    unsafe {
                        std::arch::asm!(
                            "int 0x80", inlateout("eax") 20 => answer,
                            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                        );
                    }
                    // SAFETY: ends the child without running anything of the parent's.
                    unsafe { libc::_exit(i32::from(answer != -(Errno::EPERM as i32))) }
                }
                nix::unistd::ForkResult::Parent { child } => {
                    let ended = nix::sys::wait::waitpid(child, None).unwrap();
                    let killed = matches!(ended, nix::sys::wait::WaitStatus::Signaled(_, Signal::SIGSEGV, _));
                    assert!(killed || ended == nix::sys::wait::WaitStatus::Exited(child, 0), "{ended:?}");
                }
            }
        }
    });
}

#[test]
fn a_host_that_gives_less_is_told_and_what_it_gives_stands() {
    let name = "wall::tests::a_host_that_gives_less_is_told_and_what_it_gives_stands";
    trial::in_own_process(name, || {
        hardening::no_new_privileges().unwrap();
        let gates = || Gates {
            ports: [8443, 443].into(),
            removes_in: None,
            abstract_sockets: AbstractSockets::Closed,
        };
        let without = |call, errno| {
            trial::without_call(call, errno, move || {
                let wall = raise(gates());
                let parts: Vec<_> = wall.missing().iter().map(|missing| missing.part).collect();
                (wall.to_string(), wall.ports().is_some(), parts)
            })
        };
        // First, since the filters that come after it reach every thread.
        let (stands, keeps_tcp, missing) = without(libc::SYS_seccomp, Errno::EINVAL);
        assert!(stands.starts_with("Landlock ABI ") && stands.ends_with(", TCP to 53 443 8443"), "{stands}");
        assert!(keeps_tcp);
        assert_eq!(missing, ["seccomp"]);
        for errno in [Errno::ENOSYS, Errno::EOPNOTSUPP] {
            let (stands, keeps_tcp, missing) = without(libc::SYS_landlock_create_ruleset, errno);
            assert_eq!((stands.as_str(), keeps_tcp), ("seccomp", false));
            assert_eq!(missing, ["landlock"]);
        }
    });
}
