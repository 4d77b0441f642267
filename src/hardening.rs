//! What the daemon does to its own process before it does anything else.
//!
//! [`apply`] is the first line of `main`, with no branch before it. The library never calls it: a program that uses
//! the client has its own opinion about its own process. It closes no descriptor (systemd's are among them), and
//! nothing here ends the process: what the host refuses is reported, logged once and shown by a gauge, because an agent
//! that does not start protects no secret either.

#[cfg(test)]
pub(crate) mod trial;

use std::fmt;

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open},
    sys::{
        prctl,
        resource::{RLIM_INFINITY, Resource, getrlimit, rlim_t, setrlimit},
        stat::{Mode, umask},
    },
};

/// What [`apply`] did.
#[derive(Clone, Debug)]
pub struct Applied {
    /// What the caller of the program had, for a command that is run in the caller's name.
    pub before: Before,
    /// What the host refused. Empty on every kernel since 5.11 with its usual filters.
    pub degraded: Vec<Degraded>,
}

/// One protection that the host refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Degraded {
    /// Which.
    pub protection: Protection,
    /// The kernel's reason.
    pub errno: Errno,
}

/// What is done; also the `what` of the gauge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protection {
    /// Descriptors 0, 1 and 2 are open.
    StandardDescriptors,
    /// No core file, no ptrace and no /proc/PID/mem for processes of the same user.
    NotDumpable,
    /// No core file.
    NoCoreFile,
    /// No program that we start inherits a descriptor.
    CloseOnExec,
    /// No program that we start gains a privilege.
    NoNewPrivileges,
}

impl Protection {
    /// A word for a metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StandardDescriptors => "standard_descriptors",
            Self::NotDumpable => "not_dumpable",
            Self::NoCoreFile => "no_core_file",
            Self::CloseOnExec => "close_on_exec",
            Self::NoNewPrivileges => "no_new_privileges",
        }
    }
}

/// One line for the log: what is missing, what that means, and the kernel's reason.
impl fmt::Display for Degraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.protection {
            Protection::StandardDescriptors => {
                "/dev/null cannot take the place of a standard descriptor that is closed, so the next file or socket \
                 may get its number"
            }
            Protection::NotDumpable => {
                "the process stays dumpable, so processes of the same user can read its memory and a crash can write \
                 it to disk"
            }
            Protection::NoCoreFile => "the limit for core files stays, so a crash can write memory to disk",
            Protection::CloseOnExec => {
                "descriptors that were inherited stay open on exec, so a command of ours inherits them too"
            }
            Protection::NoNewPrivileges => "no_new_privs stays off, so a program that we start could gain privileges",
        })?;
        write!(f, " ({})", self.errno.desc())
    }
}

/// The caller's umask and core limit, as they were before [`apply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    umask: Mode,
    core: Option<(rlim_t, rlim_t)>,
}

impl Before {
    /// Gives them back: for the child that becomes the caller's command, between fork and exec. Two plain system calls,
    /// no allocation, no lock: it may run in `pre_exec`. (Dumpable comes back with the exec itself, see prctl(2).)
    pub fn restore(&self) -> std::io::Result<()> {
        umask(self.umask);
        if let Some((soft, hard)) = self.core {
            setrlimit(Resource::RLIMIT_CORE, soft, hard)?;
        }
        Ok(())
    }
}

/// Makes the process one that secrets may be read into. Call it before there are threads (umask(2) is the process's)
/// and before anything is opened.
pub fn apply() -> Applied {
    let mut degraded = Vec::new();
    let mut note = |protection, result: nix::Result<()>| {
        if let Err(errno) = result {
            degraded.push(Degraded { protection, errno });
        }
    };
    note(Protection::NotDumpable, prctl::set_dumpable(false));
    note(Protection::StandardDescriptors, open_standard_descriptors());
    let core = getrlimit(Resource::RLIMIT_CORE);
    // The soft limit only: without privileges nobody gets a hard one back, and `dev -- COMMAND` owes COMMAND the
    // caller's. It is the second wall anyway: a core_pattern with a pipe does not ask for it.
    note(Protection::NoCoreFile, core.and_then(|(_, hard)| setrlimit(Resource::RLIMIT_CORE, 0, hard)));
    note(Protection::CloseOnExec, close_on_exec_from(3));
    let umask = umask(Mode::from_bits_truncate(0o077));
    Applied { before: Before { umask, core: core.ok() }, degraded }
}

/// For `run` only, since it cannot be undone and `dev`'s COMMAND may be one that needs sudo: no program started from
/// here on can gain a privilege (prctl(2), PR_SET_NO_NEW_PRIVS).
pub fn no_new_privileges() -> Result<(), Degraded> {
    prctl::set_no_new_privs().map_err(|errno| Degraded { protection: Protection::NoNewPrivileges, errno })
}

