//! A filter of system calls (seccomp(2)), of all threads at once: a list of what is denied, and everything else passes.
//!
//! A list of what is denied and not of what is allowed, because this goes with the agent to hosts that nobody has tried:
//! which calls a C library makes, or a module that looks names up, changes with their updates, and an agent that such an
//! update breaks protects no secret. The list of what is allowed is the unit's SystemCallFilter=, which a host can change.
//!
//! - What is denied fails with EPERM and does not kill: a module that tries gets an error, as in the unit.
//! - Calls by another architecture's numbers are denied as a whole.
//! - It also closes what Landlock leaves open: attributes of files, and ways to TCP that are not connect(2).

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod program;

use nix::errno::Errno;

#[cfg(test)]
pub(super) use program::DENIED;

/// Installs it. ENOSYS on an architecture that it is not written for.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn filter() -> Result<(), Errno> {
    Err(Errno::ENOSYS)
}

/// Installs it. ESRCH: a thread has a filter of its own that is not this one's.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub fn filter() -> Result<(), Errno> {
    program::install(&program::program())
}
