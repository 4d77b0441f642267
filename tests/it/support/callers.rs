//! Callers of other uids, in one process: the kernel takes a peer's credentials from the thread that connects.

use std::{os::unix::net::UnixStream, path::Path, thread};

use nix::{errno::Errno, unistd::geteuid};

use super::{Agent, Client};

/// Whether the test cannot take other uids; says so if it cannot.
#[allow(clippy::print_stderr, reason = "what is not tested is said")]
pub(crate) fn skipped_without_root(test: &str) -> bool {
    let skipped = !geteuid().is_root();
    if skipped {
        // Past the test runner, which keeps what a passing test prints to itself.
        let _loud = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("SKIPPED: {test}: it must be root to take other uids\n"),
        );
    }
    skipped
}

fn connect_as(path: &Path, uid: u32, gid: u32, groups: &[u32]) -> UnixStream {
    as_uid(uid, gid, groups, || UnixStream::connect(path).unwrap())
}

/// Does something as another user, on a thread that ends with it. Needs root.
#[allow(unsafe_code, reason = "glibc's wrappers would change every thread; the system calls change this one")]
pub(crate) fn as_uid<T: Send>(uid: u32, gid: u32, groups: &[u32], work: impl FnOnce() -> T + Send) -> T {
    let changed = || {
        // SAFETY: the pointer is `groups.len()` readable gid_t; the others take numbers only.
        let answers = unsafe {
            [
                libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()),
                libc::syscall(libc::SYS_setresgid, gid, gid, gid),
                libc::syscall(libc::SYS_setresuid, uid, uid, uid),
            ]
        };
        for answer in answers {
            Errno::result(answer).unwrap();
        }
        work()
    };
    thread::scope(|scope| scope.spawn(changed).join().unwrap())
}

/// A client of that uid, with a gid of the same number and no other group. Needs root.
pub(crate) async fn as_caller(agent: &Agent, uid: u32) -> Client {
    as_member(agent, uid, &[]).await
}

/// The same, of these groups too.
pub(crate) async fn as_member(agent: &Agent, uid: u32, groups: &[u32]) -> Client {
    Client::over(connect_as(agent.socket(), uid, uid, groups)).await
}