/// For `run` only, since `dev`'s COMMAND owes its limits to its caller (select(2) and old programs that close every
/// descriptor they may have want the low soft limit): as many descriptors as the host lets us have. Each connection of a
/// caller takes one, and systemd's default is 1024 (systemd.exec(5), LimitNOFILE=).
pub fn raise_descriptor_limit() -> Result<(), Errno> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft == hard { Ok(()) } else { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) }
}

/// How many descriptors this process may have open; none where there is no limit, or none is told.
pub fn descriptor_limit() -> Option<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    (soft != RLIM_INFINITY).then_some(soft)
}

/// A closed descriptor 2 would be the number of the next file that is opened, and our next message would be written
/// into it; OpenSSH's sanitise_stdfd() guards against the same. Rust's runtime does this before `main` today, but
/// documents no promise of it.
fn open_standard_descriptors() -> nix::Result<()> {
    for number in 0..=2 {
        if !is_open(number)? {
            // The lowest free number, and those below are open: it is `number`.
            let null = open("/dev/null", OFlag::O_RDWR, Mode::empty())?;
            let _ = std::os::fd::IntoRawFd::into_raw_fd(null);
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "asks about a number that may be no descriptor")]
fn is_open(number: i32) -> nix::Result<bool> {
    // SAFETY: F_GETFD has no argument and changes nothing, whatever `number` is.
    match Errno::result(unsafe { libc::fcntl(number, libc::F_GETFD) }) {
        Ok(_) => Ok(true),
        Err(Errno::EBADF) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn close_on_exec_from(first: u32) -> nix::Result<()> {
    match close_range_cloexec(first) {
        // ENOSYS before Linux 5.9, EINVAL before 5.11, EPERM from filters that do not know the call.
        Err(Errno::ENOSYS | Errno::EINVAL | Errno::EPERM) => close_on_exec_one_by_one(first),
        result => result,
    }
}

#[expect(unsafe_code, reason = "neither nix nor every libc has a wrapper of close_range(2)")]
fn close_range_cloexec(first: u32) -> nix::Result<()> {
    // SAFETY: with this flag it closes nothing; it sets FD_CLOEXEC on whatever is open.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop)
}

#[expect(unsafe_code, reason = "borrows descriptors by the numbers that the kernel lists")]
fn close_on_exec_one_by_one(first: u32) -> nix::Result<()> {
    let io = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    for entry in std::fs::read_dir("/proc/self/fd").map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if u32::try_from(number).is_ok_and(|number| number >= first) {
            // SAFETY: listed a moment ago, and `apply` runs before there are threads that could close it; the
            // directory's own descriptor, which is listed too, is open until the loop ends.
            let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
            fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::{
        fd::{AsFd as _, BorrowedFd},
        unix::process::CommandExt as _,
    };

    use nix::unistd::dup;

    use super::*;

    fn is_close_on_exec(fd: BorrowedFd<'_>) -> bool {
        fcntl(fd, FcntlArg::F_GETFD).unwrap() & libc::FD_CLOEXEC != 0
    }

    #[test]
    fn the_process_is_not_dumpable_leaves_no_core_and_shares_no_file_or_descriptor() {
        trial::in_own_process(
            "hardening::tests::the_process_is_not_dumpable_leaves_no_core_and_shares_no_file_or_descriptor",
            || {
                let inherited = dup(std::io::stderr().as_fd()).unwrap();
                assert!(!is_close_on_exec(inherited.as_fd()));
                let (_, hard) = getrlimit(Resource::RLIMIT_CORE).unwrap();
                let applied = apply();
                assert_eq!(applied.degraded, []);
                assert!(!prctl::get_dumpable().unwrap());
                assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, hard));
                assert!(is_close_on_exec(inherited.as_fd()), "open, and not for others");
                assert!(!is_close_on_exec(std::io::stderr().as_fd()));
                assert_eq!(umask(Mode::from_bits_truncate(0o077)).bits(), 0o077);
                assert!(!prctl::get_no_new_privs().unwrap(), "that is for `run` to ask for");
                no_new_privileges().unwrap();
                assert!(prctl::get_no_new_privs().unwrap());
            },
        );
    }

    #[test]
    fn the_limit_of_descriptors_is_raised_as_far_as_it_goes() {
        trial::in_own_process(
            "hardening::tests::the_limit_of_descriptors_is_raised_as_far_as_it_goes",
            || {
                setrlimit(Resource::RLIMIT_NOFILE, 100, 500).unwrap();
                assert_eq!(descriptor_limit(), Some(100));
                for _ in 0..2 {
                    raise_descriptor_limit().unwrap();
                    assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (500, 500));
                }
                assert_eq!(descriptor_limit(), Some(500));
                let refused = trial::without_call(libc::SYS_prlimit64, Errno::EPERM, || {
                    (raise_descriptor_limit(), descriptor_limit())
                });
                assert_eq!(refused, (Err(Errno::EPERM), None));
            },
        );
    }

    #[test]
    #[expect(unsafe_code, reason = "pre_exec")]
    fn a_command_in_the_callers_name_gets_the_callers_umask_and_limits() {
        trial::in_own_process(
            "hardening::tests::a_command_in_the_callers_name_gets_the_callers_umask_and_limits",
            || {
                umask(Mode::from_bits_truncate(0o027));
                let (_, hard) = getrlimit(Resource::RLIMIT_CORE).unwrap();
                let soft = hard.min(8192);
                setrlimit(Resource::RLIMIT_CORE, soft, hard).unwrap();
                let before = apply().before;
                let mut command = std::process::Command::new("sh");
                command.args(["-c", "umask; ulimit -S -c; ulimit -H -c"]);
                let ours = String::from_utf8(command.output().unwrap().stdout).unwrap();
                // SAFETY: `restore` makes two system calls and touches no lock or heap.
                unsafe { command.pre_exec(move || before.restore()) };
                let theirs = String::from_utf8(command.output().unwrap().stdout).unwrap();
                let hard_line = ours.lines().nth(2).unwrap();
                assert_eq!(ours, format!("0077\n0\n{hard_line}\n"));
                // sh counts in blocks of 512 bytes.
                assert_eq!(theirs, format!("0027\n{}\n{hard_line}\n", soft / 512));
            },
        );
    }

    #[test]
    #[expect(unsafe_code, reason = "closes descriptors that nobody owns")]
    fn closed_standard_descriptors_are_opened_on_dev_null_and_open_ones_are_left_alone() {
        trial::in_own_process(
            "hardening::tests::closed_standard_descriptors_are_opened_on_dev_null_and_open_ones_are_left_alone",
            || {
                let target = |number: i32| std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap();
                let stderr = target(2);
                // SAFETY: this process is this test's; nothing reads 0 or writes 1 in between.
                let saved = unsafe {
                    let saved = dup(BorrowedFd::borrow_raw(1)).unwrap();
                    libc::close(0);
                    libc::close(1);
                    saved
                };
                assert_eq!(apply().degraded, []);
                let seen = [target(0), target(1), target(2)];
                nix::unistd::dup2_stdout(saved).unwrap();
                assert_eq!(seen, ["/dev/null".into(), "/dev/null".into(), stderr]);
            },
        );
    }

    #[test]
    fn without_close_range_the_descriptors_are_marked_one_by_one() {
        trial::in_own_process(
            "hardening::tests::without_close_range_the_descriptors_are_marked_one_by_one",
            || {
                let inherited = dup(std::io::stderr().as_fd()).unwrap();
                for errno in [Errno::ENOSYS, Errno::EINVAL, Errno::EPERM] {
                    fcntl(&inherited, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
                    // Without privileges, because /proc/self is root's once the process is not dumpable.
                    trial::without_call(libc::SYS_close_range, errno, || {
                        trial::as_nobody(|| {
                            prctl::set_dumpable(false).unwrap();
                            assert_eq!(close_range_cloexec(3), Err(errno));
                            assert_eq!(close_on_exec_from(3), Ok(()));
                        });
                    });
                    assert!(is_close_on_exec(inherited.as_fd()), "{errno}");
                }
            },
        );
    }

    #[test]
    fn a_refusal_is_reported_with_what_it_means() {
        trial::in_own_process("hardening::tests::a_refusal_is_reported_with_what_it_means", || {
            let degraded = trial::without_call(libc::SYS_prctl, Errno::EPERM, || {
                let mut degraded = apply().degraded;
                degraded.extend(no_new_privileges().err());
                degraded
            });
            let lines: Vec<_> = degraded.iter().map(|d| (d.protection.as_str(), d.to_string())).collect();
            assert_eq!(
                lines,
                [
                    (
                        "not_dumpable",
                        "the process stays dumpable, so processes of the same user can read its memory and a crash \
                         can write it to disk (Operation not permitted)"
                            .to_owned()
                    ),
                    (
                        "no_new_privileges",
                        "no_new_privs stays off, so a program that we start could gain privileges (Operation not \
                         permitted)"
                            .to_owned()
                    ),
                ]
            );
            let line = |protection| Degraded { protection, errno: Errno::ENOSYS }.to_string();
            assert!(line(Protection::StandardDescriptors).starts_with("/dev/null cannot take the place"));
            assert!(line(Protection::NoCoreFile).starts_with("the limit for core files stays"));
            assert!(line(Protection::CloseOnExec).starts_with("descriptors that were inherited stay open"));
        });
    }
}
