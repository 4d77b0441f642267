//! Landlock (landlock(7)): rights over files and TCP ports that a thread gives up, for itself and whatever it starts.
//!
//! By its three system calls rather than a library: the two structs below are all that there is to it, and what a kernel
//! lacks is to be named one by one.

use std::{
    fmt,
    mem::size_of,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use nix::{errno::Errno, libc};

use super::{AbstractSockets, Gates};

/// What a kernel knows of Landlock: 1 came with Linux 5.13, and every later number adds to the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Abi(u32);

/// `struct landlock_ruleset_attr` of ABI 6. An older kernel takes it as long as what it does not know is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ruleset {
    files: u64,
    net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    directory: RawFd,
}

/// `struct landlock_net_port_attr`.
#[repr(C)]
struct NetPort {
    allowed: u64,
    port: u64,
}

/// A rule's type, as the kernel numbers it, is that of its struct.
trait Rule {
    const TYPE: libc::c_int;
}

impl Rule for PathBeneath {
    const TYPE: libc::c_int = 1;
}

impl Rule for NetPort {
    const TYPE: libc::c_int = 2;
}

/// LANDLOCK_CREATE_RULESET_VERSION.
const ASK_VERSION: libc::c_uint = 1;

const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const REMOVE_FILE: u64 = 1 << 5;
/// Directories, regular files, devices, sockets, pipes and links: made and removed.
const REMOVE_AND_MAKE: u64 = 0x1ff << 4;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEVICE: u64 = 1 << 15;
const BIND_TCP: u64 = 1;
const CONNECT_TCP: u64 = 1 << 1;
const SCOPE_ABSTRACT_SOCKETS: u64 = 1;
const SCOPE_SIGNALS: u64 = 1 << 1;

impl Abi {
    /// Of the kernel that runs. ENOSYS: it is not built in; EOPNOTSUPP: it is off at boot.
    pub fn of_this_kernel() -> Result<Self, Errno> {
        version().map(Self)
    }

    /// Whether TCP is among what it keeps (Linux 6.7).
    pub fn keeps_tcp(self) -> bool {
        self >= Self(4)
    }

    /// What later kernels keep a process from.
    pub fn missing(self) -> String {
        let later = [
            (3, "truncating files (Linux 6.2 does)"),
            (4, "TCP to any port (6.7)"),
            (5, "ioctl on devices (6.10)"),
            (6, "signals and abstract sockets of others (6.12)"),
        ];
        let later: Vec<_> = later.iter().filter(|(abi, _)| self.0 < *abi).map(|(_, what)| *what).collect();
        later.join(", ")
    }

    /// All that is given up: what the kernel handles and no rule allows.
    fn given_up(self, abstract_sockets: AbstractSockets) -> Ruleset {
        let from = |abi: u32, rights: u64| if self.0 >= abi { rights } else { 0 };
        let abstract_sockets = match abstract_sockets {
            AbstractSockets::Closed => SCOPE_ABSTRACT_SOCKETS,
            AbstractSockets::Needed => 0,
        };
        Ruleset {
            files: EXECUTE
                | WRITE_FILE
                | REMOVE_AND_MAKE
                // ABI 1 denies it always.
                | from(2, REFER)
                | from(3, TRUNCATE)
                | from(5, IOCTL_DEVICE),
            net: from(4, BIND_TCP | CONNECT_TCP),
            scoped: from(6, abstract_sockets | SCOPE_SIGNALS),
        }
    }
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Gives up what the kernel can take, of this thread. All of it or nothing.
pub fn restrict(gates: &Gates<'_>) -> Result<Abi, Errno> {
    let abi = Abi::of_this_kernel()?;
    let given_up = abi.given_up(gates.abstract_sockets);
    let ruleset = ruleset(&given_up)?;
    if let Some(directory) = gates.removes_in {
        add(&ruleset, &PathBeneath { allowed: REMOVE_FILE, directory: directory.as_raw_fd() })?;
    }
    if abi.keeps_tcp() {
        for port in &gates.ports {
            add(&ruleset, &NetPort { allowed: CONNECT_TCP, port: u64::from(*port) })?;
        }
    }
    restrict_self(&ruleset)?;
    Ok(abi)
}

#[expect(unsafe_code, reason = "landlock_create_ruleset(2) has no wrapper")]
fn version() -> Result<u32, Errno> {
    // SAFETY: with this flag it is a question, and takes neither struct nor size.
    let answer = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<Ruleset>(), 0_usize, ASK_VERSION)
    };
    u32::try_from(Errno::result(answer)?).map_err(|_| Errno::EINVAL)
}

#[expect(unsafe_code, reason = "landlock_create_ruleset(2) has no wrapper")]
fn ruleset(given_up: &Ruleset) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel reads as many bytes as the size says, which is the struct's.
    let made = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::from_ref(given_up),
            size_of::<Ruleset>(),
            0,
        )
    };
    let number = RawFd::try_from(Errno::result(made)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made it (close-on-exec), and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[expect(unsafe_code, reason = "landlock_add_rule(2) has no wrapper")]
fn add<R: Rule>(ruleset: &OwnedFd, rule: &R) -> Result<(), Errno> {
    let rule = std::ptr::from_ref(rule);
    // SAFETY: the struct is that of the type (see `Rule`), and the kernel reads it and no more.
    let added = unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), R::TYPE, rule, 0) };
    Errno::result(added).map(drop)
}

#[expect(unsafe_code, reason = "landlock_restrict_self(2) has no wrapper")]
fn restrict_self(ruleset: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: a descriptor and no flags; it takes rights away and touches no memory.
    Errno::result(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_abi_gives_up_what_it_knows_and_names_what_it_does_not() {
        let (all_files, all_net) = (0xffff & !0b1100, 0b11);
        let table = [
            (1, all_files & !(REFER | TRUNCATE | IOCTL_DEVICE), 0, 0, "truncating files"),
            (2, all_files & !(TRUNCATE | IOCTL_DEVICE), 0, 0, "truncating files"),
            (3, all_files & !IOCTL_DEVICE, 0, 0, "TCP to any port"),
            (4, all_files & !IOCTL_DEVICE, all_net, 0, "ioctl on devices"),
            (5, all_files, all_net, 0, "signals and abstract sockets"),
            (6, all_files, all_net, 0b11, ""),
            (7, all_files, all_net, 0b11, ""),
            (1000, all_files, all_net, 0b11, ""),
        ];
        for (abi, files, net, scoped, missing) in table {
            let abi = Abi(abi);
            assert_eq!(abi.given_up(AbstractSockets::Closed), Ruleset { files, net, scoped }, "{abi}");
            assert_eq!(abi.keeps_tcp(), net != 0, "{abi}");
            assert!(
                abi.missing().starts_with(missing) && abi.missing().is_empty() == missing.is_empty(),
                "{abi}"
            );
        }
        let needed = Abi(7).given_up(AbstractSockets::Needed);
        assert_eq!(needed.scoped, SCOPE_SIGNALS, "who is reached at one is not cut off");
    }
}
