//! When to try again after a failure: the three schedules of the refresh rules.
//!
//! - Each schedule counts its own failures, and only a success starts them again: a provider that answers 500 and 429 by
//!   turns is asked less and less often all the same.
//! - What the provider asked for (Retry-After, the silence after a 429) is kept apart from our own delays: it outlasts an
//!   attempt that the operator forced, and it beats every cap.
//! - Full jitter never means at once: no delay is below a tenth of its window.

use std::time::Duration;

use rand::{Rng, RngExt as _};

use crate::{clock::Timestamp, failure::Schedule};

/// The first window after a transient failure.
pub const TRANSIENT: Duration = Duration::from_secs(1);
/// The widest window of transient failures.
pub const TRANSIENT_CAP: Duration = Duration::from_secs(5 * 60);
/// The widest of them in the last tenth of a token's life, and while there is no valid token.
pub const URGENT_CAP: Duration = Duration::from_secs(30);
/// No request for so long after a 429 without Retry-After, and the first window after that.
pub const QUIET: Duration = Duration::from_secs(30);
/// The first delay after a refusal.
pub const REFUSAL: Duration = Duration::from_secs(30);
/// The longest delay after a refusal.
pub const REFUSAL_CAP: Duration = Duration::from_secs(15 * 60);
/// The longest Retry-After that is honoured.
pub const RETRY_AFTER_CAP: Duration = Duration::from_secs(3_600);

/// The failures since the last success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    transient: u32,
    limited: u32,
    refused: u32,
    not_before: Option<Timestamp>,
}

impl Backoff {
    /// One that has counted so many transient failures, 429s and refusals, and was asked for silence.
    pub const fn restored(counts: [u32; 3], not_before: Option<Timestamp>) -> Self {
        let [transient, limited, refused] = counts;
        Self { transient, limited, refused, not_before }
    }

    /// How many transient failures, 429s and refusals it has counted.
    pub const fn counts(&self) -> [u32; 3] {
        [self.transient, self.limited, self.refused]
    }

    /// Counts a failure of this `schedule`, which came at `now`, and says when the next attempt starts. `urgent` is the
    /// moment from which retries hurry; it may be past.
    pub fn after(
        &mut self,
        schedule: Schedule,
        retry_after: Option<Duration>,
        now: Timestamp,
        urgent: Timestamp,
        rng: &mut impl Rng,
    ) -> Timestamp {
        let asked = retry_after.map(|asked| now + asked.min(RETRY_AFTER_CAP));
        let own = match (schedule, asked) {
            (Schedule::Refusal, _) => now + doubling(REFUSAL, &mut self.refused, REFUSAL_CAP),
            // The silence was asked for as much as a Retry-After is, so it is kept as one.
            (Schedule::RateLimited, None) => {
                self.not_before = self.not_before.max(Some(now + QUIET));
                // Not even without a token is there a hurry: a provider that allows a request a minute, and counts those
                // that it refuses, would refuse every one that comes sooner, for ever.
                now + QUIET + doubling(QUIET, &mut self.limited, TRANSIENT_CAP).mul_f64(jitter(rng))
            }
            // The jitter comes after the Retry-After: all who were turned away heard the same number.
            (Schedule::RateLimited | Schedule::Transient, _) => {
                let window = doubling(TRANSIENT, &mut self.transient, TRANSIENT_CAP);
                hurried(asked.unwrap_or(now), window, urgent, jitter(rng))
            }
        };
        // The provider's newest word counts; without a new one the last still does.
        self.not_before = asked.or(self.not_before);
        own.max(self.not_before.unwrap_or(now))
    }

    /// Until when the provider asked for silence.
    pub const fn not_before(&self) -> Option<Timestamp> {
        self.not_before
    }

    /// Something was mended: refusals count from the start again.
    pub const fn mended(&mut self) {
        self.refused = 0;
    }
}

/// `first`, doubled once for each failure counted before, at most `cap`; counts one more.
fn doubling(first: Duration, failures: &mut u32, cap: Duration) -> Duration {
    let window = first.saturating_mul(1_u32.checked_shl(*failures).unwrap_or(u32::MAX)).min(cap);
    *failures = failures.saturating_add(1);
    window
}

/// A share of a window.
fn jitter(rng: &mut impl Rng) -> f64 {
    rng.random_range(0.1..=1.0)
}

