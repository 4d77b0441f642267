//! The rotator and the store's waits, with a scripted provider and a clock that stands still.

use std::{collections::BTreeSet, sync::Mutex};

use bytes::Bytes;
use tokio::{
    sync::{Notify, oneshot},
    task::JoinSet,
};

use super::*;
use crate::{
    clock::{Clock as _, Timestamp, WallTime},
    obtain::{Attempt, Obtain},
    refresh::{Answer, Demand, Health, Policy},
    store::{self, Closed, Identity, Left, NoToken, Reader},
    timer::ManualTime,
    token::{AccessToken, Life, LifeSource, ProfileName, Reply, Scope},
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);
const FIRST: Identity = Identity(1);
const SECOND_IDENTITY: Identity = Identity(2);

/// A provider that answers when the test says so: each request comes out as a [`Call`].
struct Provider {
    calls: mpsc::UnboundedSender<Call>,
    time: ManualTime,
}

struct Call {
    requested: Now,
    answer: oneshot::Sender<Outcome>,
}

impl Obtain for Provider {
    fn obtain(&self) -> Attempt<'_> {
        Box::pin(async move {
            let (answer, outcome) = oneshot::channel();
            self.calls.send(Call { requested: self.time.now(), answer }).unwrap();
            outcome.await.expect("the script panics here on purpose")
        })
    }
}

impl Call {
    fn grant(self, token: &str, length: Duration) {
        let access_token = AccessToken::parse(Bytes::copy_from_slice(token.as_bytes())).unwrap();
        let life = Life { requested: self.requested, length, source: LifeSource::Provider };
        let scopes = vec![Scope::parse("data-access:all").unwrap()];
        self.end(Ok(Obtained { access_token, scopes, life }));
    }

    fn fail(self, schedule: Schedule) {
        let kind = match schedule {
            Schedule::Refusal => FailureKind::Refused,
            Schedule::Transient | Schedule::RateLimited => FailureKind::ProviderError,
        };
        self.end(Err(Failure { kind, schedule, retry_after: None, code: None, text: "scripted".into() }));
    }

    fn end(self, result: Result<Obtained, Failure>) {
        assert!(
            self.answer.send(Outcome { result, requests: 1, refused: None }).is_ok(),
            "nobody waits for the answer"
        );
    }
}

/// A secret's source that changes when the test says so.
#[derive(Default)]
struct Source {
    change: Notify,
    listeners: Mutex<u32>,
}

impl Changes for Source {
    fn changed(&self) -> Changed<'_> {
        Box::pin(async {
            *self.listeners.lock().unwrap() += 1;
            self.change.notified().await;
        })
    }

    fn changed_since(&self, _mark: Mark) -> Changed<'_> {
        self.changed()
    }
}

struct Rig {
    time: ManualTime,
    reader: Reader,
    handle: Handle,
    calls: mpsc::UnboundedReceiver<Call>,
    provider: Arc<Provider>,
    source: Arc<Source>,
    running: JoinSet<io::Result<()>>,
}

impl Rig {
    fn new() -> Self {
        Self::adopting(|_| None)
    }

    fn adopting(token: impl FnOnce(Now) -> Option<Token>) -> Self {
        let time = ManualTime::default();
        let (sender, calls) = mpsc::unbounded_channel();
        let provider = Arc::new(Provider { calls: sender, time: time.clone() });
        let source = Arc::new(Source::default());
        let task = task(FIRST, &provider, &source, Policy::default());
        let (publisher, reader) = store::cell(FIRST, time.now());
        let (mut rotator, handle) = rotator(task, Arc::new(time.clone()), publisher, 7).unwrap();
        if let Some(token) = token(time.now()) {
            assert_eq!(rotator.adopt(Arc::new(token)), Adoption::Served);
        }
        let mut running = JoinSet::new();
        running.spawn(rotator.run());
        Self { time, reader, handle, calls, provider, source, running }
    }

    /// With a token that lives for a day.
    async fn serving() -> Self {
        let mut rig = Self::new();
        rig.call().await.grant("first", 24 * HOUR);
        rig.wait(FIRST).await.unwrap();
        rig
    }

