//! An agent and the server, and the course of one fault: a token is there, the fault comes, lasts beyond the token's end,
//! and goes.
//!
//! Three clocks stand still. Lives and schedules go by the agent's own, which the story moves; deadlines of the network
//! go by tokio's, which moves when the server or the resolver asks for it, and the agent's with it; the kernel's is looked
//! at by nobody.

use std::{future::Future, net::SocketAddr, time::Duration};

use bloom_agent::{
    clock::{Clock as _, Timestamp},
    failure::{FailureKind, Schedule},
    pb,
    store::{Attempts, Phase},
};
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::{
    names::{BlackHole, Names, OTHER, Resolver, SERVER},
    pki,
    row::{Case, Expect, Fails},
    script::LIFE,
    server::{Plan, Server, Tick, Ticks},
};
use crate::{
    leaks::canary::{Canary, Search},
    support::{Agent, BLOOM, Client, Endpoints, HANG, Setting, refusal, soon, write_secret},
};

const CLIENT_ID: &str = "fault-client";

/// Keeps tokio's clock where it is: without it, time would pass whenever everybody waits, for the network too. When a test
/// hangs it lets go, and then what hangs says so.
struct Still {
    _until: std::sync::mpsc::Sender<()>,
}

impl Still {
    fn new() -> Self {
        let (until, dropped) = std::sync::mpsc::channel::<()>();
        let _thread = tokio::task::spawn_blocking(move || {
            let _dropped = dropped.recv_timeout(2 * HANG);
        });
        Self { _until: until }
    }
}

/// How the client proves who it is, so that both ways are gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Post,
    Basic,
}

/// The agent, the server, and the time between them.
pub(crate) struct World {
    pub(crate) agent: Agent,
    pub(crate) client: Client,
    pub(crate) server: Server,
    pub(crate) resolver: Resolver,
    /// `client_secret` and `client_secret_next`.
    pub(crate) secrets: [Canary; 2],
    ticks: mpsc::UnboundedReceiver<Tick>,
    tick: Ticks,
    files: tempfile::TempDir,
    /// What callers were told when there was no token.
    told: Vec<String>,
    what: String,
    _still: Still,
}

impl World {
    /// With a token.
    pub(crate) async fn start(what: &str) -> Self {
        Self::start_with(what, Method::Post, "").await
    }

    /// With further lines in the profile.
    pub(crate) async fn start_with(what: &str, method: Method, lines: &str) -> Self {
        let mut world = Self::before_the_first(what, method, &[BLOOM], lines).await;
        world.settle().await;
        world.get().await;
        world
    }

    /// Before anything is asked for.
    pub(crate) async fn before_the_first(what: &str, method: Method, profiles: &[&str], lines: &str) -> Self {
        let still = Still::new();
        let (tick, ticks) = mpsc::unbounded_channel();
        let server = Server::start(&[SERVER, OTHER], tick.clone()).await;
        let resolver = Resolver::new(tick.clone());
        let secrets = [Canary::secret("the first secret"), Canary::secret("the second secret")];
        let files = tempfile::tempdir().unwrap();
        let path = |name: &str| files.path().join(name);
        write_secret(&path("secret"), &secrets[0].text);
        write_secret(&path("next"), &secrets[1].text);
        write_secret(&path("ca.pem"), pki::ca_pem());
        let method = match method {
            Method::Post => "client_secret_post",
            Method::Basic => "client_secret_basic",
        };
        let profile = |name: &&str| {
            format!(
                "[tokens.{name}]\nprovider = 'oauth2'\ntoken_url = 'https://{}:{}/token'\nclient_id = '{CLIENT_ID}'\n\
                 auth_method = '{method}'\nca_file = {:?}\nclient_secret.file = {:?}\nclient_secret_next.file = {:?}\n{lines}\n",
                pki::NAME,
                server.port(),
                path("ca.pem"),
                path("secret"),
                path("next"),
            )
        };
        let setting = Setting {
            tokens: profiles.iter().map(profile).collect(),
            endpoints: Endpoints::AsConfigured,
            look_ups: resolver.look_ups(),
            ..Setting::default()
        };
        let agent = Agent::start_with(setting).await;
        let client = agent.client().await;
        let (told, what) = (Vec::new(), what.to_owned());
        Self { agent, client, server, resolver, secrets, ticks, tick, files, told, what, _still: still }
    }

    pub(crate) fn ticks(&self) -> Ticks {
        self.tick.clone()
    }

