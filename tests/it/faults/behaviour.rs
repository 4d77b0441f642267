//! What providers do over time: whom they believe, how often, and when they are away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bloom_agent::{
    clock::Clock as _,
    failure::{FailureKind, Schedule},
    pb,
    timer::ManualTime,
};

use super::{
    names::{NOBODY, Names},
    row::{Made, Row, Telling},
    script::{Answer, Judge, LIFE, Move, answered, request_then},
    server::Plan,
    story::{Method, World},
};
use crate::support::BLOOM;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

fn story(name: &'static str, server: &'static str, agent: &'static str, tell: fn() -> Telling) -> Row {
    Row { name, server, made: Made::Story { agent, tell } }
}

pub(crate) fn rows() -> Vec<Row> {
    vec![
        story(
            "token revoked early",
            "takes the token back before its time; the API answers 401, and a caller reports it",
            "makes one request, shared by all who report, and serves the old token until the new one is there",
            || Box::pin(revoked_token()),
        ),
        story(
            "secret revoked",
            "refuses the first secret and takes the second",
            "tries the second at once: no failure; the next request begins with it",
            || Box::pin(revoked_secret()),
        ),
        story(
            "both secrets revoked",
            "refuses both secrets; the operator puts a new one into the file",
            "PROVIDER_REFUSED, two requests, again after 30 s, doubling; the new secret is tried at once",
            || Box::pin(both_revoked()),
        ),
        story(
            "secret valid only later",
            "takes a new secret no sooner than 30 s after it was made, and has forgotten the old one",
            "tries again after 30 s, and has a token long before the old one ends",
            || Box::pin(valid_later()),
        ),
        story(
            "one request a minute",
            "gives one token a minute, and answers every other request with 429",
            "asks after 30 s at the soonest; no caller goes without",
            || Box::pin(one_a_minute()),
        ),
        story(
            "every second answer a 503",
            "answers at random every second request with 503, for 40 tokens of an hour",
            "never lets a token end, with fewer than three requests for each",
            || Box::pin(half_of_them_fail()),
        ),
        story(
            "brown-out of 23 h 59 min",
            "gives a token for 24 h and is away for 23 h 59 min of it: refuses connections, or answers 503",
            "has a new token in the last minute, after some 600 attempts",
            || Box::pin(brown_out()),
        ),
        story(
            "outage past the end",
            "is away for an hour and the rest of the token's life",
            "says UNAVAILABLE from the end on, asks every 30 s at the most rarely, and is well in half a minute after it",
            || Box::pin(outage()),
        ),
        story("flapping", "is up for 7 s and away for 7 s, over and over", "never lets a token end", || {
            Box::pin(flapping())
        }),
        story(
            "failover",
            "resets twenty connections in a row while it changes its leader",
            "goes on trying, ever more rarely, and serves the old token meanwhile",
            || Box::pin(failover()),
        ),
    ]
}

/// A server that answers each request by what it carried.
fn judging(judge: impl Fn(&super::server::Seen) -> Answer + Send + Sync + 'static) -> Plan {
    let judge: Judge = Arc::new(judge);
    Plan::Each(request_then([Move::Judge(judge)]))
}

/// A server that takes only this secret.
fn taking(secret: &str) -> Plan {
    let secret = secret.to_owned();
    judging(
        move |seen| {
            if seen.secret == secret { Answer::good() } else { Answer::error(401, "invalid_client") }
        },
    )
}

