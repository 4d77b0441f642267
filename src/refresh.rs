//! One token's life as a state machine without I/O: when to fetch, how long to serve, when to try again.
//!
//! In the form of quinn-proto: facts go in with the time (`handle_*`), and what to do comes out ([`Refresh::poll_action`],
//! [`Refresh::poll_timeout`]). It reads no clock, draws from a generator seeded once, and never sees a token's value.
//!
//! - One fetch at a time; whoever asks for one meanwhile joins it, and all share its outcome.
//! - A token leaves in two ways only: another takes its place, or it expires. A failure takes nothing away.
//! - `due` is the one place that says when the next fetch starts. It is computed from facts, not stored, so no
//!   fact can be forgotten when another arrives.
//! - The boot clock decides; the wall clock can only bring a refresh forward ([`Refresh::handle_wall_step`]).

pub mod backoff;
pub mod budget;
pub mod schedule;
mod standing;
mod words;

#[cfg(test)]
mod tests;

use std::time::Duration;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use self::{backoff::Backoff, budget::Budget, schedule::Draw};
pub use self::{
    schedule::{Policy, PolicyFault},
    standing::{Failing, Held, Standing},
    words::{Action, Adoption, Answer, Demand, Grant, Health, Novelty},
};
use crate::{
    clock::{Now, Timestamp},
    failure::{Failure, Schedule},
    token::{Generation, Life},
};

/// Between two refreshes that steps of the wall clock bring forward.
pub const WALL_STEP_GAP: Duration = Duration::from_secs(10 * 60);

/// So far the two clocks may differ over a life without a word: the wall clock is read in milliseconds, and slewed.
const WALL_SLACK: Duration = Duration::from_secs(1);

/// One token's life. See the module.
#[derive(Debug)]
pub struct Refresh {
    policy: Policy,
    rng: StdRng,
    /// The last generation, of whatever identity: the next is above it.
    generation: Option<Generation>,
    held: Option<Held>,
    /// Whether [`Action::Expire`] is still to be polled.
    expired: bool,
    flight: Option<Flight>,
    /// When the last success started, for the floor; with the life it gave.
    granted: Option<(Timestamp, Duration)>,
    /// From when on there may be a first attempt.
    born: Timestamp,
    settled: u64,
    failing: Option<Failing>,
    budget: Budget,
    /// A caller's refresh that waits for the floor.
    asked: Option<Timestamp>,
    /// A refresh that a step of the wall clock brought forward.
    stepped: Option<Timestamp>,
    /// When the last of those started.
    last_stepped: Option<Timestamp>,
    /// The operator's, or the one after something was mended.
    forced: Option<Timestamp>,
    /// When the last attempt started that a mended secret or config brought forward.
    last_mended: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    started: Timestamp,
    /// Something was mended meanwhile, which the attempt may have read too early to see.
    mended: bool,
}

impl Refresh {
    /// A profile without a token: its first fetch is due at once.
    pub fn new(policy: Policy, now: Timestamp, seed: u64) -> Self {
        Self {
            policy,
            rng: StdRng::seed_from_u64(seed),
            generation: None,
            held: None,
            expired: false,
            flight: None,
            granted: None,
            born: now,
            settled: 0,
            failing: None,
            budget: Budget::default(),
            asked: None,
            stepped: None,
            last_stepped: None,
            forced: None,
            last_mended: None,
        }
    }

    // What to do.

    /// The next thing to do, if any. Poll until there is none after each fact.
    pub fn poll_action(&mut self, now: Timestamp) -> Option<Action> {
        if std::mem::take(&mut self.expired) {
            return Some(Action::Expire);
        }
        if self.flight.is_some() || now < self.due() {
            return None;
        }
        if self.stepped.is_some_and(|at| at <= now) {
            self.last_stepped = Some(now);
        }
        (self.asked, self.stepped, self.forced) = (None, None, None);
        self.flight = Some(Flight { started: now, mended: false });
        Some(Action::Fetch)
    }

