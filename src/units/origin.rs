//! Where a connection came from: taken at accept, from the kernel, of the very process that called connect(2).
//!
//! - Nothing here waits, and nothing here is asked by a process id alone: an id is given to another process when its
//!   owner has gone.
//! - What cannot be had is [`Origin::Gone`], which has no unit; the connection lives on, for the rules that need none.
//! - A socket that is passed on (SCM_RIGHTS) stays its connector's: whoever has it acts as the connector.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, SockFlag, SockType, getsockopt, socketpair,
        sockopt::{PeerCredentials, PeerPidfd},
    },
};

/// A hold on the process that connected.
#[derive(Debug)]
pub enum Origin {
    /// The id of the cgroup that it was in at accept. The kernel never gives an id a second time (kernfs, 64 bits).
    Cgroup(u64),
    /// A pidfd: it costs a descriptor until the unit is known.
    Process(OwnedFd),
    /// It has ended, or the kernel does not say who it was: no unit.
    Gone,
}

/// How an origin is taken, by what the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// SO_PEERPIDFD (Linux 6.5) and at once PIDFD_GET_INFO (Linux 6.13), of which the cgroup's id is kept.
    Cgroup,
    /// SO_PEERPIDFD, which is kept.
    PeerPidfd,
    /// pidfd_open(2) (Linux 5.3) of SO_PEERCRED's process id. A connector that has ended before its connection was
    /// accepted, and whose id somebody else has by then, is taken for that one: older kernels give no better.
    Pid,
}

impl Capture {
    /// The best that this kernel has, by trying it on ourselves.
    pub(super) fn probe() -> Self {
        let pair = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC);
        match pair.and_then(|(one, _other)| getsockopt(&one, PeerPidfd)) {
            Ok(pidfd) if cgroup(pidfd.as_fd()).is_ok() => Self::Cgroup,
            Ok(_) => Self::PeerPidfd,
            Err(_) => Self::Pid,
        }
    }

    /// The origin of a connected AF_UNIX socket, right after accept(2).
    pub fn origin(self, socket: BorrowedFd<'_>) -> Origin {
        let taken = match self {
            Self::Cgroup => peer(socket).and_then(|pidfd| {
                let id = cgroup(pidfd.as_fd())?;
                // One that has ended but was not waited for still has a cgroup.
                if is_alive(pidfd.as_fd()) { Ok(Origin::Cgroup(id)) } else { Err(Errno::ESRCH.into()) }
            }),
            Self::PeerPidfd => peer(socket).map(Origin::Process),
            Self::Pid => opened(socket).map(Origin::Process),
        };
        taken.unwrap_or_else(|error| {
            tracing::debug!(%error, "a connection's process is not known, so it has no unit");
            Origin::Gone
        })
    }

    /// How many descriptors an origin holds.
    pub const fn descriptors(self) -> u64 {
        match self {
            Self::Cgroup => 0,
            Self::PeerPidfd | Self::Pid => 1,
        }
    }
}

fn peer(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(getsockopt(&socket, PeerPidfd)?)
}

fn opened(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    open(getsockopt(&socket, PeerCredentials)?.pid())
}

#[allow(unsafe_code, reason = "pidfd_open(2) has no wrapper")]
pub(super) fn open(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: two numbers; the kernel reads no memory of ours.
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let descriptor = i32::try_from(Errno::result(answer)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it, close-on-exec, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// The first version of `struct pidfd_info` (linux/pidfd.h), which later kernels take too.
#[repr(C)]
#[derive(Default)]
struct Info {
    mask: u64,
    cgroupid: u64,
    /// Ids of the process, and one number that 6.13 leaves empty.
    rest: [u32; 12],
}

/// PIDFD_GET_INFO. The number holds the size of the structure, so it belongs to ours and not to a library's.
const GET_INFO: libc::Ioctl = libc::_IOWR::<Info>(0xFF, 11);

/// The id of the cgroup (of cgroup2, whatever else is mounted) that the process is in; an error once it was waited for.
#[allow(unsafe_code, reason = "ioctl(PIDFD_GET_INFO) has no wrapper")]
fn cgroup(pidfd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut info = Info { mask: libc::PIDFD_INFO_CGROUPID.into(), ..Info::default() };
    // SAFETY: `info` is the writable structure whose size the request names, and lives for the call; every bit pattern of
    // its fields is valid. The descriptor is open while it is borrowed; one that is no pidfd answers ENOTTY.
    let answer = unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_INFO, &raw mut info) };
    Errno::result(answer)?;
    if info.mask & u64::from(libc::PIDFD_INFO_CGROUPID) == 0 || info.cgroupid == 0 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel does not tell the cgroup"));
    }
    Ok(info.cgroupid)
}

/// Whether the process has not ended: its pidfd is readable from then on (pidfd_open(2)).
pub(super) fn is_alive(pidfd: BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0)
}

/// The process's id in our own PID namespace, as of now; none if it has ended and was waited for, or has none there.
/// Readable under ProcSubset=pid and ProtectProc=invisible: it is a file of our own process.
pub(super) fn pid(pidfd: BorrowedFd<'_>) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    // 0 and -1 are no process: pidfds of another namespace, and of the dead.
    pid.trim().parse().ok().filter(|pid| *pid != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Every way that this kernel has.
    fn captures() -> Vec<Capture> {
        let best = Capture::probe();
        [Capture::Cgroup, Capture::PeerPidfd, Capture::Pid]
            .into_iter()
            .skip_while(|capture| *capture != best)
            .collect()
    }

    #[test]
    fn our_own_process_is_alive_in_every_way() {
        let (one, _other) = UnixStream::pair().unwrap();
        for capture in captures() {
            match capture.origin(one.as_fd()) {
                Origin::Cgroup(id) => assert_eq!((capture, id != 0), (Capture::Cgroup, true)),
                Origin::Process(pidfd) => {
                    assert!(is_alive(pidfd.as_fd()) && capture.descriptors() == 1);
                    assert_eq!(pid(pidfd.as_fd()), Some(std::process::id()));
                }
                Origin::Gone => panic!("{capture:?}"),
            }
        }
    }

    #[test]
    fn what_has_no_peer_has_no_origin() {
        let file = fs::File::open("/proc/self/cgroup").unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for capture in captures() {
            assert!(matches!(capture.origin(file.as_fd()), Origin::Gone), "{capture:?}");
            assert!(matches!(capture.origin(tcp.as_fd()), Origin::Gone), "{capture:?}");
        }
        assert_eq!(pid(file.as_fd()), None);
        assert!(!is_alive(file.as_fd()), "a file is readable at any time");
    }
}
