//! Who may do what: the selectors of `allow` and `admin`, and the one decision made from them.
//!
//! Pure and total: the same facts always give the same [`Decision`]. [`Peer`] is plain facts that [`crate::peer`] has
//! from the kernel; names were resolved to ids before ([`Directory`]). What holds for every rule:
//! - nobody is admitted by default;
//! - uid 65534 (`nobody`, and every uid that a user namespace does not map) is admitted by nothing;
//! - a name that nobody has matches nobody, and an unknown unit is no unit.

pub mod consumer;
pub mod directory;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub mod selector;
pub mod unit;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

pub use consumer::{Consumer, NotAConsumer};
pub use directory::{DYNAMIC_IDS, Directory, IsDynamic, Lookup, Name};
pub use selector::{Selector, SelectorFault, Term};
pub use unit::{Placement, SliceFault, SliceName, UnitName, UnitPattern};

use crate::token::ProfileName;

/// The uid that matches no rule: the kernel's overflow uid (`/proc/sys/kernel/overflowuid`).
pub const OVERFLOW_UID: u32 = 65_534;
/// Root's uid.
pub const ROOT_UID: u32 = 0;

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
    /// The lines of `allow`; any admits. Without a line nobody is admitted but root.
    Allow(Vec<Selector>),
}

impl Rules {
    /// The lines that were written.
    pub fn selectors(&self) -> &[Selector] {
        match self {
            Self::OwnerOnly => &[],
            Self::Allow(selectors) => selectors,
        }
    }
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
    /// A unit's `LoadCredential=`. Only rules by unit matter to it, and being root does not ([`consumer`]).
    Credential,
    /// Anything of AdminService. No profile's rules matter to it.
    Admin,
}

/// Everything decisions are made from but the profiles' rules, for one version of the config.
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
    /// `agent.unit_slices`: only in these, and below them, is a service a unit that rules can name.
    pub unit_slices: Vec<SliceName>,
}

/// What admitted somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Being root.
    Root,
    /// Being the agent's own user, where no `allow` is written.
    Owner,
    /// A line of `allow` or `admin`, as it was written.
    Line(Arc<str>),
}

impl Rule {
    /// The rule's name in the audit.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Root => "root",
            Self::Owner => "owner",
            Self::Line(written) => written,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The outcome, with what the audit says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Admitted, by this rule.
    Allow(Rule),
    /// Not admitted.
    Deny,
}

