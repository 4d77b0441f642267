//! Who is at the other end of a connection, by the kernel's word and nobody else's.
//!
//! - Asked once, right after accept(2), and kept: the answer is what was true at connect(2), whatever the peer does
//!   later (setuid, exec, passing the descriptor on). This is the only place that asks.
//! - Any failure is an error, and an error is a closed connection: there is no peer "by default".
//! - The peer's socket address and everything the peer could have written are not looked at.

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::access::Peer;

/// NGROUPS_MAX (setgroups(2), since Linux 2.6.4).
const MOST_GROUPS: usize = 65_536;

/// The peer of a connected AF_UNIX socket; its unit is left open.
pub fn observe(socket: BorrowedFd<'_>) -> io::Result<Peer> {
    let credentials = getsockopt(&socket, PeerCredentials)?;
    // The kernel's word for "nobody connected": uid and gid of all ones (unix(7), net/core/sock.c).
    if credentials.uid() == u32::MAX || credentials.gid() == u32::MAX {
        return Err(io::Error::new(io::ErrorKind::NotConnected, "the kernel knows no peer of this socket"));
    }
    Ok(Peer {
        uid: credentials.uid(),
        gid: credentials.gid(),
        groups: groups(socket)?,
        pid: credentials.pid(),
        unit: None,
    })
}

/// SO_PEERGROUPS (Linux 4.13). A buffer that is too small is answered with ERANGE and the size it takes.
#[allow(unsafe_code, reason = "getsockopt(SO_PEERGROUPS) has no wrapper")]
fn groups(socket: BorrowedFd<'_>) -> io::Result<Vec<libc::gid_t>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 32];
    loop {
        let size = size_of::<libc::gid_t>() * groups.len();
        let mut length = libc::socklen_t::try_from(size).map_err(io::Error::other)?;
        // SAFETY: `groups` is `length` writable bytes, `length` is a socklen_t of ours, and the kernel writes no more
        // than `length` bytes; every bit pattern is a gid_t. The descriptor is open while it is borrowed.
        let answer = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<libc::gid_t>();
        if answer == 0 {
            groups.truncate(count);
            // A connection keeps them as long as it lives.
            groups.shrink_to_fit();
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > MOST_GROUPS {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        os::{
            fd::AsFd as _,
            unix::net::{UnixListener, UnixStream},
        },
        thread,
    };

    use super::*;

    /// Connects as a thread that has these ids. In Linux credentials belong to the thread; glibc's wrappers would change
    /// all threads, so the bare system calls are made.
    #[allow(unsafe_code, reason = "credentials of one thread have no wrapper")]
    fn connect_as(path: &std::path::Path, uid: u32, gid: u32, groups: Vec<u32>) -> UnixStream {
        let path = path.to_owned();
        thread::spawn(move || {
            // SAFETY: the pointer is `groups.len()` readable gid_t; the others take numbers only.
            let answers = unsafe {
                [
                    libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()),
                    libc::syscall(libc::SYS_setresgid, gid, gid, gid),
                    libc::syscall(libc::SYS_setresuid, uid, uid, uid),
                ]
            };
            assert_eq!(answers, [0, 0, 0]);
            UnixStream::connect(path).expect("connects")
        })
        .join()
        .expect("the thread has connected")
    }

    #[test]
    fn ids_and_group_sets_of_every_size_are_exact() {
        if !nix::unistd::geteuid().is_root() {
            // Past the test runner, which keeps what a passing test prints to itself.
            let _loud = std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!(
                    "SKIPPED: ids_and_group_sets_of_every_size_are_exact: it must be root to take other ids\n"
                ),
            );
            return;
        }
        // In /tmp, so that the other uid can reach it.
        let dir = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .tempdir_in("/tmp")
            .expect("a directory");
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).expect("binds");
        // A test's own file: the umask took the others' bits away.
        nix::sys::stat::fchmodat(
            nix::fcntl::AT_FDCWD,
            &path,
            nix::sys::stat::Mode::from_bits_truncate(0o777),
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        )
        .expect("opens it to all");
        for count in [0_u32, 1, 16, 31, 32, 33, 1024, 65_536] {
            let groups: Vec<u32> = (0..count).map(|n| 70_000 + n).collect();
            for (uid, gid) in [(0, 0), (1234, 5678)] {
                let client = connect_as(&path, uid, gid, groups.clone());
                let (accepted, _) = listener.accept().expect("accepts");
                let peer = observe(accepted.as_fd()).expect("a peer");
                assert_eq!((peer.uid, peer.gid), (uid, gid));
                assert_eq!(peer.groups, groups, "{count} groups");
                assert_eq!(peer.pid, std::process::id().cast_signed());
                drop(client);
            }
        }
    }

    #[test]
    fn the_peer_is_that_of_the_connect_even_when_it_is_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("s")).expect("binds");
        drop(UnixStream::connect(dir.path().join("s")).expect("connects"));
        let (accepted, _) = listener.accept().expect("accepts");
        let peer = observe(accepted.as_fd()).expect("a peer");
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
    }

    #[test]
    fn what_has_no_peer_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let unconnected = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Unix,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            None,
        )
        .expect("a socket");
        assert!(observe(unconnected.as_fd()).is_err());
        assert!(observe(File::open(dir.path()).expect("opens").as_fd()).is_err());
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        assert!(observe(tcp.as_fd()).is_err());
    }
}
