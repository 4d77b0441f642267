//! The rotator's own task, with its select loop, its store and its record, between a simulated host, a simulated provider
//! and its callers. After every event:
//!
//! - what readers get is held against what was granted: nothing expired, nothing of another identity, nothing lost;
//! - what is planned, and each request that is made, against [`Law`];
//! - the time without a token against the provider's answers.

use std::{
    collections::VecDeque,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bloom_agent::{
    clock::{Clock as _, Now, Timestamp},
    failure::Schedule,
    refresh::{Answer, Demand, Health, Policy},
    rotator::{Handle, Preserve, Rotator, Settings, State, Task, rotator},
    store::{self, Identity, NoToken, Phase, Reader},
    stored::{BootId, Digest, Mark, Record, RecordName, StoredToken, Unusable},
    token::{Generation, Life, ProfileName, Reply, Token},
};

use super::{
    MINUTE, SECOND,
    dice::Dice,
    host::Host,
    law::{Cause, Law, Served, demand},
    provider::{Provider, Seen, Told},
    tally::Tally,
};

const FLOOR: Duration = Duration::from_secs(10);

/// What the manager keeps of the profile.
#[derive(Default)]
struct Sink(Mutex<Option<State>>);

impl Preserve for Sink {
    fn preserve(&self, _: &ProfileName, state: State) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }
}

impl Sink {
    fn take(&self) -> Option<State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What the last record says, and what the law was when it was written.
struct Kept {
    state: State,
    law: Law,
    token: Option<Granted>,
    last_generation: Option<Generation>,
    last_schedule: Option<Schedule>,
}

/// The token that callers are to get, and what the provider knows of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    pub(super) served: Served,
    serial: u64,
    minted: Duration,
    /// The host slept, or its clocks missed something, while it was held.
    excused: bool,
    /// The host's clocks missed something: it may be stale without anybody's knowledge.
    paused: bool,
    stale_since: Option<Duration>,
    /// The wall clock was right from when it was asked for until it came.
    dated: bool,
}

/// A time without a token.
#[derive(Clone, Copy, Debug)]
struct Gap {
    from: Duration,
    why: Why,
    /// The host slept or was late meanwhile, too.
    excused: bool,
}

/// A time sync after a pause of the machine.
#[derive(Clone, Copy, Debug)]
struct Sync {
    at: Duration,
    /// Until when the agent may rest, since it asked for a token less than 10 min before.
    rest: Duration,
}

/// Why there may be a time without a token. Later ones outweigh earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    /// There is no reason.
    None,
    /// The provider's lives are under 30 s: shorter than three floors.
    ShortLife,
    /// The first token of all, or of another identity, or after a record was lost.
    Cold,
    /// The host slept, or its timers were late, or the process was restarted in the middle of a request.
    Host,
    /// Some request since the token came was not answered with a token within a second.
    Provider,
}

impl Why {
    fn name(self) -> &'static str {
        match self {
            Self::None => UP,
            Self::ShortLife => "without a token while the provider was up, lives under 30 s",
            Self::Cold => "without a token at a cold start or a new identity, provider up",
            Self::Host => {
                "without a token from when the host woke, was late or restarted in a request, provider up"
            }
            Self::Provider => "without a token while the provider failed or refused",
        }
    }
}

/// How soon a token heals after a pause, once the rest of 10 min is over that two refreshes for steps of the wall clock
/// keep: an exchange and the floor before it, and what a restart in the middle of it costs.
const HEALS: Duration = Duration::from_secs(15);
/// What takes so long.
pub(crate) const HEALED: &str =
    "from the time sync after a pause of the machine to a token for one that was over";

/// What must never last.
pub(crate) const UP: &str = "without a token while the provider was up, lives of 30 s and more";

type Waiting = Pin<Box<dyn Future<Output = Result<Arc<Token>, NoToken>> + Send>>;

/// One profile's years.
pub(super) struct World {
    pub(super) dice: Dice,
    pub(super) host: Host,
    pub(super) provider: Provider,
    boot: BootId,
    sink: Arc<Sink>,
    kept: Option<Kept>,
    number: u64,
    identity: Identity,
    pub(super) policy: (f64, f64),
    running: Option<Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>>>,
    handle: Handle,
    pub(super) reader: Reader,
    pub(super) law: Law,
    pub(super) token: Option<Granted>,
    last_generation: Option<Generation>,
    last_schedule: Option<Schedule>,
    flight: Option<Now>,
    /// The wall clock was right when it started.
    flight_dated: bool,
    /// Something was mended while the request was under way.
    flight_mended: bool,
    /// A change of the secret was noticed since the last attempt.
    noticed: bool,
    gap: Option<Gap>,
    /// Since then each request was answered with a token within a second.
    well_answered: bool,
    late_until: Duration,
    /// Since then (real) the host runs.
    awake_since: Duration,
    /// The wall clock is right again after a pause, since then.
    synchronized: Option<Sync>,
    /// When nothing ran, since the last time sync.
    stood_still: Vec<(Duration, Duration)>,
    waiters: Vec<(Waiting, Timestamp, Identity)>,
    pub(super) tally: Tally,
    today: (u64, u64),
    trace: Option<VecDeque<String>>,
    pub(super) digest: u64,
}

