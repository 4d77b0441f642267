//! When a token is refreshed and how long it lives, as pure functions of its [`Life`] and the profile's [`Policy`].
//!
//! - The refresh point is a share of the life, drawn once per token ([`Draw`]); a changed policy moves the point, but never
//!   draws again. (An agent that draws at each look refreshes early: the smallest of many draws wins, and a fleet that
//!   should be spread comes together.)
//! - Every point leaves time for one exchange before the end of serving.

use std::time::Duration;

use rand::{Rng, RngExt as _};

use crate::{clock::Timestamp, clock::WallTime, token::Life};

/// Between the starts of two successful fetches, for all but the operator.
pub const FLOOR: Duration = Duration::from_secs(10);
/// [`FLOOR`] in `bloom-agent dev`, where lives of 2 s are for trying things out.
pub const DEV_FLOOR: Duration = Duration::from_secs(1);

/// Before the end of serving, the smaller of the time that one exchange may take and 5 % of the life: a late policy is cut
/// to it, lest every rotation leave a gap. It never reaches the default policy: 0.85 is before 0.95 less 0.05.
const LEAD: Duration = Duration::from_secs(10);

/// When a profile's tokens are refreshed: `refresh = { at, jitter }`, and the floor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    at: f64,
    jitter: f64,
    floor: Duration,
}

/// Why two numbers are not a refresh policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyFault {
    /// `at` is not within 0.1 to 0.95.
    #[error("`at` must lie between 0.1 and 0.95 (a share of the token's life)")]
    At,
    /// `jitter` is negative or not a number.
    #[error("`jitter` must not be negative")]
    Jitter,
    /// The window `at - jitter` to `at + jitter` leaves the life.
    #[error("`at` less `jitter` must be above 0, and `at` plus `jitter` at most 1")]
    Window,
}

impl Policy {
    /// Refreshes at the share `at` of a life, give or take `jitter`, with the floor [`FLOOR`].
    pub fn new(at: f64, jitter: f64) -> Result<Self, PolicyFault> {
        if !(0.1..=0.95).contains(&at) {
            return Err(PolicyFault::At);
        }
        if jitter.is_nan() || jitter < 0.0 {
            return Err(PolicyFault::Jitter);
        }
        // Inclusive above, so that `at = 0.95` can stand with the default jitter; the point is cut to the life.
        if at - jitter <= 0.0 || at + jitter > 1.0 {
            return Err(PolicyFault::Window);
        }
        Ok(Self { at, jitter, floor: FLOOR })
    }

    /// The same with another floor ([`DEV_FLOOR`]).
    #[must_use]
    pub const fn with_floor(self, floor: Duration) -> Self {
        Self { floor, ..self }
    }

    /// Where in a life the token is refreshed.
    pub const fn at(&self) -> f64 {
        self.at
    }

    /// How far from there, at most.
    pub const fn jitter(&self) -> f64 {
        self.jitter
    }

    /// The least time between the starts of two successful fetches.
    pub const fn floor(&self) -> Duration {
        self.floor
    }
}

/// 0.8 ± 0.05, the floor 10 s.
impl Default for Policy {
    fn default() -> Self {
        Self { at: 0.8, jitter: 0.05, floor: FLOOR }
    }
}

/// One token's place in the jitter window, -1 to 1: drawn when the token comes, and never again for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw(f64);

impl Draw {
    /// Draws uniformly.
    pub fn new(rng: &mut impl Rng) -> Self {
        Self(rng.random_range(-1.0..=1.0))
    }

    /// One that was drawn before; none if it is no place in the window.
    pub fn restored(place: f64) -> Option<Self> {
        (-1.0..=1.0).contains(&place).then_some(Self(place))
    }

    /// The place, for [`Self::restored`].
    pub const fn place(self) -> f64 {
        self.0
    }
}

/// When a token with this life is refreshed.
pub fn refresh_point(policy: &Policy, draw: Draw, life: &Life) -> Timestamp {
    let share = policy.at + policy.jitter * draw.0;
    let latest = life.served_until() - LEAD.min(life.length / 20);
    (life.requested.boot + life.length.mul_f64(share.clamp(0.0, 1.0))).min(latest)
}

/// The moment `point` of a life on the wall clock of its request: a wall clock that has come there by a step says that
/// time went by which the boot clock did not see (a paused VM), or that it was wrong before.
pub fn on_the_wall(point: Timestamp, life: &Life) -> WallTime {
    life.requested.wall + point.since(life.requested.boot)
}

/// From when on retries hurry: the last tenth of a life.
pub fn urgent_from(life: &Life) -> Timestamp {
    life.expires() - life.length / 10
}

/// Whether half of the life is over.
pub fn is_half_lived(life: &Life, now: Timestamp) -> bool {
    now >= life.requested.boot + life.length / 2
}

/// How long a token can still be used, until its true expiry: what `min_validity` is compared with.
pub fn validity(life: &Life, now: Timestamp) -> Duration {
    life.expires().since(now)
}

