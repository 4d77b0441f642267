//! The machine against years of bad weather: outages, brown-outs, caching providers, restarts, suspends, steps of the wall
//! clock, reloads and demands, against [`Law`]'s bounds.

use std::time::Duration;

use bloom_agent::{
    clock::{Now, Timestamp, WallTime},
    failure::{Failure, FailureKind, Schedule},
    refresh::{Action, Adoption, Answer, Demand, Grant, Health, Novelty, Policy, Refresh, Standing},
    stored::{BootId, Digest, Mark, Record, RecordName, StoredToken},
    token::{AccessToken, Generation, Life, LifeSource, ProfileName},
};

use super::{
    DAY, HOUR, MINUTE, SECOND,
    dice::Dice,
    law::{Cause, Law, Served, demand},
    tally::Tally,
};

/// What the worlds met, over all seeds: a simulation that never gets there proves nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Met {
    steps: u64,
    fetches: u64,
    rotations: u64,
    prolonged: u64,
    late: u64,
    expired: u64,
    transient: u64,
    limited: u64,
    refused: u64,
    retry_after: u64,
    demands: u64,
    asked: u64,
    exhausted: u64,
    joined_retry: u64,
    forced: u64,
    stepped: u64,
    suspends: u64,
    adopted: u64,
    restarts: u64,
    restored: u64,
    restored_failing: u64,
    cut: u64,
    identities: u64,
    policies: u64,
    mended: u64,
}

/// How the provider does.
#[derive(Clone, Copy, Debug)]
enum Weather {
    Fair,
    /// Every attempt fails in this way.
    Outage(Fault),
    /// So many of a hundred attempts fail, in any way.
    BrownOut(u64),
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Unreachable,
    TimeOut,
    Unavailable,
    UnavailableFor(u64),
    TooMany,
    TooManyFor(u64),
    Refused,
    RefusedFor(u64),
    Secret,
}

const FAULTS: [Fault; 11] = [
    Fault::Unreachable,
    Fault::TimeOut,
    Fault::Unavailable,
    Fault::UnavailableFor(0),
    Fault::UnavailableFor(120),
    Fault::UnavailableFor(3_600),
    Fault::TooMany,
    Fault::TooManyFor(300),
    Fault::Refused,
    Fault::RefusedFor(900),
    Fault::Secret,
];

impl Fault {
    fn failure(self) -> Failure {
        use Schedule::{RateLimited, Refusal, Transient};
        let (kind, schedule, retry_after) = match self {
            Self::Unreachable | Self::TimeOut => (FailureKind::Unreachable, Transient, None),
            Self::Unavailable => (FailureKind::ProviderError, Transient, None),
            Self::UnavailableFor(asked) => (FailureKind::ProviderError, Transient, Some(asked)),
            Self::TooMany => (FailureKind::ProviderError, RateLimited, None),
            Self::TooManyFor(asked) => (FailureKind::ProviderError, RateLimited, Some(asked)),
            Self::Refused => (FailureKind::Refused, Refusal, None),
            Self::RefusedFor(asked) => (FailureKind::Refused, Refusal, Some(asked)),
            Self::Secret => (FailureKind::SecretUnreadable, Refusal, None),
        };
        Failure {
            kind,
            schedule,
            retry_after: retry_after.map(Duration::from_secs),
            code: None,
            text: "scripted".into(),
        }
    }
}

struct Request {
    started: Now,
    ends: Timestamp,
    end: Result<Life, Fault>,
}

fn boot() -> BootId {
    BootId::parse(&"0f".repeat(16)).unwrap()
}

/// What the manager keeps: what the last record says, and what the law and the world were when it was written.
struct Kept {
    standing: Standing,
    number: u64,
    law: Law,
    served: Option<Served>,
    last_generation: Option<Generation>,
}