    async fn call(&mut self) -> Call {
        self.calls.recv().await.unwrap()
    }

    fn no_call(&mut self) {
        assert!(self.calls.try_recv().is_err(), "a request that nobody needs");
    }

    fn current(&self) -> Option<Arc<Token>> {
        self.reader.current(FIRST, self.time.now().boot)
    }

    async fn wait(&self, identity: Identity) -> Result<Arc<Token>, NoToken> {
        self.reader.wait(identity, &self.time, self.time.now().boot + 30 * SECOND).await
    }

    async fn settled(&self, count: u64) -> Attempts {
        self.reader.settled(FIRST, count).await.unwrap()
    }

    fn next(&self) -> Timestamp {
        match self.reader.attempts().phase {
            Phase::Idle { next } => next,
            Phase::InFlight => panic!("in flight"),
        }
    }

    fn waiters(&self, count: usize, identity: Identity) -> JoinSet<Result<Arc<Token>, NoToken>> {
        let mut waiters = JoinSet::new();
        for _ in 0..count {
            let (reader, time) = (self.reader.clone(), self.time.clone());
            let deadline = time.now().boot + 30 * SECOND;
            waiters.spawn(async move { reader.wait(identity, &time, deadline).await });
        }
        waiters
    }
}

/// Lets every task run until it waits: on this single-threaded runtime each yield gives all of them a turn.
async fn let_all_run() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

fn task(identity: Identity, provider: &Arc<Provider>, source: &Arc<Source>, policy: Policy) -> Task {
    Task {
        name: ProfileName::parse("bloom").unwrap(),
        identity,
        policy,
        audience: Some("dev-api".into()),
        obtain: Arc::<Provider>::clone(provider),
        secret_changes: Some(Arc::<Source>::clone(source)),
        preserve: None,
        frame: Arc::new(|token| token),
    }
}

#[test]
fn a_rotator_can_be_spawned() {
    fn is_send(_: &impl Send) {}
    let (publisher, _reader) = store::cell(FIRST, Now::default());
    let (calls, _) = mpsc::unbounded_channel();
    let time = ManualTime::default();
    let provider = Arc::new(Provider { calls, time: time.clone() });
    let task = task(FIRST, &provider, &Arc::default(), Policy::default());
    let (rotator, _handle) = rotator(task, Arc::new(time), publisher, 1).unwrap();
    is_send(&rotator.run());
}

#[tokio::test]
async fn the_first_token_is_fetched_at_once_and_the_next_at_the_refresh_point() {
    let mut rig = Rig::new();
    rig.call().await.grant("first", HOUR);
    let first = rig.wait(FIRST).await.unwrap();
    assert_eq!(first.access_token.expose_secret(), "first");
    assert_eq!(first.audience.as_deref(), Some("dev-api"));
    assert_eq!(first.generation.as_u64(), 1_700_000_000_000);
    let share = rig.next().since(first.life.requested.boot).as_secs_f64() / 3_600.0;
    assert!((0.75..=0.85).contains(&share), "{share}");

    let mut watcher = rig.reader.clone();
    watcher.current_and_mark(FIRST, rig.time.now().boot).unwrap();
    rig.time.advance_to(rig.next() - SECOND);
    let_all_run().await;
    rig.no_call();
    rig.time.advance(SECOND);
    rig.call().await.grant("second", HOUR);
    watcher.rotated().await.unwrap();
    let second = watcher.current_and_mark(FIRST, rig.time.now().boot).unwrap();
    assert_eq!(second.access_token.expose_secret(), "second");
    assert!(second.generation > first.generation);
    let attempts = rig.settled(2).await;
    assert_eq!((attempts.settled, attempts.requests, attempts.consecutive_failures), (2, 2, 0));
}