impl Decision {
    /// Whether the peer is admitted.
    pub fn is_allow(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

/// Decides whether `peer` may do `verb` with a profile that has `rules`; for [`Verb::Admin`] whether it is an admin.
///
/// Under `root = "by-rule"` uid 0 is admitted to a profile by a line that names it and by nothing else: an agent that
/// runs as root does not admit a container's uid 0 as its own user. Administration stays root's.
pub fn decide(policy: &Policy, rules: &Rules, peer: &Peer, verb: Verb) -> Decision {
    if peer.uid == OVERFLOW_UID {
        return Decision::Deny;
    }
    if verb == Verb::Credential {
        return consumer::decide(rules, peer);
    }
    let root = peer.uid == ROOT_UID;
    if root && (policy.root == RootAccess::Always || verb == Verb::Admin) {
        return Decision::Allow(Rule::Root);
    }
    if verb != Verb::Admin && *rules == Rules::OwnerOnly && peer.uid == policy.own_uid && !root {
        return Decision::Allow(Rule::Owner);
    }
    match lines(policy, rules, verb).iter().find(|line| line.matches(peer, &policy.directory)) {
        Some(line) => Decision::Allow(Rule::Line(line.as_written().clone())),
        None => Decision::Deny,
    }
}

/// Whether `peer`, whose unit is not known, is refused for want of it: some line would admit it from the right unit.
fn hinges_on_unit(policy: &Policy, rules: &Rules, peer: &Peer, verb: Verb) -> bool {
    let would = |line: &Selector| line.names_a_unit() && line.matches_but_for_unit(peer, &policy.directory);
    peer.uid != OVERFLOW_UID
        && lines(policy, rules, verb).iter().any(would)
        && !decide(policy, rules, peer, verb).is_allow()
}

/// The lines that `verb` goes by.
fn lines<'a>(policy: &'a Policy, rules: &'a Rules, verb: Verb) -> &'a [Selector] {
    if verb == Verb::Admin { &policy.admin } else { rules.selectors() }
}

/// The rules of the whole agent, of one version of the config.
#[derive(Clone, Debug)]
pub struct AccessRules {
    policy: Policy,
    profiles: BTreeMap<ProfileName, Rules>,
}

impl AccessRules {
    /// Puts together what one version of the config says.
    pub fn new(policy: Policy, profiles: BTreeMap<ProfileName, Rules>) -> Self {
        Self { policy, profiles }
    }

    /// The same rules, with names looked up anew.
    pub fn with_directory(&self, directory: Directory) -> Self {
        let policy = Policy { directory: Arc::new(directory), ..self.policy.clone() };
        Self { policy, profiles: self.profiles.clone() }
    }

    /// The names that have to be looked up.
    pub fn names(&self) -> BTreeSet<Name> {
        let lines = self.profiles.values().flat_map(Rules::selectors).chain(&self.policy.admin);
        lines.flat_map(Selector::names).cloned().collect()
    }

    /// Where units count.
    pub fn unit_slices(&self) -> &[SliceName] {
        &self.policy.unit_slices
    }

    /// Whether some rule asks for a unit.
    pub fn names_units(&self) -> bool {
        let mut lines = self.profiles.values().flat_map(Rules::selectors).chain(&self.policy.admin);
        lines.any(Selector::names_a_unit)
    }

    /// Whether the unit of `peer`, which is not known yet, could change what [`Self::decide`] and [`Self::usable`] say of
    /// `profile`. Where no profile has that name (the empty one has none), of any: what such a caller is told depends on
    /// all that it may use.
    pub fn hinges_on_unit(&self, profile: &str, peer: &Peer, verb: Verb) -> bool {
        let hinges = |rules: &Rules| hinges_on_unit(&self.policy, rules, peer, verb);
        match self.profiles.get(profile) {
            _ if verb == Verb::Admin => hinges(&Rules::OwnerOnly),
            Some(rules) => hinges(rules),
            None => self.profiles.values().any(hinges),
        }
    }

    /// The names as they are resolved now.
    pub fn directory(&self) -> &Directory {
        &self.policy.directory
    }

    /// Whether `peer` may do `verb` with the profile called `profile`. A name that no profile has is denied like a
    /// profile that the peer may not use; only [`Self::may_use_every`] tells whether it may learn the difference.
    pub fn decide(&self, profile: &str, peer: &Peer, verb: Verb) -> Decision {
        match self.profiles.get(profile) {
            Some(rules) => decide(&self.policy, rules, peer, verb),
            None => Decision::Deny,
        }
    }

    /// The profiles that `peer` may use, by name.
    pub fn usable<'a>(&'a self, peer: &'a Peer) -> impl Iterator<Item = &'a ProfileName> {
        self.profiles
            .iter()
            .filter(|(_, rules)| decide(&self.policy, rules, peer, Verb::List).is_allow())
            .map(|(name, _)| name)
    }

    /// Whether `peer` may use every profile there is, and so may be told that some name is none. An agent without any
    /// profile answers as if it had one without `allow`: "all of nothing" would tell everybody.
    pub fn may_use_every(&self, peer: &Peer) -> bool {
        let may = |rules: &Rules| decide(&self.policy, rules, peer, Verb::List).is_allow();
        if self.profiles.is_empty() { may(&Rules::OwnerOnly) } else { self.profiles.values().all(may) }
    }

    /// Whether `peer` may use AdminService.
    pub fn admin(&self, peer: &Peer) -> Decision {
        decide(&self.policy, &Rules::OwnerOnly, peer, Verb::Admin)
    }
}

#[cfg(test)]
mod tests;