struct World {
    dice: Dice,
    now: Timestamp,
    wall_ahead_ms: i64,
    policy: (f64, f64),
    floor: Duration,
    machine: Refresh,
    request: Option<Request>,
    served: Option<Served>,
    last_generation: Option<Generation>,
    weather: Weather,
    fair_from: Timestamp,
    caches: bool,
    issued: Option<Life>,
    lives: &'static [u64],
    length: Duration,
    /// The next disturbance, and their mean distance.
    next: Timestamp,
    pace: Duration,
    storm: Option<(Storm, Timestamp)>,
    law: Law,
    kept: Option<Kept>,
    suspended_at: Option<Timestamp>,
    met: Met,
    digest: u64,
}

#[derive(Clone, Copy)]
enum Storm {
    Rejecting,
    Greedy,
    /// Somebody hopes that a restart helps.
    Restarting,
}

impl World {
    fn new(seed: u64, lives: &'static [u64], floor: Duration, pace: Duration) -> Self {
        let mut dice = Dice(seed);
        let now = Timestamp::from_boot(dice.between(SECOND, DAY));
        let length = Duration::from_secs(dice.pick(lives));
        Self {
            now,
            wall_ahead_ms: 1_700_000_000_000,
            policy: (0.8, 0.05),
            floor,
            machine: Refresh::new(Policy::default().with_floor(floor), now, dice.next()),
            request: None,
            served: None,
            last_generation: None,
            weather: Weather::Fair,
            fair_from: now,
            caches: false,
            issued: None,
            lives,
            length,
            next: now + pace,
            pace,
            storm: None,
            law: Law::new(now, floor),
            kept: None,
            suspended_at: None,
            met: Met::default(),
            digest: 0,
            dice,
        }
    }

    fn clock(&self) -> Now {
        let wall = self.wall_ahead_ms + self.now.since_boot().as_millis() as i64;
        Now { boot: self.now, wall: WallTime::from_unix_millis(wall) }
    }

    fn run(&mut self, span: Duration) -> Result<(), String> {
        let end = self.now + span;
        while self.now < end {
            self.step().map_err(|what| format!("{what}\nat {:?}, in {:?}", self.now, self.machine))?;
        }
        Ok(())
    }

    /// One event: the earliest of the machine's timeout, the request's end and the next disturbance.
    fn step(&mut self) -> Result<(), String> {
        self.met.steps += 1;
        let timeout = self.machine.poll_timeout();
        demand!(timeout.is_some() || self.request.is_some(), "gave up: no timeout and no request");
        let ends = self.request.as_ref().map(|request| request.ends);
        let next = [timeout, ends].into_iter().flatten().fold(self.next, Timestamp::min);
        self.now = self.now.max(next);
        if ends.is_some_and(|ends| ends <= self.now) {
            self.end_request()?;
        } else if self.next <= self.now {
            self.disturb()?;
        }
        self.act()?;
        self.inspect()
    }

    /// What the rotator does after each event.
    fn act(&mut self) -> Result<(), String> {
        self.machine.handle_timeout(self.now);
        while let Some(action) = self.machine.poll_action(self.now) {
            match action {
                Action::Expire => self.expire()?,
                Action::Fetch => self.fetch()?,
            }
        }
        Ok(())
    }

    fn expire(&mut self) -> Result<(), String> {
        let served = self.served.take().ok_or("expired what is not served")?;
        demand!(self.now >= served.life.served_until(), "a valid token was taken away");
        let slept = self.suspended_at.is_some_and(|at| at >= served.life.requested.boot);
        let excused = self.law.retry.is_some() || self.request.is_some() || slept;
        demand!(excused || served.life.length < self.floor * 2, "expired although nothing had failed");
        self.law.expired(self.now, &served);
        self.met.expired += 1;
        Ok(())
    }

    fn fetch(&mut self) -> Result<(), String> {
        demand!(self.request.is_none(), "two requests in flight");
        let cause = self.law.fetched(self.now, self.policy, self.served.as_ref())?;
        self.met.stepped += u64::from(cause == Cause::Stepped);
        self.met.forced += u64::from(cause == Cause::Forced);
        self.met.fetches += 1;
        self.digest = self.digest.rotate_left(5) ^ self.now.since_boot().as_nanos() as u64;
        let started = self.clock();
        let (took, end) = self.respond(started);
        self.request = Some(Request { started, ends: self.now + took, end });
        Ok(())
    }

