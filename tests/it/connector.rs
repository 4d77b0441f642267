//! Processes that connect: of any uid, gid and groups, in any namespace, and whatever becomes of them afterwards.
//!
//! A socket is made here, before the fork, and is one for both; the kernel notes who connects it. So a test makes calls on a
//! connection whose connector is a process of its own, alive or gone. Between fork and exec only system calls are made, on
//! what was allocated before: other threads of the test may hold any lock.

use std::{
    io::{self, PipeWriter, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        signal::Signal,
        socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
    },
    unistd::Pid,
};

use crate::{host::User, support::Client};

/// What a process does on its way, before or after it connects.
pub(crate) type Step = Box<dyn FnMut() -> io::Result<()> + Send + Sync>;

/// Nothing.
pub(crate) fn nothing() -> Step {
    Box::new(|| Ok(()))
}

/// Becomes that user, whole: real, effective and saved ids.
pub(crate) fn become_user(user: &User) -> Step {
    let (uid, gid, groups) = (user.uid, user.gid, user.groups.clone());
    Box::new(move || take_ids([uid; 3], [gid; 3], &groups))
}

/// Takes real, effective and saved ids.
#[allow(unsafe_code, reason = "glibc's wrappers are not for between fork and exec")]
pub(crate) fn take_ids(uids: [u32; 3], gids: [u32; 3], groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer is `groups.len()` readable gid_t; the others take numbers only.
    let answers = unsafe {
        [
            libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()),
            libc::syscall(libc::SYS_setresgid, gids[0], gids[1], gids[2]),
            libc::syscall(libc::SYS_setresuid, uids[0], uids[1], uids[2]),
        ]
    };
    if answers == [0; 3] { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes other uids, by way of root's, which is among its own.
#[allow(unsafe_code, reason = "glibc's wrappers are not for between fork and exec")]
pub(crate) fn turn_into(uids: [u32; 3]) -> io::Result<()> {
    const SAME: u32 = u32::MAX;
    // SAFETY: numbers only.
    let answers = unsafe {
        [
            libc::syscall(libc::SYS_setresuid, SAME, 0, SAME),
            libc::syscall(libc::SYS_setresuid, uids[0], uids[1], uids[2]),
        ]
    };
    if answers == [0; 2] { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A process that has tried to connect to some sockets, and what it connected.
pub(crate) struct Connector {
    process: Option<Child>,
    streams: Vec<Result<OwnedFd, Errno>>,
}

impl Connector {
    /// A process of that user that connects once to each of these, and then only lives.
    pub(crate) fn of(user: &User, paths: &[&Path]) -> Self {
        let mut sleep = Command::new("sleep");
        sleep.arg("infinity");
        Self::new(paths, [become_user(user), nothing()], sleep)
    }

    /// A process that does the first step, connects, does the second, and then becomes `program`.
    pub(crate) fn new(paths: &[&Path], [mut before, mut after]: [Step; 2], mut program: Command) -> Self {
        let make = |_| socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let sockets: Vec<OwnedFd> = paths.iter().map(make).collect();
        let connects: Vec<(RawFd, UnixAddr)> = sockets
            .iter()
            .zip(paths)
            .map(|(socket, path)| (socket.as_raw_fd(), UnixAddr::new(*path).unwrap()))
            .collect();
        let (mut told, mut tell) = io::pipe().unwrap();
        let act = move || {
            before()?;
            for (socket, address) in &connects {
                say(&mut tell, connect(*socket, address))?;
            }
            after()
        };
        program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        #[allow(unsafe_code, reason = "acts as the child before it becomes another program")]
        // SAFETY: between fork and exec only system calls are made; what they need was allocated before.
        unsafe {
            program.pre_exec(act);
        }
        let process = program.spawn().unwrap();
        // And with it the end of the pipe that the closure has.
        drop(program);
        let mut outcomes = Vec::new();
        told.read_to_end(&mut outcomes).unwrap();
        let outcomes = outcomes.chunks(4).map(|errno| i32::from_ne_bytes(errno.try_into().unwrap()));
        let streams = sockets.into_iter().zip(outcomes);
        let streams = streams.map(|(socket, errno)| match errno {
            0 => Ok(socket),
            errno => Err(Errno::from_raw(errno)),
        });
        let connector = Self { process: Some(process), streams: streams.collect() };
        assert_eq!(connector.streams.len(), paths.len());
        connector
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.process.as_ref().unwrap().id().cast_signed())
    }

    /// Ends the process and waits for it: its id is free.
    pub(crate) fn end(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// How the connects went, in their order.
    pub(crate) fn streams(&self) -> impl Iterator<Item = Result<UnixStream, Errno>> {
        self.streams.iter().map(|stream| match stream {
            Ok(stream) => Ok(UnixStream::from(stream.try_clone().unwrap())),
            Err(errno) => Err(*errno),
        })
    }

    /// What it has connected, in our hands: the only one, or the first.
    pub(crate) fn stream(&self) -> UnixStream {
        self.streams().next().unwrap().unwrap()
    }

    /// A client on it.
    pub(crate) async fn client(&self) -> Client {
        Client::over(self.stream()).await
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        self.end();
    }
}

fn say(tell: &mut PipeWriter, outcome: nix::Result<()>) -> io::Result<()> {
    let errno = outcome.err().map_or(0, |errno| errno as i32);
    tell.write_all(&errno.to_ne_bytes())
}

/// A process with the process id of another, which has gone, and these ids. It waits for its end, which is the caller's to
/// bring about and to wait for.
#[allow(unsafe_code, reason = "a process id is chosen by clone3(2) only")]
pub(crate) fn successor(gone: Pid, uid: u32) -> Pid {
    let wanted = gone.as_raw();
    let mut arguments: [u64; 11] = [0; 11];
    arguments[4] = Signal::SIGCHLD as u64;
    arguments[8] = (&raw const wanted) as u64;
    arguments[9] = 1;
    // SAFETY: the structure is that of clone_args up to set_tid_size and cgroup (88 bytes); without CLONE_VM the child has
    // memory of its own, and it makes no call but those below until it is killed.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments)) };
    if pid == 0 {
        if take_ids([uid; 3], [uid; 3], &[]).is_err() {
            // SAFETY: it ends this process and nothing else.
            unsafe { libc::_exit(1) };
        }
        loop {
            // SAFETY: it waits for a signal and touches nothing.
            unsafe { libc::pause() };
        }
    }
    assert_eq!(pid, i64::from(wanted), "{}", io::Error::last_os_error());
    gone
}
