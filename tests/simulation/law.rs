//! The contract told a second time, as bounds, without a look at the code that it binds: after each fact it says between
//! which moments the next attempt may lie. Written from the table of refresh rules, with its own sums.

use std::{collections::VecDeque, time::Duration};

use bloom_agent::{
    clock::{Now, Timestamp},
    failure::Schedule,
    token::{Generation, Life},
};

use super::{GRAIN, HOUR, MINUTE, SECOND};

/// Fails a run with a text.
macro_rules! demand {
    ($holds:expr, $($text:tt)*) => {
        let holds: bool = $holds;
        if !holds {
            return Err(format!($($text)*));
        }
    };
}
pub(crate) use demand;

/// The token that callers are to get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Served {
    pub(crate) generation: Generation,
    pub(crate) life: Life,
    pub(crate) reported: bool,
    /// The place in the jitter window, from the first plan that was seen.
    pub(crate) draw: Option<f64>,
}

impl Served {
    /// "Served until expiry minus the smaller of 5 s and 5 % of the life", in whole nanoseconds.
    pub(crate) fn is_valid(&self, now: Timestamp) -> bool {
        let length = self.life.length.as_nanos();
        let since = now.since_boot().as_nanos() - self.life.requested.boot.since_boot().as_nanos();
        since < length - (5_000_000_000).min(length / 20)
    }
}

/// The contract, of one profile.
pub(crate) struct Law {
    pub(crate) floor: Duration,
    pub(crate) born: Timestamp,
    pub(crate) last_success: Option<Timestamp>,
    pub(crate) last_life: Option<Duration>,
    /// While the last attempt failed: the first and the last moment for the next.
    pub(crate) retry: Option<(Timestamp, Timestamp)>,
    pub(crate) not_before: Option<Timestamp>,
    pub(crate) failures: [u32; 3],
    pub(crate) last_mended: Option<Timestamp>,
    /// Callers' refreshes since the budget was last restored: the last one, and how many.
    pub(crate) asks: Option<(Timestamp, u32)>,
    /// One that waits for the floor.
    pub(crate) asked: Option<Timestamp>,
    pub(crate) forced: bool,
    /// A step of the wall clock: from when on it may, and by when it must cause a refresh.
    pub(crate) step_may: Option<Timestamp>,
    pub(crate) step_must: Option<Timestamp>,
    pub(crate) last_step: Option<Timestamp>,
    pub(crate) last_fetch: Option<Timestamp>,
    /// Fetches in the last minute, and what allows for more of them.
    pub(crate) recent: VecDeque<Timestamp>,
    pub(crate) licences: VecDeque<Timestamp>,
}

/// Why an attempt was made when it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Forced,
    Asked,
    Stepped,
    Scheduled,
}

impl Law {
    pub(crate) fn new(now: Timestamp, floor: Duration) -> Self {
        Self {
            floor,
            born: now,
            last_success: None,
            last_life: None,
            retry: None,
            not_before: None,
            failures: [0; 3],
            last_mended: None,
            asks: None,
            asked: None,
            forced: false,
            step_may: None,
            step_must: None,
            last_step: None,
            last_fetch: None,
            recent: VecDeque::new(),
            licences: VecDeque::from([now]),
        }
    }

    /// As of now, for a record; what went on in the last minute is nothing that a record holds.
    pub(crate) fn recorded(&self) -> Self {
        Self { recent: VecDeque::new(), licences: VecDeque::new(), ..*self }
    }

    pub(crate) fn floor_end(&self) -> Timestamp {
        self.last_success.map_or(self.born, |start| start + self.floor)
    }