    fn respond(&mut self, started: Now) -> (Duration, Result<Life, Fault>) {
        if self.now >= self.fair_from {
            self.weather = Weather::Fair;
        }
        let fault = match self.weather {
            Weather::Fair => None,
            Weather::Outage(fault) => Some(fault),
            Weather::BrownOut(share) => self.dice.percent(share).then(|| self.dice.pick(&FAULTS)),
        };
        if let Some(fault) = fault {
            let took = match fault {
                Fault::TimeOut => 10 * SECOND,
                Fault::Secret => Duration::from_micros(50),
                _ => self.dice.between(Duration::from_millis(1), SECOND),
            };
            return (took, Err(fault));
        }
        let slow = self.dice.percent(3);
        let took = self.dice.between(Duration::from_millis(20), if slow { 9 * SECOND } else { SECOND });
        let cached = self.issued.filter(|life| self.caches && life.expires() > started.boot + SECOND);
        let life = match cached {
            // Whole seconds, rounded down, as providers do.
            Some(life) => Life {
                requested: started,
                length: Duration::from_secs(life.expires().since(started.boot).as_secs()),
                ..life
            },
            None => Life { requested: started, length: self.length, source: LifeSource::Provider },
        };
        (took, Ok(life))
    }

    fn end_request(&mut self) -> Result<(), String> {
        let Some(request) = self.request.take() else { return Ok(()) };
        self.settle(&request)?;
        self.keep();
        Ok(())
    }

    /// Notes what there is to record, as the rotator does when an attempt has settled.
    fn keep(&mut self) {
        let (law, served) = (self.law.recorded(), self.served);
        let (standing, number) = (self.machine.standing(), self.met.fetches);
        self.kept = Some(Kept { standing, number, law, served, last_generation: self.last_generation });
    }

    /// The way through the record and back.
    fn recorded(&self, standing: Standing, number: u64) -> Result<Standing, String> {
        let access_token = || AccessToken::parse(bytes::Bytes::from_static(b"t")).unwrap();
        let record = Record {
            name: RecordName { profile: ProfileName::parse("bloom").unwrap(), number },
            boot: boot(),
            identity: Digest::of([]),
            settings: Mark::of([0; 16], &[]),
            secret: None,
            standing,
            token: standing.held.map(|_| StoredToken { access_token: access_token(), scopes: Vec::new() }),
            failure: None,
        };
        let bytes = record.encode().map_err(|why| why.to_string())?;
        let read = Record::parse(&bytes, &boot(), self.now, bytes::Bytes::copy_from_slice);
        read.map(|record| record.standing).map_err(|why| format!("a record is refused: {why}"))
    }

    fn settle(&mut self, request: &Request) -> Result<(), String> {
        match request.end {
            Ok(life) => self.granted(request, life),
            Err(fault) => {
                let failure = fault.failure();
                let served = self.served;
                self.machine.handle_failed(self.now, &failure);
                let served = served.filter(|served| self.now < served.life.served_until());
                self.law.failed(self.now, failure.schedule, failure.retry_after, served.as_ref());
                match failure.schedule {
                    Schedule::Transient => self.met.transient += 1,
                    Schedule::RateLimited => self.met.limited += 1,
                    Schedule::Refusal => self.met.refused += 1,
                }
                self.met.retry_after += u64::from(failure.retry_after.is_some());
                Ok(())
            }
        }
    }

