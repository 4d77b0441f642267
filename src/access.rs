//! Who may do what: the selectors of `allow` and `admin`, and the one decision made from them.
//!
//! Pure and total. [`Peer`] is plain facts that [`crate::peer`] has from the kernel; names were resolved to ids before
//! ([`Directory`]). Nobody is admitted by default; uid 65534 (`nobody`, and every uid that a user namespace does not
//! map) matches no rule at all.

pub mod selector;

use std::{collections::BTreeMap, sync::Arc};

pub use selector::{Selector, SelectorFault, Term, UnitName};

/// The uid that matches no rule: the kernel's overflow uid (`/proc/sys/kernel/overflowuid`).
pub const OVERFLOW_UID: u32 = 65_534;

/// The process at the other end of a connection, as of its connect(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Effective uid (SO_PEERCRED).
    pub uid: u32,
    /// Effective gid (SO_PEERCRED).
    pub gid: u32,
    /// Supplementary groups (SO_PEERGROUPS), without `gid` unless the kernel lists it.
    pub groups: Vec<u32>,
    /// Its process id, for the audit only; 0 if it lives in another PID namespace.
    pub pid: i32,
    /// Its systemd unit, where some rule asks for one.
    pub unit: Option<UnitName>,
}

/// Names resolved to ids, at start, at each reload, and again when somebody is refused. A name that is not here
/// matches nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// Users by name.
    pub users: BTreeMap<Box<str>, u32>,
    /// Groups by name.
    pub groups: BTreeMap<Box<str>, u32>,
}

/// Whether root is admitted by being root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RootAccess {
    /// `root = "always"`.
    #[default]
    Always,
    /// `root = "by-rule"`: for hosts that mount the socket into containers.
    ByRule,
}

/// The rules of one profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rules {
    /// No `allow`: root and the agent's own user, the ssh-agent rule.
    OwnerOnly,
    /// The lines of `allow`; any admits.
    Allow(Vec<Selector>),
}

/// What a decision is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    /// GetToken.
    Get,
    /// WatchToken.
    Watch,
    /// ListTokens.
    List,
    /// ReportRejected.
    Report,
    /// Health of the profile.
    Health,
    /// Anything of AdminService.
    Admin,
}

/// Everything decisions are made from, for one version of the config.
#[derive(Clone, Debug)]
pub struct Policy {
    /// `agent.root`.
    pub root: RootAccess,
    /// The uid that the agent runs as.
    pub own_uid: u32,
    /// `agent.admin`; root is an admin without being listed.
    pub admin: Vec<Selector>,
    /// Names resolved.
    pub directory: Arc<Directory>,
}

/// The outcome, with what the audit says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Admitted, by this rule: `root`, `owner`, or the selector as it was written.
    Allow(Box<str>),
    /// Not admitted.
    Deny,
}
