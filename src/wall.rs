//! The second wall: what `run` takes from its own process, for good, once it has its socket and knows its config. Should
//! somebody's bytes ever become our code, that code can read what the agent reads and ask whom the agent asks, and not much
//! besides. The unit's sandbox says the same and more; this holds where there is no unit too.
//!
//! - [`landlock`]: no file is written, made, removed or run, anywhere, and TCP goes to the ports of the config and to 53.
//!   What is open stays open (the log, the sockets), and reading is not narrowed: names are looked up by modules that each
//!   host chooses, in files that they choose.
//! - [`seccomp`]: system calls that an agent never makes fail with EPERM.
//! - Best effort: what the kernel lacks is told ([`Wall::missing`]), and the agent serves all the same.
//! - It decides nothing: who calls it knows the ports and the socket.

pub mod landlock;
pub mod seccomp;

use std::{collections::BTreeSet, fmt, os::fd::BorrowedFd};

use nix::errno::Errno;

use landlock::Abi;

/// TCP for names (resolv.conf(5) knows no other port).
const NAMES: u16 = 53;

/// What must still be possible.
pub struct Gates<'a> {
    /// The TCP ports of the config; port 53 need not be among them.
    pub ports: BTreeSet<u16>,
    /// The directory, opened with O_PATH, out of which the agent's own socket is to be removed at the end.
    pub removes_in: Option<BorrowedFd<'a>>,
    /// Whether anybody is reached at an abstract socket.
    pub abstract_sockets: AbstractSockets,
}

/// Connections to sockets of others that have a name without a file (unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbstractSockets {
    /// Not needed.
    Closed,
    /// The service manager listens at one.
    Needed,
}

/// What stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wall {
    files: Result<Abi, Errno>,
    calls: Result<(), Errno>,
    ports: BTreeSet<u16>,
}

/// A part that the host does not give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its word in the metrics.
    pub part: &'static str,
    /// What that means, and why it is so.
    pub meaning: String,
}

/// Raises what can be raised, over this thread and those that it starts. Call it while there is no other: Landlock is a
/// thread's before Linux 7.0. It asks for no_new_privs to be set (landlock(7), seccomp(2)), and cannot be undone.
pub fn raise(mut gates: Gates<'_>) -> Wall {
    gates.ports.insert(NAMES);
    // In this order: the filter is for what comes after.
    let files = landlock::restrict(&gates);
    Wall { files, calls: seccomp::filter(), ports: gates.ports }
}

impl Wall {
    /// The ports that TCP may go to; none where it may go to any.
    pub fn ports(&self) -> Option<&BTreeSet<u16>> {
        self.files.is_ok_and(Abi::keeps_tcp).then_some(&self.ports)
    }

    /// What is missing, part by part.
    pub fn missing(&self) -> Vec<Missing> {
        let files = match self.files {
            Ok(abi) if abi.missing().is_empty() => None,
            Ok(abi) => {
                Some(format!("the kernel's Landlock does not keep the process from {}", abi.missing()))
            }
            Err(errno) => Some(format!(
                "Landlock does not keep the process from writing, making and running files, and from TCP to any port ({})",
                errno.desc()
            )),
        };
        let calls = self.calls.err().map(|errno| {
            format!(
                "seccomp does not keep the process from system calls that it never makes ({})",
                errno.desc()
            )
        });
        let parts = [("landlock", files), ("seccomp", calls)].into_iter();
        parts.filter_map(|(part, meaning)| Some(Missing { part, meaning: meaning? })).collect()
    }
}

/// What stands, in one line.
impl fmt::Display for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = self.files.map(|abi| match self.ports() {
            Some(ports) => {
                let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
                format!("Landlock ABI {abi}, TCP to {}", ports.join(" "))
            }
            None => format!("Landlock ABI {abi}, TCP to any port"),
        });
        match (files, self.calls) {
            (Ok(files), Ok(())) => write!(f, "{files}; seccomp"),
            (Ok(files), Err(_)) => f.write_str(&files),
            (Err(_), Ok(())) => f.write_str("seccomp"),
            (Err(_), Err(_)) => f.write_str("nothing"),
        }
    }
}

#[cfg(test)]
mod tests;