/// A token for an hour: room for a row of failures between the refresh point and the end.
fn hourly() -> Answer {
    Answer::json(200, r#"{"access_token":"{TOKEN}","token_type":"bearer","expires_in":3600}"#)
}

/// A world that has one.
async fn with_an_hour(what: &str, method: Method) -> World {
    let mut world = World::before_the_first(what, method, &[BLOOM], "").await;
    world.server.set(Plan::Each(answered(hourly())));
    world.settle().await;
    world
}

async fn revoked_token() {
    let mut world = World::start("a token revoked early").await;
    let first = world.get().await;
    let accepted = world.server.accepted();
    world.agent.time.advance(30 * SECOND);
    let reports: Vec<_> = (0..20).map(|_| (world.client.clone(), first.generation)).collect();
    let mut told = tokio::task::JoinSet::new();
    for (client, generation) in reports {
        told.spawn(async move { client.report(BLOOM, generation).await });
    }
    let answers = world.during(told.join_all()).await;
    for answer in answers {
        let answer = answer.unwrap();
        assert!(answer.generation > first.generation, "{answer:?}");
    }
    assert_eq!(world.server.accepted(), accepted + 1, "one for all");
    assert_ne!(world.get().await.access_token, first.access_token);
    world.end().await;
}

async fn revoked_secret() {
    let mut world = World::start("a secret revoked").await;
    world.server.set(taking(&world.secrets[1].text));
    let after = world.attempt().await;
    assert!(after.last_failure.is_none());
    assert_eq!(world.tried(2), [0, 1]);
    for _ in 0..3 {
        let requests = world.agent.attempts(BLOOM).requests;
        let after = world.attempt().await;
        assert_eq!(
            (after.requests, world.tried(1)),
            (requests + 1, vec![1]),
            "the one that worked goes first"
        );
    }
    // The second is revoked as well, and the first works again.
    world.server.set(taking(&world.secrets[0].text));
    let after = world.attempt().await;
    assert!(after.last_failure.is_none());
    assert_eq!(world.tried(2), [1, 0]);
    world.end().await;
}

async fn both_revoked() {
    let mut world = World::start("both secrets revoked").await;
    let first = world.get().await;
    world.server.set(taking("neither of them"));
    let after = world.attempt().await;
    let (failure, _) = &**after.last_failure.as_ref().unwrap();
    assert_eq!((failure.kind, failure.schedule), (FailureKind::Refused, Schedule::Refusal));
    assert!(failure.text.contains("were both refused"), "{}", failure.text);
    assert_eq!(world.tried(2), [0, 1]);
    assert_eq!(world.next().since(world.now()), 30 * SECOND);
    assert_eq!(world.get().await, first);

    world.replace_secret();
    world.server.set(taking(&world.secrets[0].text));
    let before = world.now();
    let mut reader = world.agent.watch_attempts(BLOOM);
    let tried =
        async move { reader.attempts_until(|attempts| attempts.last_failure.is_none()).await.unwrap() };
    world.during(tried).await;
    assert_eq!(world.now(), before, "at once");
    assert!(world.get().await.generation > first.generation);
    world.end().await;
}

async fn valid_later() {
    let mut world = with_an_hour("a secret that is valid later", Method::Post).await;
    let first = world.get().await;
    let expires = world.agent.served_until(BLOOM);
    // Ahead of the refresh, so that the file's change is no news to a refused profile.
    world.replace_secret();
    let (clock, secret) = (world.agent.time.clone(), world.secrets[0].text.clone());
    let from = world.next() + 30 * SECOND;
    world.server.set(judging(move |seen| {
        if seen.secret == secret && clock.now().boot >= from {
            Answer::good()
        } else {
            Answer::error(401, "invalid_client")
        }
    }));
    let after = world.attempt().await;
    assert_eq!((after.consecutive_failures, world.tried(2)), (1, vec![0, 1]));
    assert_eq!(world.get().await, first);
    let after = world.attempt().await;
    assert_eq!((after.consecutive_failures, world.tried(1)), (0, vec![0]));
    assert!(world.now() < expires && world.get().await.generation > first.generation);
    world.end().await;
}

async fn one_a_minute() {
    let mut world = World::start("one request a minute").await;
    let clock = world.agent.time.clone();
    let last = AtomicU64::new(world.now().since_boot().as_secs());
    world.server.set(judging(move |_| {
        let now = clock.now().boot.since_boot().as_secs();
        if now - last.load(Ordering::SeqCst) < 60 {
            return Answer::empty(429);
        }
        last.store(now, Ordering::SeqCst);
        Answer::good()
    }));
    let mut generation = world.get().await.generation;
    for _ in 0..10 {
        // Refused or not, it is settled.
        let _forced = world.client.refresh(BLOOM).await;
        while world.agent.attempts(BLOOM).consecutive_failures > 0 {
            world.get().await;
            world.attempt().await;
        }
        world.attempt().await;
        let token = world.get().await;
        assert!(token.generation > generation);
        generation = token.generation;
    }
    let attempts = world.agent.attempts(BLOOM);
    assert!(attempts.requests <= 10 * 5, "{} requests", attempts.requests);
    world.end().await;
}

async fn half_of_them_fail() {
    let mut world = with_an_hour("every second answer a 503", Method::Post).await;
    // Always the same course: a linear congruential generator (Knuth's MMIX).
    let dice = AtomicU64::new(7);
    world.server.set(judging(move |_| {
        let next = dice
            .load(Ordering::SeqCst)
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        dice.store(next, Ordering::SeqCst);
        if next >> 63 == 0 { hourly() } else { Answer::empty(503) }
    }));
    let (mut granted, before) = (0, world.agent.attempts(BLOOM).requests);
    while granted < 40 {
        let after = world.attempt().await;
        granted += u64::from(after.last_failure.is_none());
        world.get().await;
    }
    let requests = world.agent.attempts(BLOOM).requests - before;
    assert!(requests < 3 * granted, "{requests} requests for {granted} tokens");
    world.end().await;
}

async fn brown_out() {
    let mut world = World::before_the_first("a brown-out", Method::Post, &[BLOOM], "").await;
    let day = r#"{"access_token":"{TOKEN}","token_type":"bearer","expires_in":86400}"#;
    world.server.set(Plan::Each(answered(Answer::json(200, day))));
    let began = world.now();
    world.settle().await;
    let first = world.get().await;
    let back = began + 24 * HOUR - 60 * SECOND;
    world.server.set(Plan::Each(answered(Answer::empty(503))));
    let before = world.agent.attempts(BLOOM).requests;
    let mut attempts: u32 = 0;
    while world.next() < back {
        // Mostly without a connection; each tenth time somebody answers.
        world.resolver.set(if attempts.is_multiple_of(10) {
            Names::Server
        } else {
            Names::Are(vec![NOBODY.into()])
        });
        let after = world.attempt().await;
        attempts += 1;
        assert_eq!(after.consecutive_failures, attempts);
        if attempts.is_multiple_of(20) {
            assert_eq!(world.get().await, first);
        }
    }
    assert_eq!(world.get().await, first);
    world.resolver.set(Names::Server);
    world.server.set(Plan::good());
    world.attempt().await;
    assert!(world.now() < began + 24 * HOUR - 5 * SECOND, "the old one is still served");
    assert!(world.get().await.generation > first.generation);
    // From 0.8 of the life on: 2.4 h with at most 5 min, then 2.4 h with at most 30 s between two.
    assert!((450..750).contains(&attempts), "{attempts} attempts");
    let requests = world.agent.attempts(BLOOM).requests - before;
    assert!(requests <= u64::from(attempts) / 10 + 2, "{requests}: only what was sent is counted");
    world.end().await;
}

async fn outage() {
    let mut world = World::start("an outage past the end").await;
    let first = world.get().await;
    world.resolver.set(Names::Are(vec![NOBODY.into()]));
    let expires = world.agent.served_until(BLOOM);
    while world.next() < expires {
        world.attempt().await;
    }
    world.agent.time.advance_to(expires);
    let back = expires + HOUR;
    let mut rarest = Duration::ZERO;
    let mut attempts = 0;
    while world.next() < back {
        let before = world.now();
        world.attempt().await;
        rarest = rarest.max(world.now().since(before));
        attempts += 1;
        if attempts % 50 == 0 {
            world.get_none().await;
        }
    }
    assert!(rarest <= 30 * SECOND && attempts < 3_600 / 10, "{rarest:?}, {attempts}");
    world.resolver.set(Names::Server);
    world.attempt().await;
    assert!(world.now() <= back + 30 * SECOND);
    assert!(world.get().await.generation > first.generation);
    world.end().await;
}

async fn flapping() {
    let mut world = with_an_hour("flapping", Method::Post).await;
    let is_up = |time: &ManualTime| (time.now().boot.since_boot().as_secs() / 7).is_multiple_of(2);
    let clock = world.agent.time.clone();
    world.server.set(judging(move |_| if is_up(&clock) { hourly() } else { Answer::empty(502) }));
    let (mut granted, before) = (0, world.agent.attempts(BLOOM).requests);
    while granted < 30 {
        let after = world.attempt().await;
        granted += u64::from(after.last_failure.is_none());
        world.get().await;
    }
    let requests = world.agent.attempts(BLOOM).requests - before;
    assert!(requests < 5 * granted, "{requests} requests for {granted} tokens");
    world.end().await;
}

async fn failover() {
    let mut world = with_an_hour("a failover", Method::Basic).await;
    let first = world.get().await;
    let expires = world.agent.served_until(BLOOM);
    let reset = |number| if number % 2 == 0 { vec![Move::Reset] } else { request_then([Move::Reset]) };
    world.server.set(Plan::InTurn((0..20).map(reset).collect()));
    let before = world.agent.attempts(BLOOM).requests;
    for failures in 1..=20 {
        let after = world.attempt().await;
        assert_eq!(after.consecutive_failures, failures);
        if world.now() < expires {
            assert_eq!(world.get().await, first);
        }
    }
    assert_eq!(world.agent.attempts(BLOOM).requests - before, 10, "one that was sent may have cost a token");
    let after = world.attempt().await;
    assert_eq!(after.consecutive_failures, 0);
    assert_eq!(world.client.list().await[0].state(), pb::TokenState::Valid);
    assert!(world.agent.served_until(BLOOM) <= world.now() + LIFE);
    world.end().await;
}
