//! What the service manager hands over at the start, and what it is told: no more than two sockets of its making, some
//! environment variables, and datagrams (sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3)).
//!
//! - [`Manager::take`] reads the variables once, at the start of the program, and removes them: what is started later
//!   takes nothing of it for its own.
//! - A descriptor is what its name says, never what its number suggests, and a socket is looked at before it is served.
//! - Telling never waits: a manager that does not read is told later or not at all, and nobody's call is late for it.
//! - It decides nothing: what is stored, when the agent is ready and what keeps the watchdog quiet is the daemon's.
//!
//! Not a library's, because the usual ones (libsystemd's and those after it) wait where the manager does not read.

pub mod activation;
pub mod notify;

use std::time::Duration;

pub use activation::{ActivationFault, Passed, StoredDescriptor};
pub use notify::{Notifier, State};

/// What a program that was started by a service manager has from it; by anything else: nothing.
#[derive(Debug)]
pub struct Manager {
    /// The descriptors.
    pub passed: Passed,
    /// The way to tell it.
    pub notifier: Notifier,
    /// It must hear of us within this time, again and again, or it ends us (WATCHDOG_USEC).
    pub watchdog: Option<Duration>,
}

impl Manager {
    /// None: for programs that no manager started, and for tests.
    pub fn none() -> Self {
        Self { passed: Passed::default(), notifier: Notifier::none(), watchdog: None }
    }

    /// Takes what is there from the environment. Call it once, while there is one thread, before anything is opened.
    pub fn take() -> Result<Self, ActivationFault> {
        let own = std::process::id();
        let (pid, count, names) =
            (variable("LISTEN_PID"), variable("LISTEN_FDS"), variable("LISTEN_FDNAMES"));
        // systemd 258 says it a second time, by the pidfd's inode.
        variable("LISTEN_PIDFDID");
        let socket = variable("NOTIFY_SOCKET");
        let (watchdog, watched) = (variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"));
        let written = activation::Written { pid, count, names };
        let passed = activation::take(&written, own)?;
        let notifier = socket.map_or(Ok(Notifier::none()), |address| Notifier::to(&address));
        let notifier = notifier.map_err(|why| ActivationFault::Notify { why })?;
        Ok(Self { passed, notifier, watchdog: watchdog_of(watchdog.as_deref(), watched.as_deref(), own) })
    }
}

/// Reads a variable and removes it. One that is not Unicode is not systemd's.
#[allow(unsafe_code, reason = "changes the environment")]
fn variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok();
    // SAFETY: nothing else reads or writes the environment meanwhile: `Manager::take` is called before any thread.
    unsafe { std::env::remove_var(name) };
    value
}

/// How long the manager waits for a sign; none where it does not, or means another process (sd_watchdog_enabled(3)).
fn watchdog_of(micros: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    let is_ours = pid.is_none_or(|pid| pid.parse() == Ok(own));
    let micros = micros?.parse().ok().filter(|micros| *micros > 0 && is_ours)?;
    Some(Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_ours_or_nobodys() {
        let table = [
            (None, None, None),
            (Some("60000000"), None, Some(60)),
            (Some("60000000"), Some("7"), Some(60)),
            (Some("60000000"), Some("8"), None),
            (Some("60000000"), Some(""), None),
            (Some("0"), None, None),
            (Some("-1"), None, None),
            (Some("soon"), None, None),
        ];
        for (micros, pid, seconds) in table {
            assert_eq!(watchdog_of(micros, pid, 7), seconds.map(Duration::from_secs), "{micros:?} {pid:?}");
        }
    }
}