    /// An attempt starts: may it?
    pub(crate) fn fetched(
        &mut self,
        now: Timestamp,
        policy: (f64, f64),
        served: Option<&Served>,
    ) -> Result<Cause, String> {
        let (first, _) = self.window(now, policy, served);
        demand!(now >= first, "fetched before {first:?}");
        let mut cause = if self.forced { Cause::Forced } else { Cause::Scheduled };
        if let (None, Some(Served { life, .. }), false) = (self.retry, served, self.forced) {
            let regular = life.requested.boot + life.length.mul_f64(policy.0 - policy.1) - GRAIN;
            if now < regular.min(life.served_until() - GRAIN - life.length / 20) {
                if self.asked.is_some() {
                    cause = Cause::Asked;
                } else {
                    let rested = self.last_step.is_none_or(|last| now.since(last) >= 10 * MINUTE);
                    demand!(rested, "two refreshes within 10 min for steps of the wall clock");
                    self.last_step = Some(now);
                    cause = Cause::Stepped;
                }
            }
        }
        let silent = self.not_before.is_none_or(|until| now >= until);
        demand!(self.forced || silent, "asked before the provider wished");

        self.recent.push_back(now);
        for old in [&mut self.recent, &mut self.licences] {
            while old.front().is_some_and(|at| now.since(*at) > MINUTE) {
                old.pop_front();
            }
        }
        // Successes come by the floor, failures by windows that grow; see backoff's tenth.
        let by_floor = (MINUTE.as_secs() / self.floor.as_secs()) as usize;
        let (count, most) = (self.recent.len(), 25 + by_floor + self.licences.len());
        demand!(count <= most, "a busy loop: {count} requests in a minute");

        (self.forced, self.asked, self.step_may, self.step_must) = (false, None, None, None);
        self.last_fetch = Some(now);
        Ok(cause)
    }

    /// It brought a token.
    pub(crate) fn granted(&mut self, now: Timestamp, life: &Life, before: Option<&Served>) {
        (self.last_success, self.last_life) = (Some(life.requested.boot), Some(life.length));
        self.restore_budget(now, before);
        (self.retry, self.not_before, self.failures) = (None, None, [0; 3]);
        self.asked = None;
    }

    /// It brought one that had expired on the way: a success for the floor, a failure for the rest.
    pub(crate) fn late(&mut self, now: Timestamp, life: &Life, served: Option<&Served>) {
        (self.last_success, self.last_life) = (Some(life.requested.boot), Some(life.length));
        self.failed(now, Schedule::Transient, None, served);
    }

    /// It failed, and the provider asked for so much silence.
    pub(crate) fn failed(
        &mut self,
        now: Timestamp,
        schedule: Schedule,
        asked: Option<Duration>,
        served: Option<&Served>,
    ) {
        let slot = schedule as usize;
        let slot = if asked.is_some() && slot == 1 { 0 } else { slot };
        let doubled = 1_u64 << self.failures[slot].min(20);
        self.failures[slot] += 1;
        let asked = asked.map(|asked| now + asked.min(HOUR));
        let urgent = served.map_or(now, |served| served.life.expires() - served.life.length / 10).max(now);
        let (mut first, mut last) = match schedule {
            Schedule::Refusal => {
                let exactly = now + (30 * SECOND * doubled as u32).min(15 * MINUTE);
                (exactly, exactly)
            }
            Schedule::RateLimited if asked.is_none() => {
                let (from, window) = (now + 30 * SECOND, (30 * SECOND * doubled as u32).min(5 * MINUTE));
                self.not_before = self.not_before.max(Some(from));
                (from + window / 10, from + window)
            }
            _ => {
                let (from, window) = (asked.unwrap_or(now), (SECOND * doubled as u32).min(5 * MINUTE));
                let least = window.min(30 * SECOND) / 10;
                (from + least, (from + window).min(urgent.max(from) + window.min(30 * SECOND)))
            }
        };
        self.not_before = asked.or(self.not_before);
        for at_least in [Some(self.floor_end()), self.not_before].into_iter().flatten() {
            (first, last) = (first.max(at_least), last.max(at_least));
        }
        self.retry = Some((first, last));
    }

    /// The served token has expired, and there is no newer one.
    pub(crate) fn expired(&mut self, now: Timestamp, served: &Served) {
        self.restore_budget(now, Some(served));
        (self.asked, self.step_may, self.step_must) = (None, None, None);
    }

    /// "The first at once, then at least 1 min apart, doubling to 1 h".
    pub(crate) fn budget_allows(&self, start: Timestamp) -> bool {
        let Some((last, count)) = self.asks else { return true };
        start.since(last) >= (MINUTE * (1 << (count - 1).min(10))).min(HOUR)
    }