    /// When [`Self::handle_timeout`] is due: none only while a fetch is in flight and no token is held.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let expiry = self.held.map(|held| held.life.served_until());
        match self.next_attempt() {
            Some(next) => Some(expiry.map_or(next, |expiry| expiry.min(next))),
            None => expiry,
        }
    }

    // Facts.

    /// Time has passed. Early and late calls are harmless.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        if self.held.is_some_and(|held| now >= held.life.served_until()) {
            self.take_away(now);
            self.expired = true;
        }
    }

    /// The attempt brought a token with this `life`, `novelty` against the one held.
    pub fn handle_granted(&mut self, now: Now, life: &Life, novelty: Novelty) -> Grant {
        self.handle_timeout(now.boot);
        let started = self.end_flight(now.boot).started;
        self.granted = Some((started, life.length));
        if now.boot >= life.served_until() {
            self.fail(Schedule::Transient, None, now.boot);
            return Grant::Late;
        }
        self.failing = None;
        let held = self.held;
        self.take_away(now.boot);
        // Whether or not the expiry of the last one was told: there is a token now.
        self.expired = false;
        let grant = match (novelty, held) {
            (Novelty::Same, Some(held)) => {
                self.held = Some(Held { life: *life, ..held });
                Grant::Prolonged(held.generation)
            }
            _ => {
                let generation = Generation::next(self.generation, now.wall);
                self.generation = Some(generation);
                let draw = Draw::new(&mut self.rng);
                self.held = Some(Held { generation, life: *life, draw, reported: false });
                Grant::Rotated(generation)
            }
        };
        // The clock may have been stepped while the request was under way.
        self.handle_wall_step(now);
        grant
    }

    /// The attempt failed.
    pub fn handle_failed(&mut self, now: Timestamp, failure: &Failure) {
        self.handle_timeout(now);
        let flight = self.end_flight(now);
        self.fail(failure.schedule, failure.retry_after, now);
        if flight.mended {
            self.handle_mended(now);
        }
    }

    /// A predecessor was lost by a fault of our own, after `failures` failed attempts: that counts as one more, so that a
    /// fault which comes back each time is met ever more rarely. `next` is the moment that the predecessor waited for, if
    /// it was not in the middle of an attempt: the provider may have asked for it. After [`Self::handle_adopted`], if the
    /// predecessor held a token.
    pub fn handle_lost(&mut self, now: Timestamp, failures: u32, next: Option<Timestamp>) {
        // More failures than that change no window any more.
        for _ in 0..=failures.min(16) {
            self.fail(Schedule::Transient, None, now);
        }
        if let Some(failing) = &mut self.failing {
            failing.count = failures.saturating_add(1);
            failing.retry = failing.retry.max(next.unwrap_or(now));
        }
    }

    /// A token was obtained elsewhere: before a restart, by another host. Its life is told on this boot's clock; one that
    /// starts in the future was told on another's, and would be served for too long.
    pub fn handle_adopted(&mut self, now: Now, generation: Generation, life: &Life) -> Adoption {
        self.handle_timeout(now.boot);
        let held_until = self.held.map(|held| held.life.served_until());
        let until = life.served_until();
        if life.requested.boot > now.boot
            || now.boot >= until
            || held_until.is_some_and(|held_until| held_until >= until)
        {
            return Adoption::Unneeded;
        }
        self.take_away(now.boot);
        self.expired = false;
        self.failing = None;
        self.generation = self.generation.max(Some(generation));
        self.granted = Some((life.requested.boot, life.length));
        self.held = Some(Held { generation, life: *life, draw: Draw::new(&mut self.rng), reported: false });
        // Nobody listened for steps while nobody ran.
        self.handle_wall_step(now);
        Adoption::Served
    }

    /// The machine of the process before this one stood like this: what it knew and waited for goes on. A token whose life
    /// is over by now is not served; a moment that has passed meanwhile is now. Before anything else is handled.
    pub fn handle_restored(&mut self, now: Now, standing: Standing) -> Adoption {
        let Standing { generation, held, granted, failing, budget, last_stepped, last_mended } = standing;
        self.generation = self.generation.max(generation);
        (self.held, self.granted, self.failing, self.budget) = (held, granted, failing, budget);
        (self.last_stepped, self.last_mended) = (last_stepped, last_mended);
        if held.is_none_or(|held| now.boot >= held.life.served_until()) {
            // Nobody has seen it served, so there is nothing to tell of its end.
            self.take_away(now.boot);
            return Adoption::Unneeded;
        }
        // Nobody listened for steps while nobody ran.
        self.handle_wall_step(now);
        Adoption::Served
    }

    /// The process ends in the middle of an attempt, whose outcome nobody will see: that counts as a failure, so that
    /// restarts are no way to ask a provider that hangs more often.
    pub fn handle_cut(&mut self, now: Timestamp) {
        if self.flight.is_some() {
            self.end_flight(now);
            self.fail(Schedule::Transient, None, now);
        }
    }

    /// What [`Self::standing`] would say after [`Self::handle_cut`], of the attempt in flight: to be recorded before it, for
    /// the case that the process dies of it.
    pub fn standing_if_cut(&mut self, now: Timestamp) -> Standing {
        let rng = StdRng::seed_from_u64(self.rng.next_u64());
        let mut other = Self { rng, ..*self };
        other.handle_cut(now);
        other.standing()
    }

    /// Somebody asks for a newer token.
    pub fn handle_demand(&mut self, now: Timestamp, demand: Demand) -> Answer {
        self.handle_timeout(now);
        if demand == Demand::Operator {
            if self.flight.is_none() {
                self.forced = Some(now);
            }
            return self.join(now);
        }
        match (demand, &mut self.held) {
            (Demand::Rejected(generation), Some(held)) if held.generation == generation => {
                // Restored by the life before this report, if at all.
                restore(&mut self.budget, held, now);
                held.reported = true;
            }
            (Demand::Rejected(_), _) => return Answer::Unneeded,
            (Demand::MinValidity(wanted), Some(held)) => {
                let last = self.granted.map_or(held.life.length, |(_, length)| length);
                if schedule::validity(&held.life, now) >= wanted || schedule::asks_too_much(wanted, last) {
                    return Answer::Unneeded;
                }
                restore(&mut self.budget, held, now);
            }
            // Without a token the next attempt is as early as the rules let it be.
            (Demand::MinValidity(_) | Demand::Operator, _) => return self.join(now),
        }
        let start = now.max(self.floor_end());
        if self.flight.is_some() || self.failing.is_some() || self.due() <= start {
            return self.join(now);
        }
        match (self.budget.next(), demand) {
            // Whoever comes back after the next regular refresh finds another token.
            (Some(retry), Demand::Rejected(_)) if retry > start => {
                Answer::Exhausted { retry: retry.min(self.due()) }
            }
            (Some(retry), _) if retry > start => Answer::Unneeded,
            _ => {
                self.budget.spend(start);
                self.asked = Some(start);
                self.join(now)
            }
        }
    }

    /// The policy changed: the token stays, and so does its draw. What the wall clock had brought forward was planned by
    /// the old one.
    pub fn handle_policy(&mut self, now: Now, policy: Policy) {
        self.policy = policy;
        self.handle_wall_step(now);
    }

    /// The identity changed: the token and the request in flight were another's. The next fetch is due at once; only the
    /// generation and the count of attempts go on. (The driver withdraws the token and drops the request.)
    pub fn handle_identity(&mut self, now: Timestamp, policy: Policy) {
        let seed = self.rng.next_u64();
        *self = Self { generation: self.generation, settled: self.settled, ..Self::new(policy, now, seed) };
    }

    /// The wall clock may have been stepped. When it reads the refresh point, which may be now, the token is refreshed, at
    /// most once in [`WALL_STEP_GAP`]; a later step back before that takes the wish back, and nothing else. (A paused
    /// machine that hears the time before its token's refresh point must not wait for its boot clock to come there: the
    /// token would be over by then.)
    pub fn handle_wall_step(&mut self, now: Now) {
        self.stepped = self.held.and_then(|held| {
            let point = schedule::refresh_point(&self.policy, held.draw, &held.life);
            let left = schedule::on_the_wall(point, &held.life).since(now.wall);
            let rested = self.last_stepped.map_or(now.boot, |last| last + WALL_STEP_GAP);
            (left.is_zero() || now.boot + left + WALL_SLACK < point)
                .then(|| (now.boot + left).max(rested).max(self.floor_end()))
        });
    }

    /// The secret or the config changed: a refused profile tries at once, one that fails otherwise too, since a reload may
    /// have mended a proxy or a CA file. Not before the moment that the provider asked for, and however often somebody
    /// mends, not twice within the floor.
    pub fn handle_mended(&mut self, now: Timestamp) {
        if let Some(flight) = &mut self.flight {
            flight.mended = true;
            return;
        }
        let Some(failing) = &mut self.failing else { return };
        failing.backoff.mended();
        let rested = self.last_mended.map_or(now, |last| last + self.policy.floor());
        let start = now.max(rested).max(failing.backoff.not_before().unwrap_or(now));
        if start < failing.retry {
            self.last_mended = Some(start);
            failing.retry = start;
        }
    }

    // What is known.

    /// When the next attempt starts; none while one is in flight.
    pub fn next_attempt(&self) -> Option<Timestamp> {
        self.flight.is_none().then(|| self.due())
    }

    /// Attempts that came to an end. It grows by one at each.
    pub const fn settled(&self) -> u64 {
        self.settled
    }

    /// Failed attempts since the last success.
    pub fn consecutive_failures(&self) -> u32 {
        self.failing.map_or(0, |failing| failing.count)
    }

    /// Whether the last attempt was refused, or could not read the secret: somebody has to mend something.
    pub fn is_refused(&self) -> bool {
        self.failing.is_some_and(|failing| failing.last == Schedule::Refusal)
    }

    /// All that is to outlive the process, for [`Self::handle_restored`]. Taken when an attempt has settled.
    pub fn standing(&self) -> Standing {
        Standing {
            generation: self.generation,
            held: self.held,
            granted: self.granted,
            failing: self.failing,
            budget: self.budget,
            last_stepped: self.last_stepped,
            last_mended: self.last_mended,
        }
    }

    /// How the profile does at `now`.
    pub fn health(&self, now: Timestamp) -> Health {
        let valid = self.held.as_ref().filter(|held| now < held.life.served_until());
        Health::of(valid, self.failing.as_ref())
    }

    // The rules.

    /// When the next fetch starts, were none in flight.
    fn due(&self) -> Timestamp {
        let scheduled = match (self.failing, self.held) {
            (Some(failing), _) => failing.retry,
            (None, None) => self.born.max(self.floor_end()),
            (None, Some(held)) => {
                let point =
                    schedule::refresh_point(&self.policy, held.draw, &held.life).max(self.floor_end());
                [self.asked, self.stepped].into_iter().flatten().fold(point, Timestamp::min)
            }
        };
        self.forced.map_or(scheduled, |forced| forced.min(scheduled))
    }

    /// From when on a fetch may follow the last success.
    fn floor_end(&self) -> Timestamp {
        self.granted.map_or(self.born, |(started, _)| started + self.policy.floor())
    }

    fn join(&self, now: Timestamp) -> Answer {
        let starts = self.flight.map_or_else(|| self.due().max(now), |flight| flight.started);
        Answer::Joined { attempt: self.settled + 1, starts }
    }

    fn end_flight(&mut self, now: Timestamp) -> Flight {
        self.settled += 1;
        self.flight.take().unwrap_or(Flight { started: now, mended: false })
    }

    fn fail(&mut self, schedule: Schedule, retry_after: Option<Duration>, now: Timestamp) {
        let (mut backoff, count) = self.failing.map_or((Backoff::default(), 0), |f| (f.backoff, f.count));
        let urgent = self.held.map_or(now, |held| schedule::urgent_from(&held.life));
        let retry = backoff.after(schedule, retry_after, now, urgent, &mut self.rng).max(self.floor_end());
        self.failing = Some(Failing { backoff, count: count.saturating_add(1), last: schedule, retry });
    }

    /// The held token goes, and with it what was planned for it.
    fn take_away(&mut self, now: Timestamp) {
        if let Some(held) = self.held.take() {
            restore(&mut self.budget, &held, now);
        }
        (self.asked, self.stepped) = (None, None);
    }
}

/// "Back to the start when a token has lived half its life unreported": looked at when it matters and when it goes.
fn restore(budget: &mut Budget, held: &Held, now: Timestamp) {
    if !held.reported && schedule::is_half_lived(&held.life, now) {
        budget.restore();
    }
}