#[tokio::test]
async fn ten_thousand_cold_callers_make_one_request_and_those_who_leave_cancel_nothing() {
    let mut rig = Rig::new();
    let mut waiters = rig.waiters(10_000, FIRST);
    let mut leavers = rig.waiters(1_000, FIRST);
    let call = rig.call().await;
    let_all_run().await;
    assert!(waiters.try_join_next().is_none() && leavers.try_join_next().is_none(), "all wait");
    leavers.shutdown().await;
    call.grant("shared", HOUR);
    let mut generations = BTreeSet::new();
    while let Some(answer) = waiters.join_next().await {
        generations.insert(answer.unwrap().unwrap().generation);
    }
    assert_eq!(generations.len(), 1);
    rig.no_call();
    assert_eq!(rig.reader.attempts().requests, 1);
}

#[tokio::test]
async fn all_who_wait_share_a_failure_and_the_moment_of_the_next_attempt() {
    let mut rig = Rig::new();
    let mut waiters = rig.waiters(10_000, FIRST);
    let call = rig.call().await;
    let_all_run().await;
    call.fail(Schedule::Refusal);
    let shared = rig.settled(1).await.last_failure.unwrap();
    let expected = Some(rig.time.now().boot + 30 * SECOND);
    while let Some(answer) = waiters.join_next().await {
        match answer.unwrap() {
            Err(NoToken::Failed { failure, next }) => {
                assert!(Arc::ptr_eq(&failure, &shared) && next == expected, "{next:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    rig.no_call();
}

#[tokio::test]
async fn a_caller_waits_for_an_attempt_that_is_due_before_its_deadline_and_for_no_later_one() {
    let mut rig = Rig::new();
    rig.call().await.fail(Schedule::Refusal);
    rig.settled(1).await;
    let next = rig.time.now().boot + 30 * SECOND;
    assert_eq!(rig.next(), next);

    let too_early = rig.reader.wait(FIRST, &rig.time, next - Duration::from_millis(1)).await;
    assert!(matches!(too_early, Err(NoToken::Failed { next: Some(at), .. }) if at == next), "{too_early:?}");
    rig.no_call();

    let mut patient = rig.waiters(1, FIRST);
    let_all_run().await;
    assert!(patient.try_join_next().is_none(), "it waits");
    rig.time.advance(30 * SECOND);
    rig.call().await.grant("healed", HOUR);
    assert!(patient.join_next().await.unwrap().unwrap().is_ok());
    assert_eq!(rig.reader.health(FIRST, rig.time.now().boot), Health::Valid);
}

#[tokio::test]
async fn a_failure_takes_no_valid_token_away_and_an_expired_one_is_not_served() {
    let mut rig = Rig::new();
    rig.call().await.grant("only", HOUR);
    let token = rig.wait(FIRST).await.unwrap();
    let end = token.life.served_until();
    while rig.time.now().boot < end - SECOND {
        rig.time.advance_to(rig.next().min(end - SECOND));
        let_all_run().await;
        if let Ok(call) = rig.calls.try_recv() {
            call.fail(Schedule::Transient);
            let_all_run().await;
            assert_eq!(rig.reader.health(FIRST, rig.time.now().boot), Health::Degraded);
        }
        assert_eq!(rig.wait(FIRST).await.unwrap().generation, token.generation);
    }
    rig.time.advance(SECOND);
    assert!(rig.current().is_none(), "even before the rotator has run");
    let_all_run().await;
    assert_eq!(rig.reader.health(FIRST, rig.time.now().boot), Health::Unavailable);
    let attempts = rig.reader.attempts();
    assert!(attempts.consecutive_failures > 5, "{attempts:?}");
    // No valid token: half a minute at most.
    if let Phase::Idle { next } = attempts.phase {
        assert!(next.since(rig.time.now().boot) <= 30 * SECOND);
    }
}

#[tokio::test]
async fn the_same_token_again_is_no_rotation() {
    let mut rig = Rig::new();
    rig.call().await.grant("cached", HOUR);
    let first = rig.wait(FIRST).await.unwrap();
    let mut watcher = rig.reader.clone();
    watcher.current_and_mark(FIRST, rig.time.now().boot).unwrap();
    rig.time.advance_to(rig.next());
    let call = rig.call().await;
    let left = first.life.expires().since(call.requested.boot);
    call.grant("cached", left);
    rig.settled(2).await;
    let held = watcher.current(FIRST, rig.time.now().boot).unwrap();
    assert_eq!((held.generation, held.life.length), (first.generation, left));
    let mut rotated = std::pin::pin!(watcher.rotated());
    let is_pending =
        std::future::poll_fn(|cx| std::task::Poll::Ready(rotated.as_mut().poll(cx).is_pending())).await;
    assert!(is_pending, "nobody is woken");
    assert!(rig.next() > rig.time.now().boot + left / 2, "it honours the remaining life");
}

#[tokio::test]
async fn a_token_that_expired_on_its_way_is_a_failure() {
    let mut rig = Rig::new();
    let call = rig.call().await;
    rig.time.advance(3 * SECOND);
    call.grant("late", 2 * SECOND);
    let attempts = rig.settled(1).await;
    let failure = attempts.last_failure.unwrap();
    assert!(failure.0.text.contains("it lives for 2 s, and the exchange took 3 s"), "{}", failure.0.text);
    assert!(rig.current().is_none());
    // The floor, from the start of the request.
    assert!(rig.next() >= rig.time.now().boot + 7 * SECOND);
}

#[tokio::test]
async fn another_identity_withdraws_the_token_drops_the_request_and_fetches_at_once() {
    let mut rig = Rig::serving().await;
    let first = rig.current().unwrap();
    // A request of the old identity is in flight, and callers wait for both.
    rig.handle.demand(Demand::Operator).await.unwrap();
    let old = rig.call().await;
    let mut joined = {
        let reader = rig.reader.clone();
        let mut set = JoinSet::new();
        set.spawn(async move { reader.settled(FIRST, 2).await });
        set
    };
    let mut ahead = {
        let reader = rig.reader.clone();
        let mut set = JoinSet::new();
        set.spawn(async move { reader.settled(SECOND_IDENTITY, 2).await });
        set
    };
    let mut early = rig.waiters(100, SECOND_IDENTITY);
    let_all_run().await;
    assert!(early.try_join_next().is_none(), "the rotator has still to come to their identity");

    let next = task(SECOND_IDENTITY, &rig.provider, &rig.source, Policy::default());
    rig.handle.reconfigure(next).await.unwrap();
    assert!(rig.current().is_none() && old.answer.is_closed(), "the old token and its request are gone");
    assert_eq!(joined.join_next().await.unwrap().unwrap(), Err(Left::Superseded));
    assert_eq!(rig.wait(FIRST).await.unwrap_err(), NoToken::Left(Left::Superseded));

    let call = rig.call().await;
    call.grant("other", HOUR);
    while let Some(answer) = early.join_next().await {
        let token = answer.unwrap().unwrap();
        assert!(token.access_token.expose_secret() == "other" && token.generation > first.generation);
    }
    rig.no_call();
    let attempts = ahead.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!((attempts.identity, attempts.settled), (SECOND_IDENTITY, 2));
}

#[tokio::test]
async fn another_policy_keeps_the_token_and_moves_its_refresh() {
    let mut rig = Rig::serving().await;
    let (before, token) = (rig.next(), rig.current().unwrap());
    let sooner = task(FIRST, &rig.provider, &rig.source, Policy::new(0.5, 0.05).unwrap());
    rig.handle.reconfigure(sooner).await.unwrap();
    rig.reader.clone().attempts_until(|seen| seen.phase != Phase::Idle { next: before }).await.unwrap();
    let moved = before.since(rig.next()).as_secs_f64() / token.life.length.as_secs_f64();
    assert!((moved - 0.3).abs() < 1e-6, "the draw stays: {moved}");
    assert_eq!(rig.current().unwrap().generation, token.generation);
    rig.no_call();
}

#[tokio::test]
async fn reports_of_a_rejected_token_share_one_request_and_the_old_token_is_served_meanwhile() {
    let mut rig = Rig::serving().await;
    rig.time.advance(60 * SECOND);
    let old = rig.current().unwrap().generation;
    let mut reports = JoinSet::new();
    for _ in 0..1_000 {
        let handle = rig.handle.clone();
        reports.spawn(async move { handle.demand(Demand::Rejected(old)).await.unwrap() });
    }
    let now = rig.time.now().boot;
    while let Some(answer) = reports.join_next().await {
        assert_eq!(answer.unwrap(), Answer::Joined { attempt: 2, starts: now });
    }
    let call = rig.call().await;
    assert_eq!(rig.current().unwrap().generation, old);
    call.grant("second", 24 * HOUR);
    rig.settled(2).await;
    assert!(rig.current().unwrap().generation > old);
    assert_eq!(rig.handle.demand(Demand::Rejected(old)).await.unwrap(), Answer::Unneeded);
    let again = Demand::Rejected(rig.current().unwrap().generation);
    assert_eq!(rig.handle.demand(again).await.unwrap(), Answer::Exhausted { retry: now + 60 * SECOND });
    let_all_run().await;
    rig.no_call();
}

#[tokio::test]
async fn the_operator_goes_past_the_back_off_and_hears_how_it_ended() {
    let mut rig = Rig::new();
    rig.call().await.fail(Schedule::RateLimited);
    rig.settled(1).await;
    let answer = rig.handle.demand(Demand::Operator).await.unwrap();
    assert_eq!(answer, Answer::Joined { attempt: 2, starts: rig.time.now().boot });
    let call = rig.call().await;
    assert_eq!(rig.handle.demand(Demand::Operator).await.unwrap(), answer, "a second one joins");
    call.fail(Schedule::Transient);
    assert_eq!(rig.settled(2).await.consecutive_failures, 2);
    let_all_run().await;
    rig.no_call();
}

#[tokio::test]
async fn a_changed_secret_is_tried_at_once_while_the_profile_is_refused() {
    let mut rig = Rig::new();
    let listeners = |rig: &Rig| *rig.source.listeners.lock().unwrap();
    rig.call().await.fail(Schedule::Transient);
    rig.settled(1).await;
    assert_eq!(listeners(&rig), 0, "nobody listens while nothing is refused");
    rig.time.advance_to(rig.next());
    rig.call().await.fail(Schedule::Refusal);
    rig.settled(2).await;
    let_all_run().await;
    assert_eq!(listeners(&rig), 1);
    rig.source.change.notify_waiters();
    let call = rig.call().await;
    // The clock has not moved; and the change is not heard twice.
    call.grant("mended", HOUR);
    rig.settled(3).await;
    let_all_run().await;
    assert_eq!(listeners(&rig), 1);
    rig.no_call();
}

#[tokio::test]
async fn a_source_that_always_says_it_changed_makes_no_busy_loop() {
    struct Restless;
    impl Changes for Restless {
        fn changed(&self) -> Changed<'_> {
            Box::pin(std::future::ready(()))
        }

        fn changed_since(&self, _mark: Mark) -> Changed<'_> {
            self.changed()
        }
    }
    let mut rig = Rig::new();
    let mut task = task(FIRST, &rig.provider, &rig.source, Policy::default());
    task.secret_changes = Some(Arc::new(Restless));
    rig.handle.reconfigure(task).await.unwrap();
    let mut requests = 0;
    for _ in 0..60 {
        let_all_run().await;
        while let Ok(call) = rig.calls.try_recv() {
            call.fail(Schedule::Refusal);
            requests += 1;
            let_all_run().await;
        }
        rig.time.advance(SECOND);
    }
    assert!((2..=8).contains(&requests), "{requests} requests in a minute");
}

#[tokio::test]
async fn a_reload_while_refused_tries_at_once() {
    let mut rig = Rig::new();
    rig.call().await.fail(Schedule::Refusal);
    rig.settled(1).await;
    let same = task(FIRST, &rig.provider, &rig.source, Policy::default());
    rig.handle.reconfigure(same).await.unwrap();
    rig.call().await.grant("mended", HOUR);
    assert!(rig.wait(FIRST).await.is_ok());
}

#[tokio::test]
async fn a_step_of_the_wall_clock_past_the_refresh_point_makes_one_refresh_and_takes_nothing_away() {
    let mut rig = Rig::serving().await;
    let token = rig.current().unwrap();
    let wall = rig.time.now().wall;
    rig.time.set_wall(wall + HOUR);
    rig.time.set_wall(WallTime::from_unix_millis(0));
    let_all_run().await;
    rig.no_call();
    rig.time.advance(60 * SECOND);
    rig.time.set_wall(wall + 48 * HOUR);
    let call = rig.call().await;
    assert_eq!(rig.current().unwrap().generation, token.generation);
    call.grant("second", 24 * HOUR);
    rig.settled(2).await;
    rig.time.set_wall(wall + 96 * HOUR);
    let_all_run().await;
    rig.no_call();
    rig.time.advance(600 * SECOND);
    rig.call().await.grant("third", 24 * HOUR);
    rig.settled(3).await;
}

#[tokio::test]
async fn a_suspend_past_the_expiry_is_an_expiry_and_one_request() {
    let mut rig = Rig::serving().await;
    rig.time.advance(48 * HOUR);
    assert!(rig.current().is_none());
    let mut waiters = rig.waiters(100, FIRST);
    let call = rig.call().await;
    let_all_run().await;
    assert!(waiters.try_join_next().is_none(), "nobody gets the expired one");
    call.grant("awake", 24 * HOUR);
    while let Some(answer) = waiters.join_next().await {
        assert_eq!(answer.unwrap().unwrap().access_token.expose_secret(), "awake");
    }
    rig.no_call();
}

#[tokio::test]
async fn an_adopted_token_saves_the_first_request() {
    let mut rig = Rig::adopting(|now| {
        let requested = Now { boot: now.boot - 600 * SECOND, wall: now.wall - 600 * SECOND };
        Some(Token {
            name: ProfileName::parse("bloom").unwrap(),
            generation: Generation::from_u64(42),
            access_token: AccessToken::parse(Bytes::from_static(b"kept")).unwrap(),
            scopes: Vec::new(),
            audience: None,
            life: Life { requested, length: HOUR, source: LifeSource::Provider },
            reply: Reply::default(),
        })
    });
    assert_eq!(rig.wait(FIRST).await.unwrap().generation.as_u64(), 42);
    let_all_run().await;
    rig.no_call();
    rig.time.advance_to(rig.next());
    rig.call().await.grant("next", HOUR);
    assert!(rig.settled(1).await.settled == 1 && rig.current().unwrap().generation.as_u64() > 42);
}

#[tokio::test]
async fn it_ends_when_told_to_and_with_the_last_handle_and_its_readers_hear_of_it() {
    let mut rig = Rig::new();
    let call = rig.call().await;
    let mut waiters = rig.waiters(10, FIRST);
    let_all_run().await;
    rig.handle.stop().await;
    assert!(rig.running.join_next().await.unwrap().unwrap().is_ok());
    assert!(call.answer.is_closed(), "the request is dropped");
    while let Some(answer) = waiters.join_next().await {
        assert_eq!(answer.unwrap().unwrap_err(), NoToken::Left(Left::Closed(Closed)));
    }
    assert_eq!(rig.handle.demand(Demand::Operator).await, Err(Closed));

    let Rig { handle, mut running, calls: _calls, .. } = Rig::new();
    let other = handle.clone();
    drop(handle);
    let_all_run().await;
    assert!(running.try_join_next().is_none());
    drop(other);
    assert!(running.join_next().await.unwrap().unwrap().is_ok());
}

#[tokio::test]
async fn a_panic_of_the_part_that_asks_the_provider_comes_through_to_the_owner() {
    let mut rig = Rig::new();
    drop(rig.call().await);
    assert!(rig.running.join_next().await.unwrap().unwrap_err().is_panic());
    assert_eq!(rig.wait(FIRST).await.unwrap_err(), NoToken::Left(Left::Closed(Closed)));
}

#[tokio::test]
async fn a_successor_goes_on_with_the_token_and_the_failures_of_the_lost_one() {
    let mut rig = Rig::serving().await;
    rig.time.advance_to(rig.next());
    for failures in 1..=3 {
        rig.call().await.fail(Schedule::Transient);
        assert_eq!(rig.settled(1 + failures).await.consecutive_failures, u32::try_from(failures).unwrap());
        rig.time.advance_to(rig.next());
    }
    drop(rig.call().await);
    assert!(rig.running.join_next().await.unwrap().unwrap_err().is_panic());

    let (held, lost) = (rig.current().unwrap(), rig.reader.attempts());
    for held in [Some(held), None] {
        let task = task(FIRST, &rig.provider, &rig.source, Policy::default());
        let (publisher, reader) = store::cell(FIRST, rig.time.now());
        let (mut successor, handle) = rotator(task, Arc::new(rig.time.clone()), publisher, 7).unwrap();
        successor.succeed(&lost, held.clone());
        rig.running.spawn(successor.run());
        (rig.reader, rig.handle) = (reader, handle);
        let_all_run().await;
        rig.no_call();
        let attempts = rig.reader.attempts();
        assert_eq!((attempts.consecutive_failures, attempts.requests), (4, 4));
        assert_eq!(attempts.last_failure, lost.last_failure);
        assert_eq!(rig.current().map(|token| token.generation), held.map(|token| token.generation));
        // The fourth window is 8 s long, and no delay is below a tenth of its window.
        let delay = rig.next().since(rig.time.now().boot);
        assert!(delay >= Duration::from_millis(800) && delay <= 8 * SECOND, "{delay:?}");
    }
}

#[tokio::test]
async fn an_idle_rotator_is_not_polled() {
    let time = ManualTime::default();
    let (sender, mut calls) = mpsc::unbounded_channel();
    let provider = Arc::new(Provider { calls: sender, time: time.clone() });
    let task = task(FIRST, &provider, &Arc::default(), Policy::default());
    let (publisher, reader) = store::cell(FIRST, time.now());
    let (rotator, _handle) = rotator(task, Arc::new(time.clone()), publisher, 7).unwrap();
    let polls = Arc::new(Mutex::new(0));
    let count = Arc::clone(&polls);
    let mut run = Box::pin(rotator.run());
    let mut running = JoinSet::new();
    running.spawn(std::future::poll_fn(move |cx| {
        *count.lock().unwrap() += 1;
        run.as_mut().poll(cx)
    }));
    calls.recv().await.unwrap().grant("first", HOUR);
    reader.settled(FIRST, 1).await.unwrap();
    let_all_run().await;
    let before = *polls.lock().unwrap();
    for _ in 0..1_000 {
        assert!(reader.wait(FIRST, &time, time.now().boot).await.is_ok(), "readers do not wake it");
    }
    let_all_run().await;
    assert_eq!(*polls.lock().unwrap(), before);
}

#[tokio::test]
async fn a_caller_ahead_of_a_reload_waits_for_it_whatever_the_old_identity_waits_for() {
    let mut rig = Rig::new();
    rig.call().await.fail(Schedule::Refusal);
    rig.settled(1).await;
    let (reader, time) = (rig.reader.clone(), rig.time.clone());
    let deadline = time.now().boot + SECOND;
    let mut ahead = JoinSet::new();
    ahead.spawn(async move { reader.wait(SECOND_IDENTITY, &time, deadline).await });
    let reader = rig.reader.clone();
    let mut joined = JoinSet::new();
    joined.spawn(async move { reader.settled(SECOND_IDENTITY, 1).await });
    let_all_run().await;
    assert!(joined.try_join_next().is_none(), "an attempt of the old identity is not its attempt");
    assert!(ahead.try_join_next().is_none(), "the old one's next attempt is no concern of its");
    assert_eq!(rig.reader.no_token(SECOND_IDENTITY), NoToken::Pending { next: None });
    let next = task(SECOND_IDENTITY, &rig.provider, &rig.source, Policy::default());
    rig.handle.reconfigure(next).await.unwrap();
    rig.call().await.grant("other", HOUR);
    assert!(ahead.join_next().await.unwrap().unwrap().is_ok());
    assert!(joined.join_next().await.unwrap().unwrap().is_ok());
}

#[tokio::test]
async fn demands_that_change_nothing_wake_no_reader() {
    let rig = Rig::serving().await;
    let mut reader = rig.reader.clone();
    let looks = Arc::new(Mutex::new(0));
    let count = Arc::clone(&looks);
    let mut waiting = JoinSet::new();
    waiting.spawn(async move {
        reader
            .attempts_until(|_| {
                *count.lock().unwrap() += 1;
                false
            })
            .await
    });
    let_all_run().await;
    for _ in 0..10 {
        let answer = rig.handle.demand(Demand::Rejected(Generation::from_u64(1))).await.unwrap();
        assert_eq!(answer, Answer::Unneeded);
        let_all_run().await;
    }
    assert_eq!(*looks.lock().unwrap(), 1);
}

/// Where states go, for a look at them.
#[derive(Default)]
struct Kept(Mutex<Vec<State>>);

impl Preserve for Kept {
    fn preserve(&self, profile: &ProfileName, state: State) {
        assert_eq!(profile.as_str(), "bloom");
        self.0.lock().unwrap().push(state);
    }
}

impl Kept {
    /// Those since the last look: whether there is a token, how many failures, whether there is a text.
    fn seen(&self) -> Vec<(bool, u32, bool)> {
        let states = std::mem::take(&mut *self.0.lock().unwrap());
        states
            .iter()
            .map(|state| {
                assert_eq!(state.token.is_some(), state.standing.held.is_some());
                let failures = state.standing.failing.map_or(0, |failing| failing.count);
                (state.token.is_some(), failures, state.failure.is_some())
            })
            .collect()
    }
}

#[tokio::test]
async fn each_attempt_is_preserved_as_cut_off_before_it_begins_and_as_it_is_when_it_ends() {
    let kept = Arc::new(Kept::default());
    let mut rig = Rig::new();
    rig.call().await.grant("first", 24 * HOUR);
    rig.settled(1).await;
    let mut task = task(FIRST, &rig.provider, &rig.source, Policy::default());
    task.preserve = Some(kept.clone());
    rig.handle.reconfigure(task).await.unwrap();
    assert_eq!(kept.seen(), []);

    rig.handle.demand(Demand::Operator).await.unwrap();
    rig.call().await.grant("second", 24 * HOUR);
    rig.settled(2).await;
    assert_eq!(kept.seen(), [(true, 1, false), (true, 0, false)]);
    rig.time.advance_to(rig.next());
    rig.call().await.fail(Schedule::Transient);
    rig.settled(3).await;
    assert_eq!(kept.seen(), [(true, 1, false), (true, 1, true)]);
    // The token expires: that is no attempt, and the one that follows is.
    rig.time.advance(24 * HOUR);
    rig.call().await.fail(Schedule::Refusal);
    rig.settled(4).await;
    assert_eq!(kept.seen(), [(false, 2, true), (false, 2, true)]);

    rig.handle.demand(Demand::Operator).await.unwrap();
    let _unanswered = rig.call().await;
    rig.handle.stop().await;
    rig.running.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(kept.seen(), [(false, 3, true), (false, 3, true)]);
}

#[tokio::test]
async fn one_that_ends_between_two_attempts_has_nothing_to_add() {
    let kept = Arc::new(Kept::default());
    let rig = Rig::serving().await;
    let mut task = task(FIRST, &rig.provider, &rig.source, Policy::default());
    task.preserve = Some(kept.clone());
    rig.handle.reconfigure(task).await.unwrap();
    rig.handle.stop().await;
    let mut running = rig.running;
    running.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(kept.seen(), []);
}

#[tokio::test]
async fn the_successor_of_a_lost_rotator_preserves_that_too() {
    let kept = Arc::new(Kept::default());
    let rig = Rig::serving().await;
    let mut task = task(FIRST, &rig.provider, &rig.source, Policy::default());
    task.preserve = Some(kept.clone());
    let (publisher, _reader) = store::cell(FIRST, rig.time.now());
    let (mut successor, _handle) = rotator(task, Arc::new(rig.time.clone()), publisher, 7).unwrap();
    successor.succeed(&rig.reader.attempts(), rig.current());
    assert_eq!(kept.seen(), [(true, 1, false)]);
}
