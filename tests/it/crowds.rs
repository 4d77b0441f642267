//! Many callers at once: one token request, shared in success and in failure, and a push for every watcher.

use std::collections::BTreeSet;

use bloom_agent::{
    daemon::Signal,
    dev_issuer::{Control, Fault},
    pb,
};
use http::StatusCode;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::support::{Agent, BLOOM, Client, Next as _, Setting, refusal, retry_delay};

const CALLERS: usize = 10_000;
const CONNECTIONS: usize = 10;
const WATCHERS: usize = 1_000;

/// Above what `[limits]` gives one uid, since all the callers of a test are of one uid.
fn raised(before: fn(&Control)) -> Setting {
    let limits = "calls = 30000\nstreams_per_connection = 2048\nwatches = 2000".to_owned();
    Setting { limits, before, ..Setting::default() }
}

/// Calls GetToken so often over a few connections; when it returns, every call has come to the agent.
async fn cold_callers(agent: &Agent) -> JoinSet<Result<pb::Token, Status>> {
    let mut calls = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let client = agent.client().await;
        for _ in 0..CALLERS / CONNECTIONS {
            let client = client.clone();
            calls.spawn(async move { client.get(BLOOM).await });
        }
        client.catch_up().await;
    }
    calls
}

/// An agent without a token, whose next attempt starts when the time moves: a crowd may take as long as it likes to come,
/// and no exchange runs into its deadline meanwhile. The first attempt was one request.
async fn cold() -> Agent {
    let agent = Agent::start_with(raised(|issuer| issuer.push_fault(Fault::close()))).await;
    agent.attempts_until(BLOOM, |attempts| attempts.settled == 1).await;
    agent
}

#[tokio::test]
async fn ten_thousand_cold_callers_make_one_token_request() {
    let agent = cold().await;
    let mut calls = cold_callers(&agent).await;
    assert!(calls.try_join_next().is_none(), "nobody is answered before the provider has answered");
    agent.time.advance_to(agent.next_attempt(BLOOM).await);
    let mut answers = 0;
    let mut tokens = BTreeSet::new();
    while let Some(answer) = calls.join_next().await {
        let token = answer.unwrap().unwrap();
        tokens.insert((token.generation, token.access_token));
        answers += 1;
    }
    assert_eq!((answers, tokens.len()), (CALLERS, 1), "all have the same token");
    assert_eq!(agent.issuer.request_count(), 1 + 1);
    agent.stop().await;
}

#[tokio::test]
async fn ten_thousand_cold_callers_share_one_failure() {
    let agent = cold().await;
    agent.issuer.push_fault(Fault::status(StatusCode::BAD_GATEWAY));
    let mut calls = cold_callers(&agent).await;
    agent.time.advance_to(agent.next_attempt(BLOOM).await);
    let mut outcomes = BTreeSet::new();
    let mut answers = 0;
    while let Some(answer) = calls.join_next().await {
        let status = answer.unwrap().expect_err("nobody has a token");
        assert_eq!(refusal(&status), (Code::Unavailable, "PROVIDER_ERROR".to_owned(), true));
        outcomes.insert((status.message().to_owned(), retry_delay(&status)));
        answers += 1;
    }
    assert_eq!((answers, outcomes.len()), (CALLERS, 1), "{outcomes:?}");
    assert_eq!(agent.issuer.request_count(), 1 + 1);
    agent.stop().await;
}

#[tokio::test]
async fn a_thousand_watchers_see_each_rotation_once_and_are_told_of_the_end() {
    let mut agent = Agent::start_with(raised(|_| ())).await;
    let operator = agent.client().await;
    let first = operator.get(BLOOM).await.unwrap();
    let mut watches = Vec::new();
    let mut clients = Vec::new();
    for n in 0..WATCHERS {
        if n % 250 == 0 {
            clients.push(agent.client().await);
        }
        watches.push(clients.last().unwrap().watch(BLOOM).await.unwrap());
    }
    let mut expected = first;
    for round in 0..4 {
        for watch in &mut watches {
            let seen = watch.next_message().await.unwrap().unwrap().token.unwrap();
            assert_eq!(seen, expected, "rotation {round}");
        }
        if round < 3 {
            let rotated = operator.refresh(BLOOM).await.unwrap().generation;
            assert!(rotated > expected.generation);
            expected = operator.get(BLOOM).await.unwrap();
            assert_eq!(expected.generation, rotated);
        }
    }
    agent.signal(Signal::Stop).await;
    for watch in &mut watches {
        // The next thing that each sees is the end: no generation was sent twice.
        let status = watch.next_message().await.expect_err("the end");
        assert_eq!(refusal(&status), (Code::Unavailable, "SHUTTING_DOWN".to_owned(), true));
    }
    drop((watches, clients, operator));
    agent.ended().await;
}

#[tokio::test]
async fn a_slow_watcher_skips_to_the_newest_token() {
    let agent = Agent::start().await;
    let operator = agent.client().await;
    let mut newest = operator.get(BLOOM).await.unwrap().generation;
    // Room for a part of one message: the rest waits at the agent until somebody reads.
    let stream = std::os::unix::net::UnixStream::connect(agent.socket()).unwrap();
    let mut watch = Client::with_window(stream, 64).await.watch(BLOOM).await.unwrap();
    let mut quick = operator.watch(BLOOM).await.unwrap();
    const ROTATIONS: usize = 20;
    for _ in 0..ROTATIONS {
        newest = operator.refresh(BLOOM).await.unwrap().generation;
        while quick.next_message().await.unwrap().unwrap().token.unwrap().generation < newest {}
    }
    let mut seen = Vec::new();
    while seen.last() != Some(&newest) {
        seen.push(watch.next_message().await.unwrap().unwrap().token.unwrap().generation);
    }
    assert!(seen.is_sorted_by(|earlier, later| earlier < later), "{seen:?}");
    assert!(seen.len() <= 3, "two may have been under way, the others were skipped: {seen:?}");
    agent.stop().await;
}

#[tokio::test]
async fn a_watch_without_a_token_is_open_and_silent_and_an_expiry_is_not_announced() {
    let agent = Agent::start_with(Setting {
        before: |issuer| issuer.push_fault(Fault::none().held()),
        ..Setting::default()
    })
    .await;
    let client = agent.client().await;
    // It returns when the headers have come.
    let mut watch = client.watch(BLOOM).await.unwrap();
    agent.issuer.wait_for_request(1).await;
    assert_eq!(agent.issuer.granted_count(), 0);
    agent.issuer.release();
    let first = watch.next_message().await.unwrap().unwrap().token.unwrap();

    agent.issuer.set_rule(Some(Fault::status(StatusCode::SERVICE_UNAVAILABLE)));
    agent.time.advance_to(agent.served_until(BLOOM));
    agent.attempts_until(BLOOM, |attempts| attempts.consecutive_failures > 0).await;
    assert_eq!(client.list().await[0].generation, 0, "it has expired");
    assert!(agent.log().contains("the token has expired"), "{}", agent.log());

    agent.issuer.set_rule(None);
    agent.pass_an_attempt(BLOOM).await;
    let second = watch.next_message().await.unwrap().unwrap().token.unwrap();
    assert!(second.generation > first.generation, "the first thing that the watch says after the expiry");
    agent.stop().await;
}
