//! What the daemon does to its own process before it does anything else.
//!
//! [`apply`] is the first line of `main`, with no branch before it. The library never calls it: a program that uses
//! the client has its own opinion about its own process. It closes no descriptor (systemd's are among them), and
//! nothing here ends the process: what the host refuses is reported, logged once and shown by a gauge, because an agent
//! that does not start protects no secret either.

#[cfg(test)]
pub(crate) mod trial;

use std::{fmt, io, os::fd::RawFd};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::{
        prctl,
        resource::{RLIM_INFINITY, Resource, getrlimit, rlim_t, setrlimit},
        signal::{SigHandler, Signal, signal},
        stat::{Mode, umask},
    },
    unistd::{User, initgroups, setresgid, setresuid},
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

/// What the caller handed down, as it was before [`apply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    umask: Mode,
    core: Option<(rlim_t, rlim_t)>,
    /// From 3 on: those that a program which we start would have inherited.
    inheritable: Vec<RawFd>,
    ignored_sigchld: bool,
}

impl Before {
    /// Gives it back: for the child that becomes the caller's command, between fork and exec. Plain system calls, no
    /// allocation, no lock: it may run in `pre_exec`. (Dumpable comes back with the exec itself, see prctl(2).) Signals
    /// that are ignored stay so over an exec, if nobody installs a handler: ask [`is_ignored`] first.
    pub fn restore(&self) -> io::Result<()> {
        umask(self.umask);
        if let Some((soft, hard)) = self.core {
            setrlimit(Resource::RLIMIT_CORE, soft, hard)?;
        }
        for &number in &self.inheritable {
            inherit(number)?;
        }
        if self.ignored_sigchld {
            handle_sigchld(SigHandler::SigIgn)?;
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
    let inheritable = inheritable_from(3);
    note(Protection::CloseOnExec, close_on_exec_from(3, &inheritable));
    // Who ignores it loses the exit status of its children (wait(2)).
    let ignored_sigchld = is_ignored(Signal::SIGCHLD) && handle_sigchld(SigHandler::SigDfl).is_ok();
    let before = Before {
        umask: umask(Mode::from_bits_truncate(0o077)),
        core: core.ok(),
        // Without /proc nobody can list them; a command then gets none, which is the safe side.
        inheritable: inheritable.unwrap_or_default(),
        ignored_sigchld,
    };
    Applied { before, degraded }
}

/// Whether the process ignores `signal`; before there is a handler of its own: whether its caller had it so, as
/// nohup(1) does with SIGHUP. A handler would take that from every program that is started (execve(2)).
#[expect(unsafe_code, reason = "nix can only ask by setting another action")]
pub fn is_ignored(signal: Signal) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call changes nothing but `action`, for which zero is a value.
    let action = unsafe {
        // The only error is of numbers that are no signal, and leaves the zero of SIG_DFL.
        libc::sigaction(signal as libc::c_int, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

#[expect(unsafe_code, reason = "signal(2)")]
fn handle_sigchld(how: SigHandler) -> nix::Result<()> {
    // SAFETY: neither the default nor SIG_IGN runs code of ours.
    unsafe { signal(Signal::SIGCHLD, how) }.map(drop)
}

/// For `run` only, since it cannot be undone and `dev`'s COMMAND may be one that needs sudo: no program started from
/// here on can gain a privilege (prctl(2), PR_SET_NO_NEW_PRIVS).
pub fn no_new_privileges() -> Result<(), Degraded> {
    prctl::set_no_new_privs().map_err(|errno| Degraded { protection: Protection::NoNewPrivileges, errno })
}

/// Makes this process one of `user`, with all of the user's groups and no way back (credentials(7)): for `check`, since who
/// may read a file is seen best by reading it. Call it while there is one thread. EPERM: the process is not root's.
pub fn become_user(user: &User) -> Result<(), Errno> {
    let name = std::ffi::CString::new(user.name.as_str()).map_err(|_| Errno::EINVAL)?;
    initgroups(&name, user.gid)?;
    setresgid(user.gid, user.gid, user.gid)?;
    setresuid(user.uid, user.uid, user.uid)?;
    // A change of the uid sets it to what fs.suid_dumpable says (prctl(2)).
    prctl::set_dumpable(false)
}

/// For programs that ask providers themselves (`run`, `check`): whom they trust is the system's store or `ca_file`, and no
/// variable of the environment. The TLS library would honour these two. Call it while there is one thread.
#[expect(unsafe_code, reason = "changes the environment")]
pub fn forget_trust_variables() {
    for name in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        // SAFETY: nothing else reads or writes the environment meanwhile: it is called from `main`, before any thread.
        unsafe { std::env::remove_var(name) };
    }
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

fn is_open(number: RawFd) -> nix::Result<bool> {
    match flags(number) {
        Ok(_) => Ok(true),
        Err(Errno::EBADF) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn close_on_exec_from(first: u32, inheritable: &nix::Result<Vec<RawFd>>) -> nix::Result<()> {
    match close_range_cloexec(first) {
        // ENOSYS before Linux 5.9, EINVAL before 5.11, EPERM from filters that do not know the call.
        Err(Errno::ENOSYS | Errno::EINVAL | Errno::EPERM) => inheritable
            .as_ref()
            .map_err(|&errno| errno)?
            .iter()
            .try_for_each(|&number| set_flags(number, libc::FD_CLOEXEC)),
        result => result,
    }
}

#[expect(unsafe_code, reason = "neither nix nor every libc has a wrapper of close_range(2)")]
fn close_range_cloexec(first: u32) -> nix::Result<()> {
    // SAFETY: with this flag it closes nothing; it sets FD_CLOEXEC on whatever is open.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop)
}

/// The open descriptors from `first` on that are not close-on-exec.
fn inheritable_from(first: RawFd) -> nix::Result<Vec<RawFd>> {
    let io = |error: io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        // The directory's own descriptor is among them, and is close-on-exec.
        if let Some(number) = name.to_str().and_then(|name| name.parse::<RawFd>().ok())
            && number >= first
            && flags(number)? & libc::FD_CLOEXEC == 0
        {
            found.push(number);
        }
    }
    Ok(found)
}

#[expect(unsafe_code, reason = "asks about a number that may be no descriptor")]
fn flags(number: RawFd) -> nix::Result<libc::c_int> {
    // SAFETY: F_GETFD has no argument and changes nothing, whatever `number` is.
    Errno::result(unsafe { libc::fcntl(number, libc::F_GETFD) })
}

#[expect(unsafe_code, reason = "names descriptors by the numbers that the kernel listed")]
fn set_flags(number: RawFd, flags: libc::c_int) -> nix::Result<()> {
    // SAFETY: FD_CLOEXEC, the only such flag, invalidates no descriptor; a number that is none is refused.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, flags) }).map(drop)
}

/// A program that is started from here on inherits it. No allocation, no lock.
fn inherit(number: RawFd) -> nix::Result<()> {
    match set_flags(number, 0) {
        // Closed since: there is nothing to hand down.
        Err(Errno::EBADF) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::process::CommandExt as _,
    };

    use nix::{
        fcntl::{FcntlArg, FdFlag, fcntl},
        unistd::dup,
    };

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
                // SAFETY: `restore` makes system calls and touches no lock or heap.
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
    #[expect(unsafe_code, reason = "pre_exec")]
    fn a_command_in_the_callers_name_inherits_the_callers_descriptors_and_none_of_ours() {
        trial::in_own_process(
            "hardening::tests::a_command_in_the_callers_name_inherits_the_callers_descriptors_and_none_of_ours",
            || {
                let passed = dup(std::io::stderr().as_fd()).unwrap();
                let withheld = std::fs::File::open("/dev/null").unwrap();
                let before = apply().before;
                let ours = std::fs::File::open("/dev/null").unwrap();
                let numbers = [passed.as_raw_fd(), withheld.as_raw_fd(), ours.as_raw_fd()];
                let mut command = std::process::Command::new("sh");
                command.args(["-c", "for n; do test -e /proc/$$/fd/$n && echo $n; done; true", "sh"]);
                command.args(numbers.map(|number| number.to_string()));
                assert_eq!(command.output().unwrap().stdout, b"");
                // SAFETY: `restore` makes system calls and touches no lock or heap.
                unsafe { command.pre_exec(move || before.restore()) };
                let seen = String::from_utf8(command.output().unwrap().stdout).unwrap();
                assert_eq!(seen, format!("{}\n", numbers[0]));
                assert!(is_close_on_exec(passed.as_fd()), "only in the child");
            },
        );
    }

    #[test]
    #[expect(unsafe_code, reason = "pre_exec, signal(2)")]
    fn signals_that_the_caller_ignores_are_ignored_in_its_command_but_children_are_waited_for() {
        trial::in_own_process(
            "hardening::tests::signals_that_the_caller_ignores_are_ignored_in_its_command_but_children_are_waited_for",
            || {
                for ignored in [Signal::SIGHUP, Signal::SIGCHLD] {
                    // SAFETY: SIG_IGN runs no code.
                    unsafe { signal(ignored, SigHandler::SigIgn) }.unwrap();
                }
                let before = apply().before;
                assert!(is_ignored(Signal::SIGHUP) && !is_ignored(Signal::SIGUSR1));
                let mut command = std::process::Command::new("grep");
                command.args(["SigIgn", "/proc/self/status"]);
                // SAFETY: `restore` makes system calls and touches no lock or heap.
                unsafe { command.pre_exec(move || before.restore()) };
                // Where SIGCHLD is ignored this is ECHILD.
                let seen = String::from_utf8(command.output().unwrap().stdout).unwrap();
                let mask = u64::from_str_radix(seen.split_whitespace().nth(1).unwrap(), 16).unwrap();
                let is_in_mask = |signal: Signal| mask >> (signal as u32 - 1) & 1 == 1;
                assert!(is_in_mask(Signal::SIGHUP) && is_in_mask(Signal::SIGCHLD), "{seen}");
                assert!(!is_in_mask(Signal::SIGTERM), "{seen}");
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
                            assert_eq!(close_on_exec_from(3, &inheritable_from(3)), Ok(()));
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
