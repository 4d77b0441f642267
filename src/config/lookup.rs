//! What a config means on this host: its names, once they are looked up.
//!
//! Pure: it is given what [`crate::names`] found. The same findings are a refusal or a warning of the daemon, and faults
//! of `check`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Config, Problem};
use crate::access::{
    AccessRules, Directory, Lookup, Name, OVERFLOW_UID, Policy, ROOT_UID, RootAccess, Rules, Selector, Term,
};

/// What looking up the names of a config has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameFindings {
    /// Names whose id is one of systemd's dynamic ones: the config cannot be used.
    pub faults: Vec<Problem>,
    /// Names that nobody has, or that could not be looked up: they match nobody. A fault of `check`.
    pub unknown: Vec<Problem>,
    /// Rules that can never admit anybody, for another reason.
    pub warnings: Vec<Problem>,
}

impl Config {
    /// Every name that has to be looked up.
    pub fn names(&self) -> BTreeSet<Name> {
        self.selectors().flat_map(|(_, selector)| selector.names().cloned().collect::<Vec<_>>()).collect()
    }

    /// What the rules of this config mean for an agent that runs as `own_uid`.
    pub fn access_rules(&self, own_uid: u32, directory: Directory) -> AccessRules {
        let policy = Policy {
            root: self.agent.root,
            own_uid,
            admin: self.agent.admin.clone(),
            directory: Arc::new(directory),
        };
        let profiles: BTreeMap<_, _> =
            self.tokens.iter().map(|(name, profile)| (name.clone(), profile.rules.clone())).collect();
        AccessRules::new(policy, profiles)
    }

    /// Judges the rules of this config by what was found for their names, for an agent that runs as `own_uid`.
    pub fn check_names(&self, lookup: &Lookup, own_uid: u32) -> NameFindings {
        let mut findings = NameFindings::default();
        for (path, selector) in self.selectors() {
            for name in selector.names() {
                if lookup.dynamic.contains(name) {
                    let wrong = "names somebody who has one of systemd's dynamic ids (61184 to 65519), which are handed on to others";
                    findings.faults.push(self.problem(&path, wrong, "use unit:NAME.service"));
                } else if let Some(reason) = lookup.failed.get(name) {
                    let wrong = format!(
                        "names {} that could not be looked up ({reason}), so it matches nobody",
                        kind(name)
                    );
                    findings.unknown.push(self.problem(&path, wrong, "see why `getent` fails on this host"));
                } else if lookup.directory.id(name).is_none() {
                    let wrong =
                        format!("names {} that this host does not know, so it matches nobody", kind(name));
                    findings.unknown.push(self.problem(&path, wrong, "correct the name, or create it"));
                }
            }
            if selector.terms().iter().any(|term| is_overflow(term, &lookup.directory)) {
                let wrong = "names uid 65534, which no rule admits";
                findings.warnings.push(self.problem(&path, wrong, "run the caller as a user of its own"));
            }
        }
        findings.warnings.extend(self.unserved(own_uid));
        findings
    }

    /// Profiles that an agent of root serves to nobody, since root itself goes by rule.
    fn unserved(&self, own_uid: u32) -> impl Iterator<Item = Problem> {
        let by_rule = own_uid == ROOT_UID && self.agent.root == RootAccess::ByRule;
        self.tokens.iter().filter(move |(_, profile)| by_rule && profile.rules == Rules::OwnerOnly).map(
            |(name, _)| {
                let wrong =
                    "serves nobody: the agent runs as root, and root = \"by-rule\" admits root by rules only";
                self.problem(&format!("tokens.{name}"), wrong, "write allow = [\"user:NAME\"]")
            },
        )
    }

    /// Every selector, with its path.
    fn selectors(&self) -> impl Iterator<Item = (String, &Selector)> {
        let admin =
            self.agent.admin.iter().enumerate().map(|(at, line)| (format!("agent.admin[{at}]"), line));
        let allow = self.tokens.iter().flat_map(|(name, profile)| {
            let lines = profile.rules.selectors().iter().enumerate();
            lines.map(move |(at, line)| (format!("tokens.{name}.allow[{at}]"), line))
        });
        admin.chain(allow)
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