    fn granted(&mut self, request: &Request, life: Life) -> Result<(), String> {
        let same =
            self.caches && self.issued.is_some_and(|issued| issued.expires() > request.started.boot + SECOND);
        if !same {
            self.issued = Some(life);
        }
        let novelty = if same && self.served.is_some() { Novelty::Same } else { Novelty::New };
        let held = self.served.filter(|served| self.now < served.life.served_until());
        let grant = self.machine.handle_granted(self.clock(), &life, novelty);
        if let Grant::Late = grant {
            demand!(self.now >= life.served_until(), "a valid token was refused");
            self.met.late += 1;
            self.law.late(self.now, &life, held.as_ref());
            return Ok(());
        }
        demand!(self.now < life.served_until(), "an expired token was served");
        self.law.granted(self.now, &life, self.served.as_ref());
        let reported = match grant {
            Grant::Prolonged(generation) => {
                let held = held.ok_or("prolonged what is not held")?;
                demand!(novelty == Novelty::Same && generation == held.generation, "prolonged another");
                self.met.prolonged += 1;
                held.reported
            }
            Grant::Rotated(generation) => {
                demand!(novelty == Novelty::New || held.is_none(), "the same token is no rotation");
                demand!(Some(generation) > self.last_generation, "generations went back");
                self.met.rotations += 1;
                self.last_generation = Some(generation);
                false
            }
            Grant::Late => false,
        };
        let generation = self.last_generation.ok_or("served without a generation")?;
        self.served = Some(Served { generation, life, reported, draw: None });
        self.look_at_the_wall();
        Ok(())
    }

    /// After a step, a grant or an adoption: may or must the wall clock bring the refresh forward?
    fn look_at_the_wall(&mut self) {
        self.law.look_at_the_wall(self.clock(), self.policy, self.served.as_ref());
    }

    /// After every event: the machine's plan against the law's window, and what is served against time.
    fn inspect(&mut self) -> Result<(), String> {
        let now = self.now;
        demand!(
            self.served.is_none_or(|served| now < served.life.served_until()),
            "an expired token is served"
        );
        let health = match (self.served, self.law.retry) {
            (Some(_), None) => Health::Valid,
            (Some(_), Some(_)) => Health::Degraded,
            (None, None) => Health::Pending,
            (None, Some(_)) => Health::Unavailable,
        };
        demand!(self.machine.health(now) == health, "health should be {health:?}");
        let plan = self.machine.next_attempt();
        demand!(plan.is_none() == self.request.is_some(), "in flight, or not?");
        let Some(plan) = plan else { return Ok(()) };
        let (first, last) = self.law.window(now, self.policy, self.served.as_ref());
        demand!(plan > now, "due, and not done");
        demand!(first <= plan && plan <= last, "planned for {plan:?}, allowed is {first:?} to {last:?}");
        self.same_draw(plan)
    }

    /// A regular plan tells the token's place in the jitter window, which must stay, also over changes of the policy.
    fn same_draw(&mut self, plan: Timestamp) -> Result<(), String> {
        let law = &self.law;
        let irregular = law.retry.is_some() || law.asked.is_some() || law.step_may.is_some() || law.forced;
        let (at, jitter) = self.policy;
        let (floor_end, Some(served)) = (law.floor_end(), &mut self.served) else { return Ok(()) };
        if irregular
            || jitter == 0.0
            || plan <= floor_end
            || plan >= served.life.served_until() - (10 * SECOND).min(served.life.length / 20)
        {
            return Ok(());
        }
        let share = plan.since(served.life.requested.boot).as_secs_f64() / served.life.length.as_secs_f64();
        let draw = (share - at) / jitter;
        let known = *served.draw.get_or_insert(draw);
        demand!((draw - known).abs() < 1e-4, "drawn again: {known} became {draw}");
        Ok(())
    }

