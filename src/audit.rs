//! Who got what, and who did not: the events of the audit.
//!
//! - The fields are a closed set: `uid`, `pid`, `unit`, `rule`, `profile`, `generation`, `decision`, `verb`, `count`. There
//!   is none for a token, a secret, a hash of one, a body, or a name that a caller made up (that is `unknown`).
//! - A grant is told once per uid, unit, profile and generation. A denial, and a report of a rejected token, are told at
//!   once, then once a minute with the count: no caller can drown the audit by what it may repeat at will. Each admin
//!   call is told.
//! - Memory is bounded ([`MAX_GRANTS`], [`MAX_KINDS`]): beyond it an event is told twice, or under another's name with
//!   the count, rather than never.
//! - No timer: counts are told when the next event comes by, or when somebody keeps the appointment of
//!   [`Audit::next_due`], which exists only after something was counted; [`Audit::flush`] tells the rest at the end.

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
use tally::{Counted, Deed, Kind, Last, Tally};

pub use tally::MAX_KINDS;

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
        Verb::Credential => "credential",
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
    denials: Tally,
    reports: Tally,
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
            (books.grant(peer, profile, generation), books.due(self.now()))
        };
        if first {
            tell(&Event {
                profile: Some(profile.as_str()),
                generation: Some(generation.as_u64()),
                rule: Some(rule),
                ..Event::of(peer, "granted", verb_word(verb))
            });
        }
        due.iter().for_each(Counted::tell);
    }

    /// `peer` is refused. `profile` is `None` for a name that no profile has: whatever a caller makes up is one key.
    pub fn denied(&self, peer: &Peer, verb: Verb, profile: Option<&ProfileName>) {
        let kind = Kind::of(peer, Deed::Denied(verb), profile);
        let last = Last { pid: peer.pid, generation: None, rule: None };
        let due = self.lock().count(kind, last, self.now());
        due.iter().for_each(Counted::tell);
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

    /// `peer`, admitted by `rule`, says that the API answered 401 to a token of `generation`: whichever it names, so that
    /// reports of many generations are counted as one kind, and the last is told.
    pub fn reported(&self, peer: &Peer, profile: &ProfileName, generation: Generation, rule: &str) {
        let kind = Kind::of(peer, Deed::Reported, Some(profile));
        let last = Last { pid: peer.pid, generation: Some(generation), rule: Some(rule.into()) };
        let due = self.lock().count(kind, last, self.now());
        due.iter().for_each(Counted::tell);
    }

    /// When counted denials or reports should be told; `None` while there are none, which is nearly always.
    pub fn next_due(&self) -> Option<Timestamp> {
        let books = self.lock();
        books.denials.next_due().into_iter().chain(books.reports.next_due()).min()
    }

    /// Tells the counts whose minute is over.
    pub fn tell_due(&self) {
        let due = self.lock().due(self.now());
        due.iter().for_each(Counted::tell);
    }

    /// Tells every count, at the end.
    pub fn flush(&self) {
        let now = self.now();
        let all = {
            let mut books = self.lock();
            let mut all = books.denials.all(now);
            all.extend(books.reports.all(now));
            all
        };
        all.iter().for_each(Counted::tell);
    }

    fn now(&self) -> Timestamp {
        self.clock.now().boot
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// Counts one, and returns what is to be told now.
    fn count(&mut self, kind: Kind, last: Last, now: Timestamp) -> Vec<Counted> {
        let tally = match kind.deed {
            Deed::Denied(_) => &mut self.denials,
            Deed::Reported => &mut self.reports,
        };
        // Before the others' turn, so that a count that waited goes out together with this one.
        let own = tally.count(kind, last, now);
        let mut due = self.due(now);
        due.extend(own);
        due
    }

    /// The counts whose minute is over.
    fn due(&mut self, now: Timestamp) -> Vec<Counted> {
        let mut due = self.denials.due(now);
        due.extend(self.reports.due(now));
        due
    }

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
