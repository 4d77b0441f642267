//! May this caller do this? One decision per connection and version of the config.

use std::sync::Arc;

use super::{
    Agent, Caller,
    snapshot::{Profile, Snapshot},
    status::Refusal,
};
use crate::access::{self, Decision, Peer, Verb};

/// A caller who was admitted to a profile.
#[derive(Clone, Debug)]
pub(super) struct Admitted {
    /// By this version of the config.
    pub(super) version: u64,
    /// To this profile.
    pub(super) profile: Arc<Profile>,
    /// By this rule.
    pub(super) rule: Box<str>,
}

/// The decision, pure. An empty name means the one profile that the peer may use.
pub(super) fn judge(snapshot: &Snapshot, peer: &Peer, verb: Verb, name: &str) -> Result<Admitted, Refusal> {
    let admitted = |profile: &Arc<Profile>| match access::decide(&snapshot.policy, &profile.rules, peer, verb) {
        Decision::Allow(rule) => {
            Some(Admitted { version: snapshot.version, profile: Arc::clone(profile), rule })
        }
        Decision::Deny => None,
    };
    let denied = Refusal::NotAllowed { uid: peer.uid };
    if !name.is_empty() {
        return match snapshot.profiles.get(name) {
            Some(profile) => admitted(profile).ok_or(denied),
            // Who may use every profile learns nothing from NOT_FOUND. Where there is no profile, that is an admin.
            None if snapshot.profiles.is_empty() && !access::is_admin(&snapshot.policy, peer) => Err(denied),
            None if snapshot.profiles.values().all(|profile| admitted(profile).is_some()) => {
                Err(Refusal::UnknownProfile)
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
        let peer = &caller.connection.peer;
        let mut judged = judge(&self.snapshot(), peer, verb, name);
        if matches!(judged, Err(Refusal::NotAllowed { .. })) {
            self.control.look_names_up().await;
            judged = judge(&self.snapshot(), peer, verb, name);
        }
        if matches!(judged, Err(Refusal::NotAllowed { .. })) {
            self.note_denial(peer, verb, name);
        }
        judged
    }

    /// The same for AdminService.
    pub(super) async fn admit_admin(&self, caller: &Caller, call: &'static str) -> Result<(), Refusal> {
        let peer = &caller.connection.peer;
        if !access::is_admin(&self.snapshot().policy, peer) {
            self.control.look_names_up().await;
            if !access::is_admin(&self.snapshot().policy, peer) {
                self.note_denial(peer, Verb::Admin, "");
                return Err(Refusal::NotAdmin { uid: peer.uid });
            }
        }
        self.audit.admin(peer, call);
        Ok(())
    }

    fn note_denial(&self, peer: &Peer, verb: Verb, name: &str) {
        let snapshot = self.snapshot();
        let known = snapshot.profiles.get_key_value(name).map(|(name, _)| name);
        self.metrics.denied(verb);
        self.audit.denied(peer, known, verb);
    }
}