    fn disturb(&mut self) -> Result<(), String> {
        if let Some((storm, until)) = self.storm {
            self.storm = (self.now < until).then_some((storm, until));
            self.next = self.now + self.dice.between(5 * SECOND, MINUTE);
            return match storm {
                Storm::Rejecting => self.reject(),
                Storm::Greedy => self.want(self.length.mul_f64(0.85)),
                Storm::Restarting => self.restart(),
            };
        }
        self.next = self.now + self.dice.between(SECOND, self.pace * 2);
        match self.dice.below(100) {
            0..=24 => {
                self.weather = match self.dice.below(10) {
                    0..=3 => Weather::Outage(self.dice.pick(&FAULTS)),
                    4 | 5 => Weather::BrownOut(self.dice.pick(&[20, 50, 90])),
                    _ => Weather::Fair,
                };
                // Most are short, or the retries would be all that is simulated.
                let longest = if self.dice.percent(15) { 10 * HOUR } else { 20 * MINUTE };
                self.fair_from = self.now + self.dice.between(SECOND, longest);
                if self.dice.percent(50) {
                    self.next = self.now + self.dice.between(SECOND, longest);
                }
            }
            25..=39 => self.weather = Weather::Fair,
            40..=49 => return self.reject(),
            50..=59 => {
                let share = self.dice.pick(&[0.0, 0.1, 0.5, 0.85, 0.9, 0.95, 2.0]);
                return self.want(self.length.mul_f64(share));
            }
            60..=62 => {
                let storm = self.dice.pick(&[Storm::Rejecting, Storm::Greedy, Storm::Restarting]);
                self.storm = Some((storm, self.now + self.dice.between(MINUTE, HOUR)));
                if matches!(storm, Storm::Restarting) {
                    // There is a reason to, and a failing attempt that shows it.
                    self.weather = Weather::Outage(self.dice.pick(&FAULTS));
                    self.fair_from = self.now + HOUR;
                    return self.operator();
                }
            }
            63..=66 => return self.operator(),
            67..=73 => self.step_wall(),
            74..=79 => self.suspend(),
            80..=84 => self.restart()?,
            85..=87 => self.change_policy(),
            88..=89 => self.change_identity(),
            90..=94 => self.mend(),
            95 | 96 => self.caches = self.dice.percent(12),
            97 | 98 => self.length = Duration::from_secs(self.dice.pick(self.lives)),
            _ => self.issued = None,
        }
        Ok(())
    }

    fn reject(&mut self) -> Result<(), String> {
        let current = self.served.filter(|served| self.now < served.life.served_until());
        let other = Generation::from_u64(self.dice.below(1_000));
        let generation = current.map_or(other, |s| s.generation);
        let generation = if self.dice.percent(10) { other } else { generation };
        if let Some(current) = current.filter(|current| current.generation == generation) {
            self.law.restore_budget(self.now, Some(&current));
            if let Some(served) = &mut self.served {
                served.reported = true;
            }
            return self.ask(Demand::Rejected(generation), true);
        }
        self.ask(Demand::Rejected(generation), false)
    }

    fn want(&mut self, wanted: Duration) -> Result<(), String> {
        let current = self.served.filter(|served| self.now < served.life.served_until());
        let Some(current) = current else { return self.ask(Demand::MinValidity(wanted), true) };
        let last = self.law.last_life.unwrap_or(current.life.length);
        let useful = current.life.expires().since(self.now) < wanted && wanted <= last - last / 10;
        if useful {
            self.law.restore_budget(self.now, Some(&current));
        }
        self.ask(Demand::MinValidity(wanted), useful)
    }

    /// A caller's demand; `counts` if by the contract it wants a newer token than there is.
    fn ask(&mut self, demand: Demand, counts: bool) -> Result<(), String> {
        self.met.demands += 1;
        // What is due now was to be done before.
        self.act()?;
        let before = self.machine.next_attempt();
        let answer = self.machine.handle_demand(self.now, demand);
        let after = self.machine.next_attempt();
        let start = self.now.max(self.law.floor_end());
        let allowed = self.law.budget_allows(start);
        let moved = after != before;
        demand!(!moved || counts && self.law.retry.is_none() && allowed, "moved forward by {demand:?}");
        match answer {
            Answer::Joined { attempt, starts } => {
                demand!(counts, "joined without need");
                demand!(attempt == self.machine.settled() + 1, "joined attempt {attempt}");
                let expected = self.request.as_ref().map(|request| request.started.boot).or(after);
                demand!(Some(starts) == expected, "joined at {starts:?}, starts at {expected:?}");
                self.met.joined_retry += u64::from(self.law.retry.is_some());
                if moved {
                    demand!(after == Some(start), "asked for {start:?}, planned for {after:?}");
                    self.law.asked(start);
                    self.met.asked += 1;
                }
            }
            Answer::Exhausted { retry } => {
                demand!(matches!(demand, Demand::Rejected(_)) && counts, "only a report can be exhausted");
                demand!(!allowed && self.law.retry.is_none() && retry > self.now, "exhausted too early");
                self.met.exhausted += 1;
            }
            Answer::Unneeded => {
                let greedy = matches!(demand, Demand::MinValidity(_)) && !allowed;
                demand!(!counts || greedy, "a demand was not heard");
            }
        }
        Ok(())
    }

