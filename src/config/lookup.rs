//! What a config means on this host: its names, once they are looked up.
//!
//! Pure: it is given what [`crate::names`] found. The same findings are a refusal or a warning of the daemon, and faults
//! of `check`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Config, Draft, Problem, Written};
use crate::access::{
    AccessRules, Directory, Lookup, Name, OVERFLOW_UID, Policy, ROOT_UID, RootAccess, Rules, Selector, Term,
};

/// What a name is that nobody has, or that could not be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownNames {
    /// It matches nobody until somebody has it: for an agent that serves all others meanwhile.
    AreWarnings,
    /// It is a mistake: for `check`.
    AreFaults,
}

impl Config {
    /// Every name that has to be looked up.
    pub fn names(&self) -> BTreeSet<Name> {
        self.selectors().flat_map(|selector| selector.names().cloned()).collect()
    }

    /// What the rules of this config mean for an agent that runs as `own_uid`.
    pub fn access_rules(&self, own_uid: u32, directory: Directory) -> AccessRules {
        let policy = Policy {
            root: self.agent.root,
            own_uid,
            admin: self.agent.admin.clone(),
            directory: Arc::new(directory),
            unit_slices: self.agent.unit_slices.clone(),
        };
        let profiles: BTreeMap<_, _> =
            self.tokens.iter().map(|(name, profile)| (name.clone(), profile.rules.clone())).collect();
        AccessRules::new(policy, profiles)
    }

    fn selectors(&self) -> impl Iterator<Item = &Selector> {
        self.agent.admin.iter().chain(self.tokens.values().flat_map(|profile| profile.rules.selectors()))
    }
}

impl Draft {
    /// Every name that has to be looked up to judge it, of profiles with faults too.
    pub fn names(&self) -> BTreeSet<Name> {
        self.selectors().iter().flat_map(|written| written.value.names().cloned()).collect()
    }

    /// Judges the rules by what was found for their names, for an agent that runs as `own_uid`. A name whose id is one of
    /// systemd's dynamic ones is always a fault.
    pub fn judge_names(&mut self, lookup: &Lookup, own_uid: u32, unknown: UnknownNames) {
        let mut faults = Vec::new();
        let mut unknown_names = Vec::new();
        let mut warnings = Vec::new();
        for written in self.selectors() {
            for name in written.value.names() {
                if lookup.dynamic.contains(name) {
                    let wrong = "names somebody who has one of systemd's dynamic ids (61184 to 65519), which are handed on to others";
                    faults.push(written.problem(wrong, "use unit:NAME.service"));
                } else if let Some(reason) = lookup.failed.get(name) {
                    let wrong = format!(
                        "names {} that could not be looked up ({reason}), so it matches nobody",
                        kind(name)
                    );
                    unknown_names.push(written.problem(wrong, "see why `getent` fails on this host"));
                } else if lookup.directory.id(name).is_none() {
                    let wrong =
                        format!("names {} that this host does not know, so it matches nobody", kind(name));
                    unknown_names.push(written.problem(wrong, "correct the name, or create it"));
                }
            }
            if written.value.terms().iter().any(|term| is_overflow(term, &lookup.directory)) {
                let wrong = "names uid 65534, which no rule admits";
                warnings.push(written.problem(wrong, "run the caller as a user of its own"));
            }
        }
        warnings.extend(self.unserved(own_uid));
        match unknown {
            UnknownNames::AreFaults => faults.extend(unknown_names),
            UnknownNames::AreWarnings => warnings.extend(unknown_names),
        }
        faults.into_iter().for_each(|fault| self.fault(fault));
        warnings.into_iter().for_each(|warning| self.warn(warning));
    }

    /// Warns of every rule that asks for a unit, on a host where no unit can be found out, because of `why`.
    pub fn without_units(&mut self, why: &'static str) {
        let asks = self.selectors().iter().filter(|written| written.value.names_a_unit());
        let problem = |written: &Written<Selector>| {
            let wrong = format!("asks for a unit, and {why}, so it matches nobody");
            written
                .problem(wrong, "run the agent where systemd runs its callers, or admit by user: or group:")
        };
        asks.map(problem).collect::<Vec<_>>().into_iter().for_each(|warning| self.warn(warning));
    }

    /// Profiles that an agent of root serves to nobody, since root itself goes by rule.
    fn unserved(&self, own_uid: u32) -> Vec<Problem> {
        let by_rule = own_uid == ROOT_UID
            && self.agent_key("root").is_some_and(|agent| agent.root == RootAccess::ByRule);
        let unserved =
            self.profiles().iter().filter(|(_, profile)| by_rule && profile.rules == Rules::OwnerOnly);
        unserved
            .map(|(name, _)| {
                let wrong =
                    "serves nobody: the agent runs as root, and root = \"by-rule\" admits root by rules only";
                self.problem(&format!("tokens.{name}"), wrong, "write allow = [\"user:NAME\"]")
            })
            .collect()
    }
}

fn kind(name: &Name) -> &'static str {
    match name {
        Name::User(_) => "a user",
        Name::Group(_) => "a group",
    }
}

fn is_overflow(term: &Term, directory: &Directory) -> bool {
    match term {
        Term::Uid(uid) => *uid == OVERFLOW_UID,
        Term::User(name) => directory.id(name) == Some(OVERFLOW_UID),
        Term::Group(_) | Term::Gid(_) | Term::Unit(_) => false,
    }
}
