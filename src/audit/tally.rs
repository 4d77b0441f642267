//! What a caller can make happen as often as it likes, counted: the first of a kind is told at once, those of the
//! following minute together.
//!
//! Pure bookkeeping, time is an argument. A kind whose last minute was quiet is forgotten: its next event is told at once
//! in either case.

use std::{collections::HashMap, time::Duration};

use super::{Event, tell, verb_word};
use crate::{
    access::{Peer, UnitName, Verb},
    clock::Timestamp,
    token::{Generation, ProfileName},
};

/// How many kinds of denial are told apart, and as many of reports; the others are one kind together, told under the uid
/// that was last seen.
pub const MAX_KINDS: usize = 4096;

/// How long events of one kind are counted before they are told.
const PERIOD: Duration = Duration::from_secs(60);

/// What is counted. The tallies are one for each, so that no flood of the one hides the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Deed {
    /// A call that was refused.
    Denied(Verb),
    /// A report, let through, that the API rejects a token.
    Reported,
}

/// What makes two events the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub(super) deed: Deed,
    uid: u32,
    unit: Option<UnitName>,
    /// None: no profile has that name.
    profile: Option<ProfileName>,
}

impl Kind {
    pub(super) fn of(peer: &Peer, deed: Deed, profile: Option<&ProfileName>) -> Self {
        Self { deed, uid: peer.uid, unit: peer.unit.clone(), profile: profile.cloned() }
    }
}

/// What is told of the last one only.
#[derive(Clone, Debug)]
pub(super) struct Last {
    pub(super) pid: i32,
    pub(super) generation: Option<Generation>,
    pub(super) rule: Option<Box<str>>,
}

#[derive(Debug)]
struct Count {
    told: Timestamp,
    /// Since then.
    more: u64,
    last: Last,
}

/// An event that is ready to be told, without a lock.
pub(super) struct Counted {
    kind: Kind,
    last: Last,
    count: u64,
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    kinds: HashMap<Kind, Count>,
    /// All that found no room in `kinds`, with the last one's kind.
    rest: Option<(Kind, Count)>,
    looked: Timestamp,
}

impl Tally {
    /// Counts one, and returns what is to be told of its kind now.
    pub(super) fn count(&mut self, kind: Kind, last: Last, now: Timestamp) -> Option<Counted> {
        if let Some(count) = self.kinds.get_mut(&kind) {
            return count.another(&kind, last, now);
        }
        let first = Counted { kind: kind.clone(), last: last.clone(), count: 1 };
        let count = Count { told: now, more: 0, last };
        if self.kinds.len() < MAX_KINDS {
            self.kinds.insert(kind, count);
            return Some(first);
        }
        if let Some((seen, counted)) = &mut self.rest {
            seen.clone_from(&kind);
            return counted.another(&kind, count.last, now);
        }
        self.rest = Some((kind, count));
        Some(first)
    }

    /// What has been counted for a minute. It looks through all kinds at most once a second, so that a flood of events
    /// does not pay for each other.
    pub(super) fn due(&mut self, now: Timestamp) -> Vec<Counted> {
        if self.is_empty() || now.since(self.looked) < Duration::from_secs(1) {
            return Vec::new();
        }
        self.looked = now;
        let mut due = Vec::new();
        self.kinds.retain(|kind, count| count.keep(kind, now, &mut due));
        if let Some((kind, count)) = &mut self.rest
            && !count.keep(kind, now, &mut due)
        {
            self.rest = None;
        }
        due
    }

    /// Everything counted and not told; the counts begin anew.
    pub(super) fn all(&mut self, now: Timestamp) -> Vec<Counted> {
        let rest = self.rest.as_mut().map(|(kind, count)| (&*kind, count));
        self.kinds.iter_mut().chain(rest).filter_map(|(kind, count)| count.take(kind, now)).collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.kinds.len() + usize::from(self.rest.is_some())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kinds.is_empty() && self.rest.is_none()
    }

    /// The end of the first minute that has something to tell.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        let rest = self.rest.as_ref().map(|(_, count)| count);
        let counts = self.kinds.values().chain(rest);
        counts.filter(|count| count.more > 0).map(|count| count.told + PERIOD).min()
    }
}

impl Count {
    fn another(&mut self, kind: &Kind, last: Last, now: Timestamp) -> Option<Counted> {
        self.more += 1;
        self.last = last;
        if now.since(self.told) >= PERIOD { self.take(kind, now) } else { None }
    }

    fn take(&mut self, kind: &Kind, now: Timestamp) -> Option<Counted> {
        let count = std::mem::take(&mut self.more);
        self.told = now;
        (count > 0).then(|| Counted { kind: kind.clone(), last: self.last.clone(), count })
    }

    /// Whether it is still needed.
    fn keep(&mut self, kind: &Kind, now: Timestamp, due: &mut Vec<Counted>) -> bool {
        if now.since(self.told) < PERIOD {
            return true;
        }
        let told = self.take(kind, now);
        let keep = told.is_some();
        due.extend(told);
        keep
    }
}

impl Counted {
    pub(super) fn tell(&self) {
        let (decision, verb) = match self.kind.deed {
            Deed::Denied(verb) => ("denied", verb_word(verb)),
            Deed::Reported => ("granted", "report-rejected"),
        };
        tell(&Event {
            decision,
            verb,
            profile: Some(self.kind.profile.as_ref().map_or("unknown", ProfileName::as_str)),
            generation: self.last.generation.map(Generation::as_u64),
            uid: self.kind.uid,
            pid: self.last.pid,
            unit: self.kind.unit.as_ref().map(UnitName::as_str),
            rule: self.last.rule.as_deref(),
            count: Some(self.count),
        });
    }
}