    fn operator(&mut self) -> Result<(), String> {
        self.act()?;
        let answer = self.machine.handle_demand(self.now, Demand::Operator);
        let expected = self.request.as_ref().map_or(self.now, |request| request.started.boot);
        let attempt = self.machine.settled() + 1;
        demand!(answer == Answer::Joined { attempt, starts: expected }, "the operator's word: {answer:?}");
        if self.request.is_none() {
            self.law.force(self.now);
        }
        Ok(())
    }

    fn step_wall(&mut self) {
        let far = self.dice.pick(&[SECOND, MINUTE, HOUR, 20 * HOUR, 400 * DAY]);
        let by = self.dice.between(Duration::ZERO, far).as_millis() as i64;
        self.wall_ahead_ms += if self.dice.percent(50) { by } else { -by };
        self.machine.handle_wall_step(self.clock());
        self.look_at_the_wall();
        if self.dice.percent(50) {
            // Clocks that step once step again.
            self.next = self.now + self.dice.between(SECOND, 5 * MINUTE);
        }
    }

    /// Nothing runs meanwhile; the boot clock and the wall clock go on.
    fn suspend(&mut self) {
        self.met.suspends += 1;
        self.suspended_at = Some(self.now);
        self.now = self.now + self.dice.between(MINUTE, 3 * self.pace.min(12 * HOUR));
        self.suspended_at = Some(self.now);
    }

    /// Another process, with the record of the last one, with a token that somebody else still had, or with nothing.
    fn restart(&mut self) -> Result<(), String> {
        self.met.restarts += 1;
        let cut = self.request.take().is_some();
        if cut && self.dice.percent(80) {
            // In order, not by a crash: what is in flight is accounted for.
            self.met.cut += 1;
            self.machine.handle_cut(self.now);
            let served = self.served.filter(|served| self.now < served.life.served_until());
            self.law.failed(self.now, Schedule::Transient, None, served.as_ref());
            self.keep();
        } else if cut {
            // Whoever crashes in the middle of an attempt makes it again.
            self.law.licences.push_back(self.now);
        }
        let (at, jitter) = self.policy;
        let policy = Policy::new(at, jitter).map_err(|fault| fault.to_string())?.with_floor(self.floor);
        self.machine = Refresh::new(policy, self.now, self.dice.next());
        let kept = self.kept.take();
        match (kept, self.dice.below(100)) {
            (Some(kept), 0..=79) => self.restore(kept),
            (_, 80..=94) => self.adopt(),
            _ => {
                self.law = Law::new(self.now, self.floor);
                // Without a record the generation starts again: the wall clock is all there is.
                (self.served, self.last_generation) = (None, None);
                Ok(())
            }
        }
    }

    /// The rules go on as if there had been no restart, but for what was planned since the record was written.
    fn restore(&mut self, kept: Kept) -> Result<(), String> {
        let Kept { standing, number, law, served, last_generation } = kept;
        let adoption = self.machine.handle_restored(self.clock(), self.recorded(standing, number)?);
        self.met.restored += 1;
        self.met.restored_failing += u64::from(law.retry.is_some());
        self.law.restored(self.now, law);
        self.served = served.filter(|served| self.now < served.life.served_until());
        let valid = self.served.is_some();
        demand!((adoption == Adoption::Served) == valid, "{adoption:?} of a token that is valid: {valid}");
        self.met.adopted += u64::from(valid);
        if !valid {
            self.law.restore_budget(self.now, served.as_ref());
        }
        demand!(self.machine.standing().generation == last_generation, "a generation was forgotten");
        self.last_generation = last_generation;
        self.look_at_the_wall();
        self.keep();
        Ok(())
    }