    /// Puts another secret in the place of the first.
    pub(crate) fn replace_secret(&mut self) {
        self.secrets[0] = Canary::secret("a third secret");
        write_secret(&self.files.path().join("secret"), &self.secrets[0].text);
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.agent.time.now().boot
    }

    /// The token, which must be there.
    pub(crate) async fn get(&self) -> pb::Token {
        let answer = self.client.get(BLOOM).await;
        answer.unwrap_or_else(|status| panic!("{}: no token while one is valid: {status:?}", self.what))
    }

    /// Lets all clocks go on.
    pub(crate) async fn pass(&self, by: Duration) {
        self.agent.time.advance(by);
        tokio::time::advance(by).await;
    }

    /// Waits for `event`, and lets time go by where the server or the resolver wants it to; meanwhile the token that there is
    /// must be served.
    pub(crate) async fn during<T>(&mut self, event: impl Future<Output = T>) -> T {
        let mut event = std::pin::pin!(event);
        loop {
            let tick = tokio::select! {
                biased;
                happened = &mut event => return happened,
                tick = self.ticks.recv() => tick.unwrap(),
            };
            if self.agent.has_token(BLOOM) {
                self.get().await;
            }
            self.pass(tick.by).await;
            let Some(then) = tick.then else { continue };
            // Who has waited for too long gives up before the answer is there.
            for _ in 0..100 {
                tokio::select! {
                    biased;
                    happened = &mut event => return happened,
                    () = tokio::task::yield_now() => {}
                }
            }
            // Who waited may have been given up.
            let _gone = then.send(());
        }
    }

    /// Waits until the attempt in flight, or due now, has ended and the agent has hung up.
    pub(crate) async fn settle(&mut self) -> Attempts {
        self.settle_of(BLOOM).await
    }

    pub(crate) async fn settle_of(&mut self, name: &str) -> Attempts {
        let now = self.now();
        let mut reader = self.agent.watch_attempts(name);
        // A tick lets time go by; an attempt that is due because of it is not the one that is waited for.
        let idle = async move {
            let is_over = |attempts: &Attempts| matches!(attempts.phase, Phase::Idle { next } if next > now);
            reader.attempts_until(is_over).await.unwrap()
        };
        let attempts = self.during(idle).await;
        self.quiet().await;
        attempts
    }

    /// Waits until nobody is connected; wishes for time are forgotten then.
    async fn quiet(&mut self) {
        let what = format!("{}: the agent hangs up", self.what);
        soon(&what, self.server.nobody_is_connected()).await;
        while self.ticks.try_recv().is_ok() {}
    }

    /// Lets time go by to the next attempt, and waits for its end.
    pub(crate) async fn attempt(&mut self) -> Attempts {
        let next = match self.agent.attempts(BLOOM).phase {
            Phase::Idle { next } => next,
            Phase::InFlight => self.now(),
        };
        self.agent.time.advance_to(next);
        self.settle().await
    }

    /// When the next attempt starts.
    pub(crate) fn next(&self) -> Timestamp {
        match self.agent.attempts(BLOOM).phase {
            Phase::Idle { next } => next,
            Phase::InFlight => panic!("{}: it is in flight", self.what),
        }
    }

    /// Asks for a token where there is none, and lets the attempt go by that the caller waits for; what he is told.
    pub(crate) async fn get_none(&mut self) -> Status {
        let call = self.client.begin_get(BLOOM).await;
        if matches!(self.agent.attempts(BLOOM).phase, Phase::InFlight)
            || self.next().since(self.now()) <= Duration::from_secs(30)
        {
            self.attempt().await;
        }
        let answer = soon("an answer", call).await.unwrap();
        let status = match answer {
            Ok(_) => panic!("{}: an expired token, or one that nobody gave", self.what),
            Err(status) => status,
        };
        self.told.push(format!("{status:?} {:?}", String::from_utf8_lossy(status.details())));
        status
    }

    /// Which secret each of the last requests carried.
    pub(crate) fn tried(&self, last: usize) -> Vec<usize> {
        let seen = self.server.seen();
        let which = |secret: &str| self.secrets.iter().position(|canary| canary.text == secret);
        seen[seen.len() - last..].iter().map(|seen| which(&seen.secret).unwrap_or(9)).collect()
    }

    /// Whether the token is one that the server gave.
    pub(crate) fn is_given(&self, token: &pb::Token) -> bool {
        self.server.minted().contains(&token.access_token)
    }

