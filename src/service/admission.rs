//! May this caller do this? One decision per connection and version of the config.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    Agent, Caller,
    snapshot::{Profile, Snapshot},
    status::Refusal,
};
use crate::{
    access::{Decision, Peer, Rule, Verb},
    audit::{AdminCall, Told},
    server::Connection,
    token::{ProfileName, Token},
};

/// A caller who was admitted to a profile.
#[derive(Clone, Debug)]
pub(super) struct Admitted {
    /// By this version of the config.
    pub(super) version: u64,
    /// To this profile.
    pub(super) profile: Arc<Profile>,
    /// By this rule.
    pub(super) rule: Rule,
}

/// The decision, pure. An empty name means the one profile that the peer may use.
pub(super) fn judge(snapshot: &Snapshot, peer: &Peer, verb: Verb, name: &str) -> Result<Admitted, Refusal> {
    let admitted = |profile: &Arc<Profile>| match snapshot.access.decide(profile.name.as_str(), peer, verb) {
        Decision::Allow(rule) => {
            Some(Admitted { version: snapshot.version, profile: Arc::clone(profile), rule })
        }
        Decision::Deny => None,
    };
    let denied = Refusal::NotAllowed { uid: peer.uid };
    if !name.is_empty() {
        return match snapshot.profiles.get(name) {
            Some(profile) => admitted(profile).ok_or(denied),
            // Who may use every profile learns nothing from NOT_FOUND.
            None if snapshot.access.may_use_every(peer) => {
                Err(Refusal::UnknownProfile(snapshot.profiles.keys().cloned().collect()))
            }
            None => Err(denied),
        };
    }
    let mut usable = snapshot.profiles.values().filter_map(admitted);
    let first = usable.next().ok_or(denied)?;
    let mut others = usable.map(|other| other.profile.name.clone()).peekable();
    if others.peek().is_none() {
        return Ok(first);
    }
    Err(Refusal::NameRequired(std::iter::once(first.profile.name.clone()).chain(others).collect()))
}

impl Agent {
    /// Decides, and audits a denial. Before a caller is turned away the names in the rules are looked up again: the user
    /// may have been made after the agent started.
    pub(super) async fn admit(&self, caller: &Caller, verb: Verb, name: &str) -> Result<Admitted, Refusal> {
        let peer = caller.connection.peer();
        let mut judged = judge(&self.snapshot(), peer, verb, name);
        if matches!(judged, Err(Refusal::NotAllowed { .. })) {
            self.control.look_names_up(caller.patience).await;
            judged = judge(&self.snapshot(), peer, verb, name);
        }
        if matches!(judged, Err(Refusal::NotAllowed { .. })) {
            self.note_denial(peer, verb, name);
        }
        judged
    }

    /// The same for AdminService.
    pub(super) async fn admit_admin(
        &self,
        caller: &Caller,
        call: AdminCall,
        profile: Option<&ProfileName>,
    ) -> Result<(), Refusal> {
        let peer = caller.connection.peer();
        let mut decision = self.snapshot().access.admin(peer);
        if decision == Decision::Deny {
            self.control.look_names_up(caller.patience).await;
            decision = self.snapshot().access.admin(peer);
        }
        match decision {
            Decision::Allow(rule) => {
                self.audit.admin(peer, call, profile, rule.as_str());
                Ok(())
            }
            Decision::Deny => {
                self.note_denial(peer, Verb::Admin, profile.map_or("", ProfileName::as_str));
                Err(Refusal::NotAdmin { uid: peer.uid })
            }
        }
    }

    /// Counts and audits a denial. A `name` that no profile has is not told.
    pub(crate) fn note_denial(&self, peer: &Peer, verb: Verb, name: &str) {
        let snapshot = self.snapshot();
        let known = snapshot.profiles.get_key_value(name).map(|(name, _)| name);
        self.metrics.denied(verb);
        self.audit.denied(peer, verb, known);
        self.control.denial_noted();
    }
}

/// What a connection remembers: which grants on it have been audited, so that the second costs one comparison.
#[derive(Default)]
struct Memory {
    told: Mutex<HashMap<ProfileName, Arc<Told>>>,
}

impl Agent {
    /// Audits that `token` goes to `connection`.
    pub(super) fn granted(&self, connection: &Connection, admitted: &Admitted, verb: Verb, token: &Token) {
        let memory = connection.kept::<Memory>().unwrap_or_else(|| {
            let memory = Arc::new(Memory::default());
            // Two first calls at a time may both make one; the loser's grants are told once more.
            connection.keep(Arc::clone(&memory));
            memory
        });
        let told = {
            let mut told = memory.told.lock().unwrap_or_else(PoisonError::into_inner);
            match told.get(&token.name) {
                Some(told) => Arc::clone(told),
                None => Arc::clone(told.entry(token.name.clone()).or_default()),
            }
        };
        let rule = admitted.rule.as_str();
        self.audit.granted(&told, connection.peer(), verb, &token.name, token.generation, rule);
    }
}