    fn adopt(&mut self) -> Result<(), String> {
        self.law = Law::new(self.now, self.floor);
        if let Some(kept) = self.served.take() {
            let adoption = self.machine.handle_adopted(self.clock(), kept.generation, &kept.life);
            let valid = self.now < kept.life.served_until();
            demand!(
                (adoption == Adoption::Served) == valid,
                "{adoption:?} of a token that is valid: {valid}"
            );
            if valid {
                self.met.adopted += 1;
                self.served = Some(Served { reported: false, draw: None, ..kept });
                self.law.last_success = Some(kept.life.requested.boot);
                self.law.last_life = Some(kept.life.length);
                self.look_at_the_wall();
            }
        }
        self.last_generation = self.served.map(|served| served.generation);
        Ok(())
    }

    fn change_policy(&mut self) {
        self.met.policies += 1;
        self.policy = self.dice.pick(&[(0.8, 0.05), (0.5, 0.1), (0.1, 0.05), (0.95, 0.05), (0.9, 0.0)]);
        let (at, jitter) = self.policy;
        self.machine.handle_policy(self.clock(), Policy::new(at, jitter).unwrap().with_floor(self.floor));
        self.look_at_the_wall();
    }

    fn change_identity(&mut self) {
        self.met.identities += 1;
        (self.request, self.served, self.issued, self.kept) = (None, None, None, None);
        self.law = Law::new(self.now, self.floor);
        let (at, jitter) = self.policy;
        let policy = Policy::new(at, jitter).unwrap().with_floor(self.floor);
        self.machine.handle_identity(self.now, policy);
    }

    fn mend(&mut self) {
        self.met.mended += 1;
        self.weather = Weather::Fair;
        if self.request.is_some() {
            // The flight may have read the old secret; told in a test of its own.
            return;
        }
        let plan = self.machine.next_attempt();
        self.law.mended(self.now, |at_once| plan.is_some_and(|plan| at_once < plan));
        self.machine.handle_mended(self.now);
    }
}

/// What a seed's world comes to after `span`.
pub(crate) fn a_seed(seed: u64, span: Duration) -> Result<Tally, String> {
    let mut world = World::of_days(seed);
    let end = world.run(span);
    end.map(|()| world.met.tally(span))
}

/// The same with lives of seconds.
pub(crate) fn a_short_seed(seed: u64, span: Duration) -> Result<Tally, String> {
    const SHORT: &[u64] = &[1, 2, 5, 9, 10, 11, 12, 20, 30, 59];
    let floor = if seed.is_multiple_of(2) { 10 * SECOND } else { SECOND };
    let mut world = World::new(seed, SHORT, floor, 10 * MINUTE);
    let end = world.run(span);
    end.map(|()| world.met.tally(span))
}

impl World {
    fn of_days(seed: u64) -> Self {
        // Days mostly, as documented; hours and Hydra's 3599 s in some, for they make the most events.
        const DAYS: &[u64] = &[86_400, 86_400, 36_000, 604_800, 2_592_000];
        const HOURS: &[u64] = &[3_599, 7_200, 14_400];
        let lives = if seed.is_multiple_of(8) { HOURS } else { DAYS };
        Self::new(seed, lives, 10 * SECOND, 6 * HOUR)
    }
}

impl Met {
    fn tally(&self, span: Duration) -> Tally {
        let mut tally = Tally::default();
        macro_rules! counts { ($($field:ident)*) => { $(tally.count(stringify!($field), self.$field);)* } }
        counts!(steps fetches rotations prolonged late expired transient limited refused retry_after demands asked
                exhausted joined_retry forced stepped suspends adopted restarts restored restored_failing cut identities
                policies mended);
        tally.count("hours", span.as_secs() / 3_600);
        tally
    }
}