/// Whether `min_validity` is above 90 % of `last`, the life that the provider last gave: no new token would last.
pub fn asks_too_much(min_validity: Duration, last: Duration) -> bool {
    // In whole numbers: exactly 90 % is not above it.
    min_validity.as_nanos().saturating_mul(10) > last.as_nanos().saturating_mul(9)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;
    use crate::{clock::Now, token::LifeSource};

    fn life(seconds: u64) -> Life {
        let requested = Now {
            boot: Timestamp::from_boot(Duration::from_secs(1_000)),
            wall: WallTime::from_unix_millis(5_000),
        };
        Life { requested, length: Duration::from_secs(seconds), source: LifeSource::Provider }
    }

    fn at(seconds: f64) -> Timestamp {
        Timestamp::from_boot(Duration::from_secs_f64(1_000.0 + seconds))
    }

    #[test]
    fn a_policy_is_checked() {
        let cases = [
            (0.8, 0.05, Ok(())),
            (0.1, 0.0, Ok(())),
            (0.1, 0.05, Ok(())),
            (0.95, 0.05, Ok(())),
            (0.5, 0.49, Ok(())),
            (0.0999, 0.0, Err(PolicyFault::At)),
            (0.951, 0.0, Err(PolicyFault::At)),
            (f64::NAN, 0.0, Err(PolicyFault::At)),
            (f64::INFINITY, 0.0, Err(PolicyFault::At)),
            (0.8, -0.01, Err(PolicyFault::Jitter)),
            (0.8, f64::NAN, Err(PolicyFault::Jitter)),
            (0.8, 0.21, Err(PolicyFault::Window)),
            (0.1, 0.1, Err(PolicyFault::Window)),
            (0.5, f64::INFINITY, Err(PolicyFault::Window)),
        ];
        for (share, jitter, expected) in cases {
            assert_eq!(Policy::new(share, jitter).map(drop), expected, "at {share} jitter {jitter}");
        }
        assert_eq!(Policy::new(0.8, 0.05), Ok(Policy::default()));
        let policy = Policy::new(0.5, 0.1).unwrap();
        assert_eq!((policy.at(), policy.jitter(), policy.floor()), (0.5, 0.1, FLOOR));
    }

    #[test]
    fn a_place_in_the_window_is_told_and_restored() {
        for place in [-1.0, -0.25, 0.5, 1.0] {
            assert_eq!(Draw::restored(place).map(Draw::place), Some(place));
        }
        for place in [-1.001, 1.001, f64::NAN, f64::INFINITY] {
            assert_eq!(Draw::restored(place), None, "{place}");
        }
    }

    #[test]
    fn the_refresh_point_is_a_share_of_the_life_that_leaves_time_for_an_exchange() {
        let policy = |at, jitter| Policy::new(at, jitter).unwrap();
        let cases = [
            (policy(0.8, 0.05), 0.0, 86_400, 69_120.0),
            (policy(0.8, 0.05), -1.0, 86_400, 64_800.0),
            (policy(0.8, 0.05), 1.0, 86_400, 73_440.0),
            (policy(0.1, 0.0), 1.0, 3_600, 360.0),
            (policy(0.95, 0.05), 1.0, 3_600, 3_585.0),
            (policy(0.95, 0.05), 1.0, 20, 18.0),
            (policy(0.8, 0.05), 1.0, 20, 17.0),
            (policy(0.8, 0.05), 1.0, 1, 0.85),
        ];
        for (policy, draw, seconds, expected) in cases {
            assert_eq!(refresh_point(&policy, Draw(draw), &life(seconds)), at(expected), "{policy:?} {draw}");
        }
    }

    #[test]
    fn the_draws_fill_the_window_evenly_and_stay_in_it() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut buckets = [0_u32; 10];
        for _ in 0..10_000 {
            let Draw(draw) = Draw::new(&mut rng);
            assert!((-1.0..=1.0).contains(&draw));
            buckets[(((draw + 1.0) * 5.0) as usize).min(9)] += 1;
        }
        assert!(buckets.iter().all(|n| (850..1_150).contains(n)), "{buckets:?}");
    }

    #[test]
    fn the_marks_of_a_life() {
        let day = life(86_400);
        assert_eq!(urgent_from(&day), at(77_760.0));
        assert!(!is_half_lived(&day, at(43_199.9)) && is_half_lived(&day, at(43_200.0)));
        assert_eq!(validity(&day, at(86_300.0)), Duration::from_secs(100));
        assert_eq!(validity(&day, at(90_000.0)), Duration::ZERO);
        assert_eq!(on_the_wall(at(60.0), &day), WallTime::from_unix_millis(65_000));
    }

    #[test]
    fn more_than_nine_tenths_of_a_life_is_too_much_to_ask() {
        let seconds = Duration::from_secs;
        assert!(!asks_too_much(seconds(3_240), seconds(3_600)));
        assert!(asks_too_much(seconds(3_240) + Duration::from_nanos(1), seconds(3_600)));
        assert!(asks_too_much(Duration::MAX, crate::token::MAX_LIFE));
        assert!(!asks_too_much(Duration::ZERO, Duration::ZERO));
    }
}