    pub(crate) fn restore_budget(&mut self, now: Timestamp, served: Option<&Served>) {
        if served.is_some_and(|s| !s.reported && now >= s.life.requested.boot + s.life.length / 2) {
            self.asks = None;
        }
    }

    /// A caller's refresh is to start then.
    pub(crate) fn asked(&mut self, start: Timestamp) {
        self.asks = Some((start, self.asks.map_or(1, |(_, count)| count + 1)));
        self.asked = Some(start);
    }

    /// The operator wants one now.
    pub(crate) fn force(&mut self, now: Timestamp) {
        self.forced = true;
        self.licences.push_back(now);
    }

    /// The secret or the config changed while nothing was in flight; `moves` says whether an attempt at this moment is
    /// sooner than what was planned.
    pub(crate) fn mended(&mut self, now: Timestamp, moves: impl Fn(Timestamp) -> bool) {
        let at_once = now.max(self.last_mended.map_or(now, |last| last + self.floor));
        let at_once = at_once.max(self.not_before.unwrap_or(at_once));
        if let Some((first, last)) = self.retry {
            if moves(at_once) {
                self.last_mended = Some(at_once);
                self.licences.push_back(at_once);
            }
            self.retry = Some((first.min(at_once), last.min(at_once)));
            self.failures[Schedule::Refusal as usize] = 0;
        }
    }

    /// Another process goes on by the law of a record; what was only planned since is gone.
    pub(crate) fn restored(&mut self, now: Timestamp, recorded: Self) {
        let before = std::mem::replace(
            self,
            Self { born: now, asked: None, forced: false, step_may: None, step_must: None, ..recorded },
        );
        (self.recent, self.licences, self.last_fetch) = (before.recent, before.licences, before.last_fetch);
    }

    /// After a step, a grant or an adoption: may or must the wall clock bring the refresh forward?
    pub(crate) fn look_at_the_wall(&mut self, now: Now, policy: (f64, f64), served: Option<&Served>) {
        let (at, jitter) = policy;
        let Some(Served { life, .. }) = served else { return };
        let passed = now.wall.since(life.requested.wall);
        let rested = |last: Option<Timestamp>| last.map_or(now.boot, |last| now.boot.max(last + 10 * MINUTE));
        let left = |share: f64, slack: Duration| life.length.mul_f64(share).saturating_sub(passed + slack);
        // The machine's clock counts in whole milliseconds on the wall, and points are cut to the end of serving.
        let (grain, lived) = (Duration::from_millis(2), now.boot.since(life.requested.boot));
        let (may, must) = (left((at - jitter).min(0.899), grain), left(at + jitter, Duration::ZERO));
        let ahead = passed > lived + SECOND - grain;
        let far_ahead = passed > lived + SECOND + grain;
        self.step_may = (may.is_zero() || ahead).then(|| rested(self.last_step).max(now.boot + may));
        self.step_must = (must.is_zero() && passed >= grain || far_ahead)
            .then(|| rested(self.last_fetch).max(now.boot + must));
    }

    /// Between which moments the next attempt may lie.
    pub(crate) fn window(
        &self,
        now: Timestamp,
        policy: (f64, f64),
        served: Option<&Served>,
    ) -> (Timestamp, Timestamp) {
        let (mut first, mut last) = match (self.retry, served) {
            (Some(retry), _) => retry,
            (None, None) => (self.born.max(self.floor_end()), self.born.max(self.floor_end())),
            (None, Some(Served { life, .. })) => {
                let share = |share: f64| {
                    (life.requested.boot + life.length.mul_f64(share))
                        .min(
                            life.expires()
                                - (5 * SECOND).min(life.length / 20)
                                - (10 * SECOND).min(life.length / 20),
                        )
                        .max(self.floor_end())
                };
                let (mut first, mut last) = (share(policy.0 - policy.1), share(policy.0 + policy.1));
                if let Some(asked) = self.asked {
                    (first, last) = (first.min(asked), last.min(asked));
                }
                first = self.step_may.map_or(first, |may| first.min(may.max(self.floor_end())));
                last = self.step_must.map_or(last, |must| last.min(must.max(self.floor_end())));
                (first, last)
            }
        };
        if self.forced {
            (first, last) = (first.min(now), last.min(now));
        }
        (first - GRAIN, last + GRAIN)
    }
}
