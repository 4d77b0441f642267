//! What a machine knows, as plain data: out of one process and into the next, so that a restart is no way past the rules.
//!
//! It is taken when an attempt has settled. What was only planned since (a caller's wish, the operator's word) ends with
//! the process that it was said to.

use std::time::Duration;

use super::{
    backoff::{Backoff, RETRY_AFTER_CAP, TRANSIENT_CAP},
    budget::{Budget, FIRST_GAP, LONGEST_GAP},
    schedule::Draw,
};
use crate::{
    clock::Timestamp,
    failure::Schedule,
    token::{Generation, Life, MAX_LIFE},
};

/// Everything that outlives a process. Every moment is one of this boot's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Standing {
    /// The last generation that was given.
    pub generation: Option<Generation>,
    /// The token that is served.
    pub held: Option<Held>,
    /// When the last success started, and the life that it gave.
    pub granted: Option<(Timestamp, Duration)>,
    /// The failures since then.
    pub failing: Option<Failing>,
    /// What callers may still ask for.
    pub budget: Budget,
    /// When the last refresh started that a step of the wall clock brought forward.
    pub last_stepped: Option<Timestamp>,
    /// When the last attempt started that a mended secret or config brought forward.
    pub last_mended: Option<Timestamp>,
}

/// The token that is served, but for its value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Held {
    /// Which one.
    pub generation: Generation,
    /// From when to when.
    pub life: Life,
    /// Its place in the jitter window.
    pub draw: Draw,
    /// A caller's API refused it.
    pub reported: bool,
}

/// How the last attempts failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failing {
    /// What the next delay is computed from.
    pub backoff: Backoff,
    /// How many, 1 at least.
    pub count: u32,
    /// How the last one did.
    pub last: Schedule,
    /// When the next one starts.
    pub retry: Timestamp,
}

impl Standing {
    /// Whether a machine of this boot can have been in this state by `now`: no past moment lies in the future, no plan
    /// further ahead than the rules let it be, and every number is in its range.
    pub fn is_plausible(&self, now: Timestamp) -> bool {
        let past = |at: Timestamp| at <= now;
        let planned = |at: Timestamp, at_most: Duration| at <= now + at_most;
        let life = |length: Duration| length <= MAX_LIFE;
        let held = self.held.is_none_or(|held| {
            past(held.life.requested.boot)
                && life(held.life.length)
                && self.generation.is_some_and(|last| held.generation <= last)
        });
        let failing = self.failing.is_none_or(|failing| {
            // A successor waits for what the lost one waited for, the regular refresh at the latest.
            let regular = self.held.map_or(now, |held| held.life.expires());
            failing.count > 0
                && failing.retry <= regular.max(now + RETRY_AFTER_CAP + TRANSIENT_CAP)
                && failing.backoff.not_before().is_none_or(|at| planned(at, RETRY_AFTER_CAP))
        });
        held && failing
            && self.granted.is_none_or(|(started, length)| past(started) && life(length))
            && self.budget.spent().is_none_or(|(last, gap)| {
                planned(last, RETRY_AFTER_CAP) && (FIRST_GAP..=LONGEST_GAP).contains(&gap)
            })
            && self.last_stepped.is_none_or(past)
            && self.last_mended.is_none_or(|at| planned(at, RETRY_AFTER_CAP))
    }
}
