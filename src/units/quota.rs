//! How often each uid may make the agent look units up. Pure: time is an argument.
//!
//! A look-up walks a tree or asks the service manager, and a caller can have as many as it can open connections.

use std::{collections::BTreeMap, time::Duration};

use crate::{clock::Timestamp, limits::charged};

/// What a look-up costs the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// A walk through the tree of cgroups. Connections of the same service need one in all.
    Walk,
    /// A question to the service manager, which every connection needs.
    Question,
}

impl Look {
    /// How many one uid has in a second; the burst is twice that. Questions are as many as connections may be
    /// (`connects_per_second`, by default), so that they are no limit of their own.
    const fn per_second(self) -> u32 {
        match self {
            Self::Walk => 50,
            Self::Question => 200,
        }
    }
}

/// How long one mention of a uid keeps the next one out of the log.
const MENTION_EVERY: Duration = Duration::from_secs(60);
/// From so many entries on those that say nothing any more are dropped.
const SWEEP_FROM: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Quota(BTreeMap<u32, Entry>);

#[derive(Debug, Default)]
struct Entry {
    /// When the bucket is full again.
    full_at: Timestamp,
    mentioned: Option<Timestamp>,
}

/// Whether a look-up may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It may.
    Granted,
    /// It may not; this is the first time in a minute.
    FirstRefused,
    /// It may not.
    Refused,
}

impl Quota {
    /// Takes one look-up of `uid`.
    pub(super) fn take(&mut self, look: Look, uid: u32, now: Timestamp) -> Turn {
        if self.0.len() >= SWEEP_FROM && !self.0.contains_key(&uid) {
            let is_recent = |at: Timestamp| now.since(at) < MENTION_EVERY;
            self.0.retain(|_, entry| entry.full_at > now || entry.mentioned.is_some_and(is_recent));
        }
        let entry = self.0.entry(uid).or_default();
        if let Some(full_at) = charged(entry.full_at, look.per_second(), now) {
            entry.full_at = full_at;
            return Turn::Granted;
        }
        if entry.mentioned.is_some_and(|at| now.since(at) < MENTION_EVERY) {
            return Turn::Refused;
        }
        entry.mentioned = Some(now);
        Turn::FirstRefused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_has_its_burst_and_then_its_rate_and_takes_nothing_from_others() {
        let mut quota = Quota::default();
        let at = |millis| Timestamp::from_boot(Duration::from_millis(millis));
        for _ in 0..2 * Look::Walk.per_second() {
            assert_eq!(quota.take(Look::Walk, 1, at(1_000)), Turn::Granted);
        }
        assert_eq!(quota.take(Look::Walk, 1, at(1_000)), Turn::FirstRefused);
        assert_eq!(quota.take(Look::Walk, 1, at(1_000)), Turn::Refused);
        assert_eq!(quota.take(Look::Walk, 2, at(1_000)), Turn::Granted);
        assert_eq!(quota.take(Look::Walk, 1, at(1_020)), Turn::Granted);
        assert_eq!(quota.take(Look::Walk, 1, at(1_020)), Turn::Refused);
        assert_eq!(quota.take(Look::Walk, 1, at(60_000)), Turn::Granted);
        for _ in 0..2 * Look::Question.per_second() {
            assert_eq!(quota.take(Look::Question, 3, at(60_000)), Turn::Granted);
        }
        assert_eq!(quota.take(Look::Question, 3, at(60_000)), Turn::FirstRefused);
    }

    #[test]
    fn those_who_have_been_quiet_are_forgotten() {
        let mut quota = Quota::default();
        let at = |secs| Timestamp::from_boot(Duration::from_secs(secs));
        for uid in 0..10_000 {
            assert_eq!(quota.take(Look::Walk, uid, at(u64::from(uid))), Turn::Granted);
        }
        assert!(quota.0.len() <= SWEEP_FROM, "{}", quota.0.len());
    }
}
