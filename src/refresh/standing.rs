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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::{Now, WallTime},
        token::LifeSource,
    };

    const NOW: Timestamp = Timestamp::from_boot(Duration::from_secs(10_000));
    const GRAIN: Duration = Duration::from_nanos(1);

    /// As far as everything may go.
    fn extreme() -> Standing {
        let requested = Now { boot: NOW, wall: WallTime::default() };
        let generation = Generation::from_u64(7);
        let life = Life { requested, length: MAX_LIFE, source: LifeSource::Provider };
        let draw = Draw::restored(0.0).unwrap();
        Standing {
            generation: Some(generation),
            held: Some(Held { generation, life, draw, reported: false }),
            granted: Some((NOW, MAX_LIFE)),
            failing: Some(Failing {
                backoff: Backoff::restored([1, 2, 3], Some(NOW + RETRY_AFTER_CAP)),
                count: 1,
                last: Schedule::Transient,
                retry: NOW + MAX_LIFE,
            }),
            budget: Budget::restored(Some((NOW + RETRY_AFTER_CAP, LONGEST_GAP))),
            last_stepped: Some(NOW),
            last_mended: Some(NOW + RETRY_AFTER_CAP),
        }
    }

    #[test]
    fn a_standing_is_plausible_up_to_the_rules_last_nanosecond_and_no_further() {
        type Change = fn(&mut Standing);
        let changes: [(&str, Change, bool); 22] = [
            ("nothing known", |s| *s = Standing::default(), true),
            ("as far as everything may go", |_| {}, true),
            ("the shortest gap", |s| s.budget = Budget::restored(Some((NOW, FIRST_GAP))), true),
            ("an older token", |s| s.generation = Some(Generation::from_u64(8)), true),
            (
                "no token, and the longest wait",
                |s| {
                    s.held = None;
                    s.failing.as_mut().unwrap().retry = NOW + RETRY_AFTER_CAP + TRANSIENT_CAP;
                },
                true,
            ),
            ("a token of the future", |s| s.held.as_mut().unwrap().life.requested.boot = NOW + GRAIN, false),
            ("too long a life", |s| s.held.as_mut().unwrap().life.length += GRAIN, false),
            ("no generation", |s| s.generation = None, false),
            ("a generation before the token's", |s| s.generation = Some(Generation::from_u64(6)), false),
            ("no failure", |s| s.failing.as_mut().unwrap().count = 0, false),
            (
                "a retry after the token's end",
                |s| s.failing.as_mut().unwrap().retry = NOW + MAX_LIFE + GRAIN,
                false,
            ),
            (
                "no token, and too long a wait",
                |s| {
                    s.held = None;
                    s.failing.as_mut().unwrap().retry = NOW + RETRY_AFTER_CAP + TRANSIENT_CAP + GRAIN;
                },
                false,
            ),
            (
                "too long a silence",
                |s| {
                    s.failing.as_mut().unwrap().backoff =
                        Backoff::restored([1, 0, 0], Some(NOW + RETRY_AFTER_CAP + GRAIN));
                },
                false,
            ),
            ("a success of the future", |s| s.granted = Some((NOW + GRAIN, MAX_LIFE)), false),
            ("a success with too long a life", |s| s.granted = Some((NOW, MAX_LIFE + GRAIN)), false),
            (
                "a refresh that was asked for too far ahead",
                |s| {
                    s.budget = Budget::restored(Some((NOW + RETRY_AFTER_CAP + GRAIN, LONGEST_GAP)));
                },
                false,
            ),
            ("too short a gap", |s| s.budget = Budget::restored(Some((NOW, FIRST_GAP - GRAIN))), false),
            ("too long a gap", |s| s.budget = Budget::restored(Some((NOW, LONGEST_GAP + GRAIN))), false),
            ("a step of the future", |s| s.last_stepped = Some(NOW + GRAIN), false),
            ("mended too far ahead", |s| s.last_mended = Some(NOW + RETRY_AFTER_CAP + GRAIN), false),
            ("no token that a late retry would wait for", |s| s.held = None, false),
            ("no token and no failure", |s| (s.held, s.failing) = (None, None), true),
        ];
        for (what, change, is_plausible) in changes {
            let mut standing = extreme();
            change(&mut standing);
            assert_eq!(standing.is_plausible(NOW), is_plausible, "{what}");
        }
    }
}
