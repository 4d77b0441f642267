//! Who got what, and who did not: the events of the audit.
//!
//! - The fields are a closed set: `uid`, `pid`, `unit`, `rule`, `profile`, `generation`, `decision`, `verb`, `count`. There
//!   is none for a token, a secret, a hash of one, a body, or a name that a caller made up (that is `unknown`).
//! - A grant is told once per uid, unit, profile and generation; a denial at once, then once a minute with the count.
//!   Each admin call and each rejected-report is told.
//! - Memory is bounded ([`MAX_GRANTS`], [`MAX_DENIALS`]): beyond it an event is told twice rather than never.
//! - No timer: counts are told when the next event comes by, or when somebody keeps the appointment of
//!   [`Audit::next_due`], which exists only after denials; [`Audit::flush`] tells the rest at the end.

mod tally;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::{
    access::{Peer, UnitName, Verb},
    clock::{Clock, Timestamp},
    log::AUDIT_TARGET,
    token::{Generation, ProfileName},
};
use tally::{Denials, Denied};

pub use tally::MAX_DENIALS;

/// How many (uid, unit, profile) are remembered as told. When it is reached all are forgotten, and told once more.
pub const MAX_GRANTS: usize = 16 * 1024;

/// The calls of AdminService.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminCall {
    /// RefreshToken.
    RefreshToken,
    /// Reload.
    Reload,
    /// GetStatus.
    GetStatus,
    /// GetMetrics.
    GetMetrics,
}

impl AdminCall {
    const fn word(self) -> &'static str {
        match self {
            Self::RefreshToken => "refresh-token",
            Self::Reload => "reload",
            Self::GetStatus => "get-status",
            Self::GetMetrics => "get-metrics",
        }
    }
}

/// The word of a verb in the audit and in the metrics.
pub(crate) const fn verb_word(verb: Verb) -> &'static str {
    match verb {
        Verb::Get => "get",
        Verb::Watch => "watch",
        Verb::List => "list",
        Verb::Report => "report",
        Verb::Health => "health",
        Verb::Admin => "admin",
    }
}

/// What one connection remembers of one profile: the generation whose grant has been told. With it the second grant
/// costs one comparison.
#[derive(Debug, Default)]
pub struct Told(AtomicU64);

/// The audit of one agent.
pub struct Audit {
    clock: Arc<dyn Clock>,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    grants: HashMap<(u32, ProfileName), Granted>,
    /// Units in all of `grants`.
    remembered: usize,
    denials: Denials,
}

/// Who of one uid has been told to have this generation. An older one is forgotten.
struct Granted {
    generation: Generation,
    units: HashSet<Option<UnitName>>,
}

/// One event, with every field that an event can have.
struct Event<'a> {
    decision: &'static str,
    verb: &'static str,
    profile: Option<&'a str>,
    generation: Option<u64>,
    uid: u32,
    pid: i32,
    unit: Option<&'a str>,
    rule: Option<&'a str>,
    count: Option<u64>,
}

impl Audit {
    /// An audit that has told nothing yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, books: Mutex::default() }
    }

    /// A token of `generation` goes to `peer`, admitted by `rule`. `told` belongs to this connection and profile.
    pub fn granted(
        &self,
        told: &Told,
        peer: &Peer,
        verb: Verb,
        profile: &ProfileName,
        generation: Generation,
        rule: &str,
    ) {
        if told.0.swap(generation.as_u64(), Relaxed) == generation.as_u64() {
            return;
        }
        let (first, due) = {
            let mut books = self.lock();
            (books.grant(peer, profile, generation), self.due(&mut books))
        };
        if first {
            tell(&Event {
                profile: Some(profile.as_str()),
                generation: Some(generation.as_u64()),
                rule: Some(rule),
                ..Event::of(peer, "granted", verb_word(verb))
            });
        }
        due.iter().for_each(Denied::tell);
    }

    /// `peer` is refused. `profile` is `None` for a name that no profile has: whatever a caller makes up is one key.
    pub fn denied(&self, peer: &Peer, verb: Verb, profile: Option<&ProfileName>) {
        let due = self.lock().denials.deny(peer, verb, profile, self.now());
        due.iter().for_each(Denied::tell);
    }

    /// An admin's call that was let through by `rule`, on a profile if it is about one.
    pub fn admin(&self, peer: &Peer, call: AdminCall, profile: Option<&ProfileName>, rule: &str) {
        tell(&Event {
            profile: profile.map(ProfileName::as_str),
            rule: Some(rule),
            ..Event::of(peer, "granted", call.word())
        });
        self.tell_due();
    }

    /// `peer`, admitted by `rule`, says that the API answered 401 to a token of `generation`: whichever it names.
    pub fn reported(&self, peer: &Peer, profile: &ProfileName, generation: Generation, rule: &str) {
        tell(&Event {
            profile: Some(profile.as_str()),
            generation: Some(generation.as_u64()),
            rule: Some(rule),
            ..Event::of(peer, "granted", "report-rejected")
        });
        self.tell_due();
    }

    /// When counted denials should be told; `None` while there are none, which is nearly always.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.lock().denials.next_due()
    }

    /// Tells the counts whose minute is over.
    pub fn tell_due(&self) {
        let due = self.due(&mut self.lock());
        due.iter().for_each(Denied::tell);
    }

    /// Tells every count, at the end.
    pub fn flush(&self) {
        let all = self.lock().denials.all(self.now());
        all.iter().for_each(Denied::tell);
    }

    fn due(&self, books: &mut Books) -> Vec<Denied> {
        if books.denials.is_empty() { Vec::new() } else { books.denials.due(self.now()) }
    }

    fn now(&self) -> Timestamp {
        self.clock.now().boot
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// Whether this is the first of its kind.
    fn grant(&mut self, peer: &Peer, profile: &ProfileName, generation: Generation) -> bool {
        let key = (peer.uid, profile.clone());
        if let Some(granted) = self.grants.get_mut(&key) {
            if granted.generation != generation {
                self.remembered -= granted.units.len();
                granted.units.clear();
                granted.generation = generation;
            } else if granted.units.contains(&peer.unit) {
                return false;
            }
        }
        if self.remembered >= MAX_GRANTS {
            self.grants.clear();
            self.remembered = 0;
        }
        let granted = self.grants.entry(key).or_insert_with(|| Granted { generation, units: HashSet::new() });
        self.remembered += 1;
        granted.units.insert(peer.unit.clone())
    }
}

impl<'a> Event<'a> {
    fn of(peer: &'a Peer, decision: &'static str, verb: &'static str) -> Self {
        Self {
            decision,
            verb,
            profile: None,
            generation: None,
            uid: peer.uid,
            pid: peer.pid,
            unit: peer.unit.as_ref().map(UnitName::as_str),
            rule: None,
            count: None,
        }
    }
}

/// The one place where the audit speaks: this list of fields is the whole of it.
fn tell(event: &Event<'_>) {
    let Event { decision, verb, profile, generation, uid, pid, unit, rule, count } = *event;
    tracing::info!(target: AUDIT_TARGET, decision, verb, profile, generation, uid, pid, unit, rule, count, "audit");
}

#[cfg(test)]
mod tests;