impl World {
    pub(super) fn new(seed: u64, length: u64, trace: bool) -> Result<Self, String> {
        let mut dice = Dice(seed ^ 0x5eed);
        let host = Host::new(dice.next());
        let provider = Provider::new(dice.next(), host.clone(), length);
        let now = host.now();
        let identity = Identity(1);
        let (publisher, reader) = store::cell(identity, now);
        let sink = Arc::new(Sink::default());
        let task = task(identity, (0.8, 0.05), &provider, &sink);
        let (first, handle) =
            rotator(task, Arc::new(host.clone()), publisher, dice.next()).map_err(|why| why.to_string())?;
        let mut world = Self {
            dice,
            host,
            provider,
            boot: boot_id(0),
            sink,
            kept: None,
            number: 0,
            identity,
            policy: (0.8, 0.05),
            running: Some(Box::pin(first.run())),
            handle,
            reader,
            law: Law::new(now.boot, FLOOR),
            token: None,
            last_generation: None,
            last_schedule: None,
            flight: None,
            flight_dated: false,
            flight_mended: false,
            noticed: false,
            gap: None,
            well_answered: true,
            late_until: Duration::ZERO,
            awake_since: Duration::ZERO,
            synchronized: None,
            stood_still: Vec::new(),
            waiters: Vec::new(),
            tally: Tally::default(),
            today: (0, 0),
            trace: trace.then(VecDeque::new),
            digest: 0,
        };
        world.gap = Some(Gap { from: world.host.real(), why: Why::Cold, excused: false });
        world.settle()?;
        Ok(world)
    }

    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let (real, now) = (self.host.real(), self.host.now());
            if trace.len() == 400 {
                trace.pop_front();
            }
            let (days, wall) = (real.as_secs_f64() / 86_400.0, now.wall);
            trace.push_back(format!(
                "day {days:.6} boot {:.3} wall {wall}: {}",
                now.boot.since_boot().as_secs_f64(),
                what()
            ));
        }
    }

    pub(super) fn traced(&self) -> String {
        self.trace
            .as_ref()
            .map_or(String::new(), |lines| lines.iter().map(|line| format!("{line}\n")).collect())
    }

    pub(super) fn fault(&mut self, name: &'static str) {
        self.tally.fault(name);
        self.note(|| format!("FAULT {name}"));
    }

    /// The real time of the next thing that happens by itself.
    pub(super) fn next(&self) -> Option<Duration> {
        let alarm = self.host.alarm().map(|at| self.host.real_of(at));
        let answer = self.provider.book().ends;
        let deadline = self.waiters.iter().map(|(_, deadline, _)| self.host.real_of(*deadline)).min();
        // A late timer must not hide the end of a token from the readers: it is looked at when it comes.
        let end = self.token.map(|token| self.host.real_of(token.served.life.served_until()));
        [alarm, answer, deadline, end].into_iter().flatten().filter(|at| *at > self.host.real()).min()
    }

    pub(super) fn now(&self) -> Timestamp {
        self.host.now().boot
    }

    pub(super) fn served(&self) -> Option<Served> {
        self.token.map(|token| token.served)
    }

    /// When the next attempt starts, as readers are told; none while one is in flight.
    pub(super) fn plan(&self) -> Option<Timestamp> {
        match self.reader.attempts().phase {
            Phase::Idle { next } => Some(next),
            Phase::InFlight => None,
        }
    }

    /// Lets the rotator run until it waits, and holds what it did against the contract.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        self.poll()?;
        self.judge()
    }

    /// Lets the rotator run until it waits.
    fn poll(&mut self) -> Result<(), String> {
        let Some(running) = &mut self.running else { return Err("nothing runs".into()) };
        self.host.forget_alarm();
        let mut context = Context::from_waker(Waker::noop());
        match std::panic::catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(&mut context))) {
            Ok(Poll::Pending) => Ok(()),
            Ok(Poll::Ready(end)) => Err(format!("the rotator ended: {end:?}")),
            // Its owner starts another one, when the world has taken note.
            Err(_) => {
                self.running = None;
                Ok(())
            }
        }
    }

    /// Takes note of what the provider saw, and looks at everything.
    fn judge(&mut self) -> Result<(), String> {
        let seen = std::mem::take(&mut self.provider.book().seen);
        // Between the answers of one instant the token may end.
        for seen in seen {
            match seen {
                Seen::Started(at) => self.started(at)?,
                Seen::Ended { told, took, requests, changed } => self.ended(told, took, requests, changed)?,
            }
        }
        self.expire();
        if self.running.is_none() {
            return self.succeed();
        }
        self.inspect()
    }

    fn started(&mut self, at: Now) -> Result<(), String> {
        demand!(self.flight.is_none(), "two requests in flight");
        self.expire();
        let served = self.served();
        let cause = self.law.fetched(at.boot, self.policy, served.as_ref())?;
        self.note(|| format!("a request starts: {cause:?}"));
        match cause {
            Cause::Forced => self.tally.count("attempts for the operator", 1),
            Cause::Asked => self.tally.count("attempts for callers", 1),
            Cause::Stepped => self.tally.count("attempts for steps of the wall clock", 1),
            Cause::Scheduled => {}
        }
        (self.flight, self.flight_dated) = (Some(at), self.host.is_right());
        self.digest = self.digest.rotate_left(5) ^ at.boot.since_boot().as_nanos() as u64;
        // Its record says what would be true if we died of it.
        let mut law = self.law.recorded();
        law.failed(at.boot, Schedule::Transient, None, served.as_ref());
        self.keep(law, Some(Schedule::Transient));
        Ok(())
    }

    fn ended(&mut self, told: Told, took: Duration, requests: u32, changed: bool) -> Result<(), String> {
        let Some(started) = self.flight.take() else { return Err("an answer to no request".into()) };
        self.note(|| format!("it ended after {took:?}: {told:?}"));
        self.requests(requests);
        self.tally.count("attempts", 1);
        self.noticed = false;
        self.expire();
        let (now, served) = (self.now(), self.served());
        if !matches!(told, Told::Token { .. }) || took > SECOND {
            self.well_answered = false;
            self.blame(Why::Provider);
        }
        match told {
            Told::Token { serial, minted, life } => return self.granted(started, serial, minted, life),
            Told::Failed(schedule, asked) => {
                self.law.failed(now, schedule, asked, served.as_ref());
                self.last_schedule = Some(schedule);
                self.tally.count("failed attempts", 1);
                if asked.is_some() {
                    self.tally.count("answers with a Retry-After that counts", 1);
                }
                if schedule == Schedule::Refusal && changed {
                    (self.flight_mended, self.noticed) = (true, true);
                }
                self.after_failure();
            }
            // The owner's business, or nobody's.
            Told::Panicked | Told::Dropped => {}
        }
        Ok(())
    }

    fn after_failure(&mut self) {
        if std::mem::take(&mut self.flight_mended) {
            let (now, after) = (self.now(), self.plan());
            // Where the next one starts in the same instant there is no plan to be seen.
            self.law.mended(now, |at_once| after.is_none_or(|after| after == at_once));
        }
        self.keep(self.law.recorded(), self.last_schedule);
    }

    fn granted(&mut self, started: Now, serial: u64, minted: Duration, life: Life) -> Result<(), String> {
        let now = self.now();
        self.flight_mended = false;
        demand!(life.requested == started, "a life counts from its request");
        let fresh = Served { generation: Generation::from_u64(0), life, reported: false, draw: None };
        if !fresh.is_valid(now) {
            self.tally.count("tokens that had expired on the way", 1);
            let served = self.served();
            self.law.late(now, &life, served.as_ref());
            self.last_schedule = Some(Schedule::Transient);
            self.blame(Why::Provider);
            self.keep(self.law.recorded(), self.last_schedule);
            return Ok(());
        }
        let before = self.token.take();
        let (last, quiet) = (self.last_schedule, self.law.not_before);
        self.law.granted(now, &life, before.map(|token| token.served).as_ref());
        self.last_schedule = None;
        let Some(token) = self.reader.current(self.identity, now) else {
            return Err("a granted token is not served".into());
        };
        demand!(token.access_token.expose_secret() == format!("t{serial}"), "another token is served");
        let same = before.filter(|before| before.serial == serial);
        let reported = match same {
            Some(before) => {
                demand!(token.generation == before.served.generation, "the same token is no rotation");
                self.tally.count("same tokens again", 1);
                before.served.reported
            }
            None => {
                demand!(Some(token.generation) > self.last_generation, "generations went back");
                self.tally.count("rotations", 1);
                false
            }
        };
        if let Some(Granted { stale_since: Some(since), dated: true, .. }) = before {
            self.tally.count("tokens that a paused machine did not know to be over", 1);
            self.heal(since)?;
        }
        self.last_generation = Some(token.generation);
        let served = Served { generation: token.generation, life, reported, draw: None };
        let dated = self.flight_dated && self.host.is_right();
        self.token = Some(Granted {
            served,
            serial,
            minted,
            excused: self.is_late(),
            paused: false,
            stale_since: None,
            dated,
        });
        if let Some(gap) = self.gap.take() {
            self.close(gap, last, quiet)?;
        }
        self.well_answered = true;
        self.law.look_at_the_wall(self.host.now(), self.policy, Some(&served));
        self.keep(self.law.recorded(), None);
        Ok(())
    }

    /// "After a VM pause the agent heals at the first time sync": a token that was over `since` then (real) has been
    /// replaced. What of that time the host slept is not counted.
    fn heal(&mut self, since: Duration) -> Result<(), String> {
        let Some(Sync { at, rest }) = self.synchronized.filter(|_| self.well_answered) else { return Ok(()) };
        let (from, real) = (since.max(at), self.host.real());
        let still: Duration =
            self.stood_still.iter().map(|(begin, end)| end.saturating_sub(from.max(*begin))).sum();
        let healed = real - from - still;
        self.tally.count("tokens healed by a time sync", 1);
        self.tally.lasted(HEALED, healed);
        let late = if self.is_late() { 31 * SECOND } else { Duration::ZERO };
        demand!(
            healed <= rest + HEALS + late,
            "a token that was over was kept for {healed:?} after the time sync"
        );
        Ok(())
    }

    /// The wall clock is set right.
    pub(super) fn synchronize(&mut self) -> Result<(), String> {
        self.host.synchronize();
        if self.synchronized.is_none() {
            let rest =
                self.law.last_fetch.map_or(Duration::ZERO, |last| (last + 10 * MINUTE).since(self.now()));
            self.synchronized = Some(Sync { at: self.host.real(), rest });
            self.stood_still.clear();
        }
        self.wall_moved()
    }

    /// The wall clock was set to something else.
    pub(super) fn wall_is_wrong(&mut self) {
        self.synchronized = None;
    }

    fn close(&mut self, gap: Gap, last: Option<Schedule>, quiet: Option<Timestamp>) -> Result<(), String> {
        let lasted = self.host.real().saturating_sub(gap.from);
        let well = self.provider.book().well_since.max(gap.from);
        if let (Why::Provider, false, Some(last)) = (gap.why, gap.excused, last) {
            let quiet = quiet.is_some_and(|quiet| self.host.real_of(quiet) > well);
            let name = match last {
                _ if quiet => {
                    "from the provider's recovery to a token, a Retry-After or a 429's rest running"
                }
                Schedule::Transient => "from the provider's recovery to a token, after transient failures",
                Schedule::RateLimited => "from the provider's recovery to a token, after 429",
                Schedule::Refusal => "from the provider's recovery to a token, after refusals",
            };
            self.tally.lasted(name, self.host.real().saturating_sub(well));
        }
        self.note(|| format!("a token again, after {lasted:?} ({:?})", gap.why));
        demand!(gap.why != Why::None, "{lasted:?} without a token, though the provider was up");
        self.tally.lasted(gap.why.name(), lasted);
        self.tally.count("times without a token", 1);
        Ok(())
    }

    fn blame(&mut self, why: Why) {
        if let Some(gap) = &mut self.gap {
            gap.why = gap.why.max(why);
        }
    }

    /// The host slept or was late: a token may be missed for that.
    pub(super) fn excuse(&mut self) {
        if let Some(token) = &mut self.token {
            token.excused = true;
        }
        self.awake_since = self.host.real();
        self.blame(Why::Host);
        if let Some(gap) = &mut self.gap {
            (gap.from, gap.excused) = (self.awake_since, true);
        }
    }

    fn expire(&mut self) {
        let now = self.now();
        let Some(token) = self.token.filter(|token| !token.served.is_valid(now)) else { return };
        self.note(|| "the token ends".into());
        self.token = None;
        self.law.expired(now, &token.served);
        self.tally.count("tokens that expired without a successor", 1);
        let why = match token {
            _ if !self.well_answered || self.law.retry.is_some() => Why::Provider,
            Granted { excused: true, .. } => Why::Host,
            _ if self.is_late() => Why::Host,
            _ if token.served.life.length < 30 * SECOND => Why::ShortLife,
            _ => Why::None,
        };
        let from = self.host.real_of(token.served.life.served_until()).max(self.awake_since);
        self.gap = Some(Gap { from, why, excused: token.excused || self.is_late() });
    }

    fn requests(&mut self, requests: u32) {
        let day = self.host.real().as_secs() / 86_400;
        if day != self.today.0 {
            self.today = (day, 0);
        }
        self.today.1 += u64::from(requests);
        self.tally.count("token requests", u64::from(requests));
        self.tally.at_most("token requests on the worst day", self.today.1);
    }

    /// A secret is about to be written. "While a profile is refused its secret file is watched, and a change is tried at
    /// once."
    pub(super) fn secret_changes(&mut self) {
        let refused = self.last_schedule == Some(Schedule::Refusal);
        if !refused || std::mem::replace(&mut self.noticed, true) {
            return;
        }
        self.note(|| "the secret changes while the profile is refused".into());
        if self.flight.is_some() {
            self.flight_mended = true;
        } else {
            let plan = self.plan();
            self.law.mended(self.now(), |at_once| plan.is_some_and(|plan| at_once < plan));
        }
    }

    fn keep(&mut self, law: Law, last_schedule: Option<Schedule>) {
        if let Some(state) = self.sink.take() {
            let (token, last_generation) = (self.token, self.last_generation);
            self.kept = Some(Kept { state, law, token, last_generation, last_schedule });
        } else if let Some(kept) = &mut self.kept {
            // Two in one instant: the later state has come already.
            (kept.law, kept.token, kept.last_generation) = (law, self.token, self.last_generation);
            kept.last_schedule = last_schedule;
        }
    }

    /// What readers see, and what is planned.
    fn inspect(&mut self) -> Result<(), String> {
        let (now, real) = (self.now(), self.host.real());
        let current = self.reader.current(self.identity, now);
        match (&current, &mut self.token) {
            (None, None) => {}
            (Some(_), None) => return Err("an expired token is served".into()),
            (None, Some(_)) => return Err("a valid token is lost".into()),
            (Some(current), Some(token)) => {
                demand!(current.generation == token.served.generation, "another generation is served");
                demand!(current.life == token.served.life, "another life is served");
                let ends = token.minted + token.served.life.length;
                if real >= ends {
                    demand!(token.paused, "the provider has forgotten a token that is served");
                    token.stale_since.get_or_insert(ends);
                }
            }
        }
        let attempts = self.reader.attempts();
        let failing = self.law.retry.is_some();
        demand!((attempts.consecutive_failures > 0) == failing, "failing, or not?");
        let health = match (self.token.is_some(), failing) {
            (true, false) => Health::Valid,
            (true, true) => Health::Degraded,
            (false, false) => Health::Pending,
            (false, true) => Health::Unavailable,
        };
        let told = self.reader.health(self.identity, now);
        // Of an attempt that was cut off nobody knows the failure.
        let untold = failing && attempts.last_failure.is_none();
        demand!(told == health || untold, "health is {told:?}, should be {health:?}");
        self.wait()?;
        let plan = self.plan();
        demand!(plan.is_none() == self.flight.is_some(), "in flight, or not?");
        let Some(plan) = plan else { return Ok(()) };
        let served = self.served();
        let (first, last) = self.law.window(now, self.policy, served.as_ref());
        let late = if self.is_late() { 31 * SECOND } else { Duration::ZERO };
        // It does sleep, and not for longer than it says.
        let wakes = self.host.alarm().ok_or("nothing would wake it")?;
        demand!(wakes > now, "due, and not done");
        let until = served.map_or(plan, |served| plan.min(served.life.served_until()));
        demand!(wakes <= until + late, "it sleeps until {wakes:?}, and {until:?} is due");
        // What is due is done when the late timer comes.
        let overdue = plan <= now && !late.is_zero();
        demand!(
            overdue || first <= plan && plan <= last,
            "planned for {plan:?}, allowed is {first:?} to {last:?}"
        );
        Ok(())
    }

    /// Timers are late, or were a moment ago.
    fn is_late(&self) -> bool {
        self.host.real() < self.late_until + 31 * SECOND
    }

    /// From now on, for so long, timers fire up to 30 s late.
    pub(super) fn timers_are_late(&mut self, span: Duration) -> Result<(), String> {
        self.late_until = self.host.real() + span;
        self.host.timers_are_late(self.late_until, 30 * SECOND);
        self.excuse();
        self.settle()
    }

    /// A caller waits for a token.
    pub(super) fn call(&mut self) {
        if self.waiters.len() >= 4 {
            return;
        }
        let deadline = self.now() + self.dice.between(SECOND, 30 * SECOND);
        let (reader, host, identity) = (self.reader.clone(), self.host.clone(), self.identity);
        let waiting = async move { reader.wait(identity, &host, deadline).await };
        self.waiters.push((Box::pin(waiting), deadline, identity));
        self.tally.count("calls of GetToken", 1);
    }

    fn wait(&mut self) -> Result<(), String> {
        let (now, valid, identity) = (self.now(), self.token.is_some(), self.identity);
        let mut waiters = std::mem::take(&mut self.waiters);
        let mut wrong = None;
        waiters.retain_mut(|(waiting, deadline, of)| {
            match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(token)) if now < token.life.served_until() => false,
                Poll::Ready(Ok(_)) => {
                    wrong = Some("a caller got an expired token");
                    false
                }
                Poll::Ready(Err(_)) => {
                    if valid && *of == identity {
                        wrong = Some("a caller got an error while there is a valid token");
                    }
                    false
                }
                Poll::Pending => {
                    if valid && *of == identity {
                        wrong = Some("a caller waits while there is a valid token");
                    }
                    now < *deadline
                }
            }
        });
        self.waiters = waiters;
        wrong.map_or(Ok(()), |wrong| Err(wrong.into()))
    }

    /// A caller, or the operator, asks for a newer token.
    pub(super) fn ask(&mut self, wish: Demand) -> Result<(), String> {
        self.settle()?;
        let now = self.now();
        let served = self.served();
        let counts = match (wish, &served) {
            (Demand::Operator, _) | (Demand::MinValidity(_), None) => true,
            (Demand::Rejected(generation), Some(served)) => generation == served.generation,
            (Demand::Rejected(_), None) => false,
            (Demand::MinValidity(wanted), Some(served)) => {
                let last = self.law.last_life.unwrap_or(served.life.length);
                served.life.expires().since(now) < wanted && wanted <= last - last / 10
            }
        };
        if counts && wish != Demand::Operator {
            self.law.restore_budget(now, served.as_ref());
        }
        if let (Demand::Rejected(_), true, Some(token)) = (wish, counts, &mut self.token) {
            token.served.reported = true;
        }
        let (before, settled) = (self.plan(), self.reader.attempts().settled);
        let handle = self.handle.clone();
        let mut asking = Box::pin(async move { handle.demand(wish).await });
        let mut context = Context::from_waker(Waker::noop());
        let early = asking.as_mut().poll(&mut context);
        demand!(early.is_pending(), "answered before it was heard");
        self.poll()?;
        let Poll::Ready(Ok(answer)) = asking.as_mut().poll(&mut context) else {
            return Err("a demand is not answered".into());
        };
        self.tally.count("demands", 1);
        self.note(|| format!("{wish:?}: {answer:?}"));
        let start = now.max(self.law.floor_end());
        let allowed = self.law.budget_allows(start);
        // What was due already, and waited for a late timer, is nobody's doing.
        let moved = before.is_some_and(|before| before > now) && self.plan() != before;
        match (wish, answer) {
            (Demand::Operator, Answer::Joined { attempt, starts }) => {
                let in_flight = self.flight.map(|flight| flight.boot);
                demand!(attempt == settled + 1 && starts == in_flight.unwrap_or(now), "{answer:?}");
                if in_flight.is_none() {
                    self.law.force(now);
                }
            }
            (Demand::Operator, _) => return Err(format!("the operator's word: {answer:?}")),
            (_, Answer::Joined { attempt, starts }) => {
                demand!(counts, "joined without need");
                demand!(attempt == settled + 1, "joined attempt {attempt}");
                if moved {
                    demand!(self.law.retry.is_none() && allowed, "moved forward by {wish:?}");
                    demand!(starts == start, "asked for {start:?}, starts at {starts:?}");
                    self.law.asked(start);
                } else {
                    let expected =
                        self.flight.map(|flight| flight.boot).or(before.map(|before| before.max(now)));
                    demand!(Some(starts) == expected, "joined at {starts:?}, starts at {expected:?}");
                }
            }
            (Demand::Rejected(_), Answer::Exhausted { retry }) => {
                demand!(counts && !moved && !allowed && self.law.retry.is_none(), "exhausted too early");
                demand!(retry > now, "come back in the past");
                self.tally.count("reports beyond the budget", 1);
            }
            (_, Answer::Exhausted { .. }) => return Err("only a report can be exhausted".into()),
            (_, Answer::Unneeded) => {
                let greedy = matches!(wish, Demand::MinValidity(_)) && !allowed;
                demand!(!moved && (!counts || greedy), "a demand was not heard");
            }
        }
        self.judge()
    }

    /// The wall clock was changed; `told` is whether the kernel says so.
    pub(super) fn wall_moved(&mut self) -> Result<(), String> {
        self.expire();
        if self.flight.is_none() || self.token.is_some() {
            let served = self.served();
            self.law.look_at_the_wall(self.host.now(), self.policy, served.as_ref());
        }
        self.settle()
    }

    /// The host's clocks miss what goes by.
    pub(super) fn pause(&mut self, by: Duration) -> Result<(), String> {
        let late = self.is_late();
        self.host.pause(by);
        if late {
            // A timer that is late is so by the boot clock, which saw nothing.
            self.late_until = self.late_until.max(self.host.real());
        }
        self.provider.book().broken = true;
        self.synchronized = None;
        if let Some(token) = &mut self.token {
            token.paused = true;
        }
        self.excuse();
        self.settle()
    }

    /// Nothing runs meanwhile, and all clocks go on. `breaks` is whether connections end.
    pub(super) fn sleep(&mut self, by: Duration, breaks: bool) {
        self.stand_still(by);
        self.provider.book().broken |= breaks;
        self.excuse();
    }

    fn stand_still(&mut self, by: Duration) {
        let begin = self.host.real();
        self.host.go_to(begin + by);
        if self.synchronized.is_some() {
            self.stood_still.push((begin, begin + by));
        }
    }

    /// A reload, of the same identity or of another.
    pub(super) fn reload(&mut self, policy: (f64, f64), other: bool) -> Result<(), String> {
        self.settle()?;
        self.policy = policy;
        let before = self.plan();
        if other {
            self.identity = Identity(self.identity.0 + 1);
        }
        let handle = self.handle.clone();
        let task = task(self.identity, policy, &self.provider, &self.sink);
        let mut telling = Box::pin(async move { handle.reconfigure(task).await });
        let mut context = Context::from_waker(Waker::noop());
        let _heard = telling.as_mut().poll(&mut context);
        if other {
            self.provider.book().forget_issued();
            (self.token, self.kept, self.last_schedule) = (None, None, None);
            self.law = Law::new(self.now(), FLOOR);
            self.gap = Some(Gap { from: self.host.real(), why: Why::Cold, excused: false });
            self.well_answered = true;
            demand!(self.reader.current(self.identity, self.now()).is_none(), "a stranger's token");
            (self.noticed, self.flight_mended) = (false, false);
            self.poll()?;
            self.sink_follows();
        } else {
            self.noticed = false;
            if self.flight.is_some() {
                self.flight_mended = true;
            } else {
                self.law.mended(self.now(), |at_once| before.is_some_and(|before| at_once < before));
            }
            self.expire();
            let served = self.served();
            self.law.look_at_the_wall(self.host.now(), policy, served.as_ref());
            self.poll()?;
        }
        demand!(telling.as_mut().poll(&mut context).is_ready(), "a reload is not heard");
        self.judge()
    }

    /// States of an identity that is gone are nobody's.
    fn sink_follows(&mut self) {
        if let Some(state) = self.sink.take().filter(|state| state.identity == self.identity) {
            self.sink.preserve(&name(), state);
        }
    }

    /// The process ends and another takes its place.
    pub(super) fn restart(&mut self, how: Restart) -> Result<(), String> {
        self.settle()?;
        self.waiters.clear();
        let in_flight = self.flight.is_some();
        if how == Restart::Orderly {
            // Its last word: what was in flight is accounted for.
            self.running = None;
            if in_flight {
                let (now, served) = (self.now(), self.served());
                self.law.failed(now, Schedule::Transient, None, served.as_ref());
                self.keep(self.law.recorded(), Some(Schedule::Transient));
            }
        } else {
            self.running = None;
            // What it would have said when it was dropped was not said.
            let _unsaid = self.sink.take();
        }
        self.provider.book().seen.clear();
        if in_flight {
            self.requests(1);
            self.flight = None;
            self.excuse();
        }
        (self.flight_mended, self.noticed) = (false, false);
        let pause = self.dice.between(Duration::from_millis(50), 5 * SECOND);
        if how == Restart::Reboot {
            self.host.reboot();
            self.boot = boot_id(self.dice.next());
        } else {
            self.stand_still(pause);
        }
        self.excuse();
        let now = self.now();
        let kept = self.kept.take();
        let record = match kept {
            Some(kept) => self.through_the_record(kept, how)?,
            None => None,
        };
        let mut rotator = self.start(None)?;
        match record {
            Some((kept, state)) => {
                let changed = self.dice.percent(10);
                let settings = if changed { Settings::Changed } else { Settings::Same };
                let retry = state.standing.failing.map(|failing| failing.retry);
                self.law.restored(now, kept.law);
                let before = self.token.take();
                self.token = kept.token.filter(|token| token.served.is_valid(now));
                if let (Some(token), Some(before)) = (&mut self.token, before) {
                    token.excused = true;
                    (token.paused, token.stale_since) = (before.paused, before.stale_since);
                }
                if let (None, Some(token)) = (&self.token, kept.token) {
                    self.law.restore_budget(now, Some(&token.served));
                    let from = self.host.real_of(token.served.life.served_until());
                    self.gap.get_or_insert(Gap { from, why: Why::Host, excused: true });
                }
                (self.last_generation, self.last_schedule) = (kept.last_generation, kept.last_schedule);
                let served = self.served();
                self.law.look_at_the_wall(self.host.now(), self.policy, served.as_ref());
                if changed {
                    self.law.mended(now, |at_once| retry.is_some_and(|retry| at_once < retry));
                }
                let fits = state.secret.as_ref().is_none_or(|mark| self.provider.book().secrets.fit(mark));
                if self.last_schedule == Some(Schedule::Refusal) && !fits {
                    self.noticed = true;
                    self.law.mended(now, |at_once| retry.is_some_and(|retry| at_once < retry));
                }
                rotator.restore(state, settings);
                self.tally.count("records taken over", 1);
            }
            None => {
                self.law = Law::new(now, FLOOR);
                (self.token, self.last_generation, self.last_schedule) = (None, None, None);
                let from = self.host.real();
                self.gap = Some(Gap { from, why: Why::Cold, excused: false });
                self.well_answered = true;
            }
        }
        self.running = Some(Box::pin(rotator.run()));
        self.settle()
    }

    fn start(&mut self, lost: Option<(&store::Attempts, Option<Arc<Token>>)>) -> Result<Rotator, String> {
        let (publisher, reader) = store::cell(self.identity, self.host.now());
        let task = task(self.identity, self.policy, &self.provider, &self.sink);
        let seed = self.dice.next();
        let (mut rotator, handle) = rotator(task, Arc::new(self.host.clone()), publisher, seed)
            .map_err(|why| format!("no rotator: {why}"))?;
        if let Some((lost, held)) = lost {
            rotator.succeed(lost, held);
        }
        (self.handle, self.reader) = (handle, reader);
        Ok(rotator)
    }

    /// What the manager kept, in the form that it keeps it in.
    fn through_the_record(&mut self, kept: Kept, how: Restart) -> Result<Option<(Kept, State)>, String> {
        self.number += 1;
        let State { standing, token, failure, secret, .. } = kept.state.clone();
        let record = Record {
            name: RecordName { profile: name(), number: self.number },
            boot: boot_id_of(how, self.boot),
            identity: Digest::of([]),
            settings: Mark::of([0; 16], &[]),
            secret,
            standing,
            token: token.map(|token| StoredToken {
                access_token: token.access_token.clone(),
                scopes: token.scopes.clone(),
            }),
            failure: failure.as_deref().cloned(),
        };
        let mut bytes = record.encode().map_err(|why| why.to_string())?;
        if how == Restart::Damaged {
            let (at, bit) = (self.dice.below(bytes.len() as u64) as usize, self.dice.below(8));
            bytes[at] ^= 1 << bit;
        }
        let read = Record::parse(&bytes, &self.boot, self.now(), bytes::Bytes::copy_from_slice);
        match (how, read) {
            (Restart::Damaged, Err(_)) | (Restart::Reboot, Err(Unusable::OtherBoot)) => Ok(None),
            (Restart::Damaged | Restart::Reboot, read) => Err(format!("a bad record: {:?}", read.is_ok())),
            (_, Err(why)) => Err(format!("a record is refused: {why}")),
            (_, Ok(record)) => {
                let token = record.token.zip(record.standing.held).map(|(token, held)| {
                    Arc::new(Token {
                        name: name(),
                        generation: held.generation,
                        access_token: token.access_token,
                        scopes: token.scopes,
                        audience: None,
                        life: held.life,
                        reply: Reply::default(),
                    })
                });
                let state = State {
                    identity: self.identity,
                    standing: record.standing,
                    token,
                    failure: record.failure.map(Arc::new),
                    secret: record.secret,
                };
                Ok(Some((kept, state)))
            }
        }
    }

    /// The rotator was lost by a fault of our own: what its owner does then.
    fn succeed(&mut self) -> Result<(), String> {
        self.waiters.clear();
        let (lost, now) = (self.reader.attempts(), self.now());
        let held = self.reader.current(self.identity, now);
        demand!(held.is_some() == self.token.is_some(), "a token was lost with its rotator");
        let served = self.served();
        // The successor knows how often it failed, and not how: as so many transient failures.
        let before = lost.consecutive_failures;
        let old = std::mem::replace(&mut self.law, Law::new(now, FLOOR));
        (self.law.recent, self.law.licences, self.law.last_fetch) =
            (old.recent, old.licences, old.last_fetch);
        if let Some(served) = &served {
            (self.law.last_success, self.law.last_life) =
                (Some(served.life.requested.boot), Some(served.life.length));
            if let Some(token) = &mut self.token {
                (token.served.reported, token.served.draw) = (false, None);
            }
        }
        for _ in 0..=before.min(16) {
            self.law.failed(now, Schedule::Transient, None, served.as_ref());
        }
        self.last_generation = served.map(|served| served.generation);
        self.last_schedule = Some(Schedule::Transient);
        (self.flight_mended, self.noticed) = (false, false);
        let rotator = self.start(Some((&lost, held)))?;
        self.running = Some(Box::pin(rotator.run()));
        self.keep(self.law.recorded(), self.last_schedule);
        self.tally.count("lost rotators", 1);
        self.settle()
    }
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restart {
    Orderly,
    Crash,
    /// A crash, and the record has a bit that is other.
    Damaged,
    Reboot,
}

fn boot_id(number: u64) -> BootId {
    BootId::parse(&format!("{number:032x}")).unwrap()
}

/// A reboot finds the record of the boot before.
fn boot_id_of(how: Restart, boot: BootId) -> BootId {
    if how == Restart::Reboot { boot_id(u64::MAX) } else { boot }
}

fn name() -> ProfileName {
    ProfileName::parse("bloom").unwrap()
}

fn task(identity: Identity, (at, jitter): (f64, f64), provider: &Provider, sink: &Arc<Sink>) -> Task {
    Task {
        name: name(),
        identity,
        policy: Policy::new(at, jitter).unwrap().with_floor(FLOOR),
        audience: None,
        obtain: Arc::new(provider.clone()),
        secret_changes: Some(Arc::new(provider.clone())),
        preserve: Some(Arc::<Sink>::clone(sink)),
        frame: Arc::new(|token| token),
    }
}