/// The `share` of `window` after `from`; at most [`URGENT_CAP`] of it lies behind `urgent`, so that a long delay drawn
/// shortly before the last tenth does not sleep through it.
fn hurried(from: Timestamp, window: Duration, urgent: Timestamp, share: f64) -> Timestamp {
    let patient = from + window.mul_f64(share);
    let latest = from.max(urgent) + window.min(URGENT_CAP).mul_f64(share);
    patient.min(latest)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    const FAR: Timestamp = Timestamp::from_boot(Duration::from_secs(1_000_000));
    const NOW: Timestamp = Timestamp::from_boot(Duration::from_secs(10_000));

    type Setback = (Schedule, Option<Duration>);

    fn failure(schedule: Schedule, retry_after: Option<u64>) -> Setback {
        (schedule, retry_after.map(Duration::from_secs))
    }

    fn after(
        backoff: &mut Backoff,
        failure: Setback,
        now: Timestamp,
        urgent: Timestamp,
        rng: &mut StdRng,
    ) -> Timestamp {
        backoff.after(failure.0, failure.1, now, urgent, rng)
    }

    /// The least and the greatest delay in seconds after each of the failures, over 500 seeds.
    fn ranges(failures: &[Setback], urgent: Timestamp) -> Vec<(f64, f64)> {
        let mut ranges = vec![(f64::MAX, 0.0_f64); failures.len()];
        for seed in 0..500 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut backoff = Backoff::default();
            for (range, failure) in ranges.iter_mut().zip(failures) {
                let delay = after(&mut backoff, *failure, NOW, urgent, &mut rng).since(NOW).as_secs_f64();
                *range = (range.0.min(delay), range.1.max(delay));
            }
        }
        ranges
    }

    /// The delays fill the window: none outside, and some near both ends.
    fn assert_fills(ranges: &[(f64, f64)], windows: &[(f64, f64)]) {
        for (n, ((low, high), (from, to))) in ranges.iter().zip(windows).enumerate() {
            let tolerance = (to - from) * 0.05;
            assert!(
                *low >= from - 1e-6
                    && *low <= from + tolerance
                    && *high <= to + 1e-6
                    && *high >= to - tolerance,
                "failure {}: {low}..{high}, should fill {from}..{to}",
                n + 1
            );
        }
        assert_eq!(ranges.len(), windows.len());
    }

    #[test]
    fn transient_windows_double_from_one_second_to_five_minutes() {
        let ranges = ranges(&[failure(Schedule::Transient, None); 11], FAR);
        let windows = [1., 2., 4., 8., 16., 32., 64., 128., 256., 300., 300.].map(|to| (to / 10., to));
        assert_fills(&ranges, &windows);
    }

    #[test]
    fn without_a_valid_token_and_in_the_last_tenth_no_window_is_above_thirty_seconds() {
        for urgent in [NOW, NOW - Duration::from_secs(500), Timestamp::default()] {
            let ranges = ranges(&[failure(Schedule::Transient, None); 9], urgent);
            for (_, high) in ranges {
                assert!(high <= 30.0, "{high}");
            }
        }
    }

    #[test]
    fn a_long_delay_does_not_sleep_through_the_last_tenth() {
        let urgent = NOW + Duration::from_secs(20);
        for (_, high) in ranges(&[failure(Schedule::Transient, None); 12], urgent) {
            assert!(high <= 50.0, "{high}");
        }
    }

    #[test]
    fn after_a_429_there_is_silence_for_thirty_seconds_and_then_windows_doubling_from_thirty() {
        let windows = [30., 60., 120., 240., 300., 300.].map(|to| (30. + to / 10., 30. + to));
        for urgent in [FAR, NOW, Timestamp::default()] {
            assert_fills(&ranges(&[failure(Schedule::RateLimited, None); 6], urgent), &windows);
        }
    }

    #[test]
    fn a_limit_of_one_request_a_minute_that_counts_what_it_refuses_is_passed_within_six_requests() {
        for seed in 0..500 {
            let rng = &mut StdRng::seed_from_u64(seed);
            let (mut backoff, mut now, mut requests) = (Backoff::default(), NOW, 1);
            loop {
                // There is no token, and each request starts the minute again.
                let next = after(&mut backoff, failure(Schedule::RateLimited, None), now, now, rng);
                requests += 1;
                if next.since(now) >= Duration::from_secs(60) {
                    break;
                }
                now = next;
            }
            assert!(requests <= 6, "seed {seed}: {requests} requests");
        }
    }

    #[test]
    fn a_retry_after_is_never_undercut_and_beats_every_cap() {
        for (schedule, asked, window) in [
            (Schedule::Transient, 120, (120.1, 121.)),
            (Schedule::RateLimited, 120, (120.1, 121.)),
            (Schedule::RateLimited, 0, (0.1, 1.)),
            (Schedule::Transient, 3_600, (3_600.1, 3_601.)),
            (Schedule::Transient, 1_000_000, (3_600.1, 3_601.)),
            (Schedule::Refusal, 120, (120., 120.)),
            (Schedule::Refusal, 5, (30., 30.)),
        ] {
            assert_fills(&ranges(&[failure(schedule, Some(asked))], NOW), &[window]);
        }
    }

    #[test]
    fn refusals_double_from_thirty_seconds_to_a_quarter_of_an_hour_and_mending_starts_them_again() {
        let delays = ranges(&[failure(Schedule::Refusal, None); 7], NOW);
        let expected = [30., 60., 120., 240., 480., 900., 900.].map(|delay| (delay, delay));
        assert_eq!(delays, expected);

        let mut backoff = Backoff::default();
        let rng = &mut StdRng::seed_from_u64(1);
        for _ in 0..5 {
            after(&mut backoff, failure(Schedule::Refusal, None), NOW, NOW, rng);
        }
        backoff.mended();
        assert_eq!(after(&mut backoff, failure(Schedule::Refusal, None), NOW, NOW, rng).since(NOW), REFUSAL);
    }

    #[test]
    fn what_was_counted_is_told_and_restored() {
        let rng = &mut StdRng::seed_from_u64(1);
        let mut backoff = Backoff::default();
        for (schedule, times) in
            [(Schedule::Transient, 3), (Schedule::RateLimited, 5), (Schedule::Refusal, 7)]
        {
            for _ in 0..times {
                after(&mut backoff, failure(schedule, None), NOW, FAR, rng);
            }
        }
        assert_eq!(backoff.counts(), [3, 5, 7]);
        assert_eq!(backoff.not_before(), Some(NOW + QUIET));
        assert_eq!(Backoff::restored(backoff.counts(), backoff.not_before()), backoff);
    }

    #[test]
    fn schedules_that_alternate_all_grow() {
        let turns: Vec<_> =
            (0..8).map(|n| failure([Schedule::Transient, Schedule::RateLimited][n % 2], None)).collect();
        let mut backoff = Backoff::default();
        let rng = &mut StdRng::seed_from_u64(1);
        let mut now = NOW;
        for failure in &turns {
            now = after(&mut backoff, *failure, now, FAR, rng);
        }
        assert_eq!((backoff.transient, backoff.limited), (4, 4));
    }

    #[test]
    fn a_wish_for_silence_outlasts_a_forced_attempt_that_fails_otherwise() {
        let rng = &mut StdRng::seed_from_u64(1);
        let mut backoff = Backoff::default();
        let asked = after(&mut backoff, failure(Schedule::Transient, Some(600)), NOW, NOW, rng);
        assert!(asked >= NOW + Duration::from_secs(600));
        let forced = NOW + Duration::from_secs(10);
        assert!(
            after(&mut backoff, failure(Schedule::Transient, None), forced, NOW, rng)
                >= NOW + Duration::from_secs(600)
        );
        let shorter = after(&mut backoff, failure(Schedule::Transient, Some(1)), forced, NOW, rng);
        assert!(shorter < forced + Duration::from_secs(60), "the provider's newest word counts");
    }

    #[test]
    fn a_thousand_failures_overflow_nothing() {
        let rng = &mut StdRng::seed_from_u64(1);
        for schedule in [Schedule::Transient, Schedule::RateLimited, Schedule::Refusal] {
            let mut backoff = Backoff::default();
            for _ in 0..1_000 {
                let next = after(&mut backoff, failure(schedule, None), NOW, FAR, rng);
                assert!(next > NOW && next.since(NOW) <= REFUSAL_CAP);
            }
        }
    }
}