    /// The deviations that were counted, a line each.
    async fn deviations(&self) -> Vec<String> {
        let metrics = self.client.metrics().await.unwrap();
        let lines = metrics.lines().filter(|line| line.starts_with("bloom_agent_provider_deviations_total{"));
        lines.map(str::to_owned).collect()
    }

    /// Looks through all that the agent says of itself, and ends it.
    pub(crate) async fn end(mut self) {
        let tokens: Vec<_> = self.server.minted().iter().map(|text| Canary::token("a token", text)).collect();
        let search = Search::new(CLIENT_ID, self.secrets.iter().chain(&tokens));
        let status = format!("{:?}", self.client.status().await.unwrap());
        let list = format!("{:?}", self.client.list().await);
        let metrics = self.client.metrics().await.unwrap();
        let log = self.agent.log();
        assert!(!log.contains("panicked"), "{}: {log}", self.what);
        for (place, text) in [("log", &log), ("status", &status), ("list", &list), ("metrics", &metrics)] {
            search.assert_none_in(&format!("{place}, after {}", self.what), text);
        }
        for told in &self.told {
            search.assert_none_in(&format!("what a caller was told, after {}", self.what), told);
        }
        self.resolver.set(Names::Server);
        self.quiet().await;
        self.agent.stop().await;
    }
}

/// Plays the cases of a row with one agent: the first until long after the token's end, the others for one attempt.
pub(crate) async fn play(row: &str, method: Method, cases: &[Case]) {
    let mut world = World::start_with(row, method, "").await;
    for (number, case) in cases.iter().enumerate() {
        world.what = format!("{row}: {}", case.what);
        let course = if number == 0 { Course::PastTheEnd } else { Course::OneAttempt };
        play_case(&mut world, case, course).await;
    }
    world.end().await;
}

/// How long a fault lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    OneAttempt,
    PastTheEnd,
}

async fn play_case(world: &mut World, case: &Case, course: Course) {
    let what = &world.what.clone();
    let first = world.get().await;
    let expires = world.agent.served_until(BLOOM);
    let margin = expires.since(world.next());
    assert!(margin > Duration::from_secs(20), "{what}: {margin:?}");

    let mut black_holes = Vec::new();
    for (address, by) in &case.fault.black_holes {
        let address = SocketAddr::new(*address, world.server.port());
        match BlackHole::new(address, *by, world.ticks()) {
            Ok(black_hole) => black_holes.push(black_hole),
            Err(error) => {
                // Past the test runner, which keeps what a passing test prints to itself.
                let _loud = std::io::Write::write_fmt(
                    &mut std::io::stderr(),
                    format_args!("SKIPPED: {what}: {address} cannot be had ({error})\n"),
                );
                return;
            }
        }
    }
    world.resolver.set(case.fault.names.clone());
    if let Some(moves) = &case.fault.moves {
        world.server.set(Plan::Each(moves.clone()));
    }
    match case.expect {
        Expect::Token { life, counts } => take(world, what, life.unwrap_or(LIFE), counts).await,
        Expect::Failure(fails) => fail(world, what, &fails, &first, expires, course).await,
    }

    // The fault ends; nobody starts anything anew.
    drop(black_holes);
    world.resolver.set(Names::Server);
    world.server.set(Plan::good());
    let before = world.agent.attempts(BLOOM);
    let after = world.attempt().await;
    assert!(
        after.settled == before.settled + 1 && after.last_failure.is_none(),
        "{what}: it does not recover"
    );
    let recovered = world.get().await;
    assert!(recovered.generation > first.generation && world.is_given(&recovered), "{what}");
    assert_eq!(world.client.list().await[0].state(), pb::TokenState::Valid, "{what}");
}

/// The fault must not matter.
async fn take(world: &mut World, what: &str, life: Duration, counts: Option<&str>) {
    let (before, first) = (world.agent.attempts(BLOOM), world.get().await);
    let (accepted, deviations) = (world.server.accepted(), world.deviations().await);
    world.agent.time.advance_to(world.next());
    let started = world.now();
    let after = world.settle().await;
    assert!(after.last_failure.is_none(), "{what}: {:?}", after.last_failure.map(|last| last.0.text.clone()));
    assert_eq!(after.requests, before.requests + 1, "{what}");
    assert_eq!(world.server.accepted(), accepted + 1, "{what}: one connection");
    let token = world.get().await;
    assert!(world.is_given(&token), "{what}: a token that the server gave");
    assert!(token.generation > first.generation, "{what}: a new one");
    let skew = (life / 20).min(Duration::from_secs(5));
    assert_eq!(world.agent.served_until(BLOOM), started + life - skew, "{what}: from the request's start");
    let label = |line: &String| counts.is_some_and(|label| line.contains(&format!("\"{label}\"")));
    let new: Vec<_> =
        world.deviations().await.into_iter().filter(|line| !deviations.contains(line)).collect();
    assert_eq!(new.iter().any(label), counts.is_some(), "{what}: {new:?}");
    assert!(counts.is_some() || new.is_empty(), "{what}: {new:?}");
}

