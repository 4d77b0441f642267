//! May this caller do this? One decision per connection and version of the config.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::timeout;

use super::{
    Agent, Caller,
    snapshot::{Profile, Snapshot},
    status::Refusal,
};
use crate::{
    access::{Decision, Peer, Rule, Verb},
    audit::{AdminCall, Told},
    reply,
    server::Connection,
    token::{ProfileName, Token},
    units::Answer,
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

/// The decision, by what is known of the peer. An empty name means the one profile that the peer may use.
pub(super) fn judge(
    snapshot: &Snapshot,
    connection: &Connection,
    verb: Verb,
    name: &str,
) -> Result<Admitted, Refusal> {
    let peer = connection.peer_in(snapshot.access.unit_slices());
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
    /// Finds out the peer's unit if the decision by this version hinges on it: nobody waits for the service manager who
    /// is admitted without it, or who would not be admitted by any unit.
    pub(super) async fn settle_unit(
        &self,
        snapshot: &Snapshot,
        connection: &Connection,
        verb: Verb,
        name: &str,
        patience: Duration,
    ) -> Result<(), Refusal> {
        let peer = connection.peer();
        if connection.is_placed() || !snapshot.access.hinges_on_unit(name, peer, verb) {
            return Ok(());
        }
        let asked = connection.place(|origin| async move {
            match self.units.unit_of(peer.uid, &origin).await {
                Answer::In(placement) => Ok(Some(placement)),
                Answer::None => Ok(None),
                Answer::Unknown => Err(Refusal::UnitUnknown),
            }
        });
        // Rare and large: every watch would carry it about.
        Box::pin(timeout(patience, asked)).await.unwrap_or(Err(Refusal::UnitUnknown))
    }

    /// The decision by the version in force, with the peer's unit if it hinges on that.
    pub(super) async fn decide(&self, caller: &Caller, verb: Verb, name: &str) -> Result<Admitted, Refusal> {
        let connection = &caller.connection;
        loop {
            let snapshot = self.snapshot();
            self.settle_unit(&snapshot, connection, verb, name, caller.patience).await?;
            // The wait may have been long enough for another version, of other rules.
            let now = self.snapshot();
            if connection.is_placed() || now.version == snapshot.version {
                return judge(&now, connection, verb, name);
            }
        }
    }

    /// Decides, and audits a denial. Before a caller is turned away the names in the rules are looked up again: the user
    /// may have been made after the agent started.
    pub(super) async fn admit(&self, caller: &Caller, verb: Verb, name: &str) -> Result<Admitted, Refusal> {
        let mut judged = self.decide(caller, verb, name).await;
        if matches!(judged, Err(Refusal::NotAllowed { .. })) {
            self.control.look_names_up(caller.patience).await;
            judged = self.decide(caller, verb, name).await;
        }
        if matches!(judged, Err(Refusal::NotAllowed { .. })) {
            self.note_denial(&caller.connection, verb, name);
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
        let connection = &caller.connection;
        let decide = async || {
            self.settle_unit(&self.snapshot(), connection, Verb::Admin, "", caller.patience).await?;
            let snapshot = self.snapshot();
            Ok(snapshot.access.admin(connection.peer_in(snapshot.access.unit_slices())))
        };
        let mut decision = decide().await?;
        if decision == Decision::Deny {
            self.control.look_names_up(caller.patience).await;
            decision = decide().await?;
        }
        match decision {
            Decision::Allow(rule) => {
                let snapshot = self.snapshot();
                let peer = connection.peer_in(snapshot.access.unit_slices());
                self.audit.admin(peer, call, profile, rule.as_str());
                Ok(())
            }
            Decision::Deny => {
                self.note_denial(connection, Verb::Admin, profile.map_or("", ProfileName::as_str));
                Err(Refusal::NotAdmin { uid: connection.peer().uid })
            }
        }
    }

    /// Counts and audits a denial of `peer`. A `name` that no profile has is not told.
    pub(crate) fn note_denial_of(&self, peer: &Peer, verb: Verb, name: &str) {
        let snapshot = self.snapshot();
        let known = snapshot.profiles.get_key_value(name).map(|(name, _)| name);
        self.metrics.denied(verb);
        self.audit.denied(peer, verb, known);
        self.control.denial_noted();
    }

    pub(super) fn note_denial(&self, connection: &Connection, verb: Verb, name: &str) {
        self.note_denial_of(connection.peer_in(self.snapshot().access.unit_slices()), verb, name);
    }
}

/// What a connection remembers, so that the second call costs as little as it can.
#[derive(Default)]
struct Memory(Mutex<Remembered>);

/// In the order of the names. Mostly there is one, and a table would be larger than all that it holds.
#[derive(Default)]
struct Remembered {
    /// Which grants have been audited.
    told: Vec<(ProfileName, Arc<Told>)>,
    /// The version of the config that `admitted` is true for.
    version: u64,
    /// Who asked for this name was admitted to GetToken. No more names than the caller may use, and the empty one.
    admitted: Vec<(Box<str>, Arc<Standing>)>,
}

/// The caller may have this profile's token.
struct Standing {
    name: ProfileName,
    rule: Rule,
    told: Arc<Told>,
}

impl Memory {
    fn of(connection: &Connection) -> Arc<Self> {
        connection.kept().unwrap_or_else(|| {
            let memory = Arc::new(Self::default());
            // Two first calls at a time may both make one; the loser's grants are told once more.
            connection.keep(Arc::clone(&memory));
            memory
        })
    }

    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    /// Where the standing of who asked for that name is, or belongs.
    fn standing(&self, asked: &str) -> Result<usize, usize> {
        self.admitted.binary_search_by(|(name, _)| (**name).cmp(asked))
    }

    fn told(&mut self, name: &ProfileName) -> Arc<Told> {
        let told = match self.told.binary_search_by(|(other, _)| other.cmp(name)) {
            Ok(at) => &self.told[at].1,
            Err(at) => {
                self.told.reserve_exact(1);
                self.told.insert(at, (name.clone(), Arc::default()));
                &self.told[at].1
            }
        };
        Arc::clone(told)
    }
}

impl Agent {
    /// Audits that `token` goes to `connection`.
    pub(super) fn granted(&self, connection: &Connection, admitted: &Admitted, verb: Verb, token: &Token) {
        self.grant(&self.told(connection, &token.name), connection, verb, token, &admitted.rule);
    }

    /// Which of the profile's grants to `connection` have been audited.
    pub(super) fn told(&self, connection: &Connection, name: &ProfileName) -> Arc<Told> {
        Memory::of(connection).lock().told(name)
    }

    /// The same as [`Self::granted`], for whoever remembers what has been audited.
    pub(super) fn grant(&self, told: &Told, connection: &Connection, verb: Verb, token: &Token, rule: &Rule) {
        let config = self.config.borrow();
        let peer = connection.peer_in(config.access.unit_slices());
        self.audit.granted(told, peer, verb, &token.name, token.generation, rule.as_str());
    }

    /// Whoever asks for `asked` on this connection is admitted to GetToken, for as long as the config is of that version.
    pub(super) fn remember(&self, connection: &Connection, asked: &str, admitted: &Admitted) {
        let memory = Memory::of(connection);
        let mut memory = memory.lock();
        if memory.version != admitted.version {
            memory.version = admitted.version;
            memory.admitted.clear();
        }
        let name = admitted.profile.name.clone();
        let told = memory.told(&name);
        let standing = Arc::new(Standing { name, rule: admitted.rule.clone(), told });
        match memory.standing(asked) {
            Ok(at) => memory.admitted[at].1 = standing,
            Err(at) => {
                memory.admitted.reserve_exact(1);
                memory.admitted.insert(at, (asked.into(), standing));
            }
        }
    }

    /// The answer to a caller that was admitted by the version in force, if there is a token. Whoever is not, and whatever
    /// takes longer, is for [`super::token`] to answer.
    pub(super) fn at_once(&self, connection: &Connection, asked: &str) -> Option<Bytes> {
        let memory = connection.kept::<Memory>()?;
        // No other version comes into force while this is held.
        let config = self.config.borrow();
        let standing = {
            let memory = memory.lock();
            if memory.version != config.version {
                return None;
            }
            Arc::clone(&memory.admitted[memory.standing(asked).ok()?].1)
        };
        let profile = config.profiles.get(standing.name.as_str())?;
        let token = profile.reader.current(profile.identity, self.clock.now().boot)?;
        let peer = connection.peer_in(config.access.unit_slices());
        let rule = standing.rule.as_str();
        self.audit.granted(&standing.told, peer, Verb::Get, &token.name, token.generation, rule);
        Some(reply::of(&token))
    }
}
