//! Denials, counted: the first of a kind is told at once, those of the following minute together.
//!
//! Pure bookkeeping, time is an argument. A kind whose last minute was quiet is forgotten: its next denial is told at once
//! in either case.

use std::{collections::HashMap, time::Duration};

use super::{Event, tell, verb_word};
use crate::{
    access::{Peer, UnitName, Verb},
    clock::Timestamp,
    token::ProfileName,
};

/// How many kinds of denial are told apart; the others are one kind together, told under the uid that was last seen.
pub const MAX_DENIALS: usize = 4096;

/// How long denials of one kind are counted before they are told.
const PERIOD: Duration = Duration::from_secs(60);

/// What makes two denials the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    uid: u32,
    unit: Option<UnitName>,
    /// None: no profile has that name.
    profile: Option<ProfileName>,
    verb: Verb,
}

#[derive(Debug)]
struct Count {
    told: Timestamp,
    /// Since then.
    more: u64,
    /// The last one's.
    pid: i32,
}

/// An event that is ready to be told, without a lock.
pub(super) struct Denied {
    kind: Kind,
    pid: i32,
    count: u64,
}

#[derive(Debug, Default)]
pub(super) struct Denials {
    kinds: HashMap<Kind, Count>,
    /// All that found no room in `kinds`, with the last one's kind.
    rest: Option<(Kind, Count)>,
    looked: Timestamp,
}

impl Denials {
    /// Counts one, and returns what is to be told now.
    pub(super) fn deny(
        &mut self,
        peer: &Peer,
        verb: Verb,
        profile: Option<&ProfileName>,
        now: Timestamp,
    ) -> Vec<Denied> {
        let kind = Kind { uid: peer.uid, unit: peer.unit.clone(), profile: profile.cloned(), verb };
        // Before the others' turn, so that a count that waited goes out together with this one.
        let own = self.count(kind, peer.pid, now);
        let mut due = self.due(now);
        due.extend(own);
        due
    }

    fn count(&mut self, kind: Kind, pid: i32, now: Timestamp) -> Option<Denied> {
        if let Some(count) = self.kinds.get_mut(&kind) {
            return count.another(&kind, pid, now);
        }
        let first = Denied { kind: kind.clone(), pid, count: 1 };
        let count = Count { told: now, more: 0, pid };
        if self.kinds.len() < MAX_DENIALS {
            self.kinds.insert(kind, count);
            return Some(first);
        }
        if let Some((last, count)) = &mut self.rest {
            last.clone_from(&kind);
            return count.another(&kind, pid, now);
        }
        self.rest = Some((kind, count));
        Some(first)
    }

    /// What has been counted for a minute. It looks through all kinds at most once a second, so that a flood of denials
    /// does not pay for each other.
    pub(super) fn due(&mut self, now: Timestamp) -> Vec<Denied> {
        if now.since(self.looked) < Duration::from_secs(1) {
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
    pub(super) fn all(&mut self, now: Timestamp) -> Vec<Denied> {
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
    fn another(&mut self, kind: &Kind, pid: i32, now: Timestamp) -> Option<Denied> {
        self.more += 1;
        self.pid = pid;
        if now.since(self.told) >= PERIOD { self.take(kind, now) } else { None }
    }

    fn take(&mut self, kind: &Kind, now: Timestamp) -> Option<Denied> {
        let count = std::mem::take(&mut self.more);
        self.told = now;
        (count > 0).then(|| Denied { kind: kind.clone(), pid: self.pid, count })
    }

    /// Whether it is still needed.
    fn keep(&mut self, kind: &Kind, now: Timestamp, due: &mut Vec<Denied>) -> bool {
        if now.since(self.told) < PERIOD {
            return true;
        }
        let told = self.take(kind, now);
        let keep = told.is_some();
        due.extend(told);
        keep
    }
}

impl Denied {
    pub(super) fn tell(&self) {
        tell(&Event {
            decision: "denied",
            verb: verb_word(self.kind.verb),
            profile: Some(self.kind.profile.as_ref().map_or("unknown", ProfileName::as_str)),
            generation: None,
            uid: self.kind.uid,
            pid: self.pid,
            unit: self.kind.unit.as_ref().map(UnitName::as_str),
            rule: None,
            count: Some(self.count),
        });
    }
}