/// The fault must cost nothing but patience.
async fn fail(
    world: &mut World,
    what: &str,
    fails: &Fails,
    first: &pb::Token,
    expires: Timestamp,
    course: Course,
) {
    let mut failures = 0;
    while world.next() < expires {
        one_failure(world, what, fails, failures).await;
        failures += 1;
        if world.now() < expires {
            assert_eq!(world.get().await, *first, "{what}: the old token is served");
            let state = &world.client.list().await[0];
            assert_eq!(state.state(), pb::TokenState::Degraded, "{what}");
            if course == Course::OneAttempt {
                return;
            }
        }
    }
    assert!((1..40).contains(&failures), "{what}: {failures} attempts before the end");
    // The last moment of its life, to the nanosecond; then the first moment after it.
    if world.now() < expires {
        world.agent.time.advance_to(expires - Duration::from_nanos(1));
        assert_eq!(world.get().await, *first, "{what}");
        world.agent.time.advance_to(expires);
    }
    let status = world.get_none().await;
    let reason = match fails.kind {
        FailureKind::Unreachable => "PROVIDER_UNREACHABLE",
        FailureKind::ProviderError => "PROVIDER_ERROR",
        FailureKind::Refused => "PROVIDER_REFUSED",
        FailureKind::SecretUnreadable => "SECRET_UNREADABLE",
    };
    assert_eq!(refusal(&status), (Code::Unavailable, reason.to_owned(), true), "{what}: {status:?}");
}

/// One attempt, the `failures`th after the last success.
async fn one_failure(world: &mut World, what: &str, fails: &Fails, failures: u32) {
    let before = world.agent.attempts(BLOOM);
    let (accepted, whole) = (world.server.accepted(), world.server.seen().len());
    let after = world.attempt().await;
    let (failure, _) = &**after.last_failure.as_ref().unwrap_or_else(|| panic!("{what}: a token was taken"));
    let text = &failure.text;
    assert_eq!(after.settled, before.settled + 1, "{what}");
    assert_eq!((failure.kind, failure.schedule), (fails.kind, fails.schedule), "{what}: {text}");
    assert!(text.contains(fails.says), "{what}: {text}");
    assert_eq!(text.matches(" / ").count(), 2, "{what}: what, why, what to do: {text}");
    assert_eq!(failure.retry_after, fails.retry_after, "{what}: {text}");
    assert_eq!(after.requests - before.requests, fails.counted, "{what}: requests that count: {text}");
    assert_eq!(world.server.accepted() - accepted, fails.connections, "{what}: connections: {text}");
    assert_eq!(world.server.seen().len() - whole, fails.whole, "{what}: requests that came whole: {text}");
    if fails.whole > 0 {
        let wanted: &[usize] = if fails.whole == 2 { &[0, 1] } else { &[0] };
        assert_eq!(world.tried(fails.whole), wanted, "{what}: which secrets were tried");
    }

    let doubled =
        |first: u64, cap: u64| Duration::from_secs(first.saturating_mul(1 << failures.min(20)).min(cap));
    let (least, most) = match (fails.schedule, fails.retry_after) {
        (Schedule::Refusal, None) => (doubled(30, 900), doubled(30, 900)),
        (Schedule::Refusal, Some(asked)) => (doubled(30, 900).max(asked), doubled(30, 900).max(asked)),
        (Schedule::RateLimited, None) => {
            let quiet = Duration::from_secs(30);
            (quiet + doubled(30, 300) / 10, quiet + doubled(30, 300))
        }
        (_, asked) => {
            let asked = asked.unwrap_or_default();
            (asked + doubled(1, 30) / 10, asked + doubled(1, 300))
        }
    };
    let delay = world.next().since(world.now());
    let slack = Duration::from_micros(1);
    assert!(
        delay + slack >= least && delay <= most + slack,
        "{what}: again after {delay:?}, not {least:?} to {most:?}"
    );
}
