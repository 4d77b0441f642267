//! Refreshes that callers ask for: shared, within a budget, and never at the cost of the token that is there.

use std::time::Duration;

use bloom_agent::dev_issuer::Fault;
use http::StatusCode;
use tonic::Code;

use crate::support::{Agent, BLOOM, refusal, retry_delay};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn reports_of_one_token_are_one_refresh_and_the_old_token_is_served_meanwhile() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    let old = client.get(BLOOM).await.unwrap();
    agent.time.advance(MINUTE);
    agent.issuer.push_fault(Fault::none().held());
    let mut reports = Vec::new();
    for _ in 0..20 {
        let reporter = client.clone();
        reports.push(client.begin(async move { reporter.report(BLOOM, old.generation).await }).await);
    }
    agent.issuer.wait_for_request(2).await;
    assert_eq!(client.get(BLOOM).await.unwrap().generation, old.generation, "served meanwhile");
    agent.issuer.release();
    for report in reports {
        let answer = report.await.unwrap().unwrap();
        assert!(answer.is_new && answer.generation > old.generation);
    }
    assert_eq!(agent.issuer.request_count(), 2);
    // Late, of one long gone, of one that never was: answered at once, and nothing asked.
    let new = client.get(BLOOM).await.unwrap().generation;
    for stale in [old.generation, 0, u64::MAX] {
        let answer = client.report(BLOOM, stale).await.unwrap();
        assert_eq!((answer.generation, answer.is_new), (new, true), "{stale}");
    }
    assert_eq!(agent.issuer.request_count(), 2);
    agent.stop().await;
}

#[tokio::test]
async fn a_report_whose_refresh_fails_is_told_that_the_token_is_still_the_old_one() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    let old = client.get(BLOOM).await.unwrap().generation;
    agent.time.advance(MINUTE);
    agent.issuer.push_fault(Fault::status(StatusCode::BAD_GATEWAY));
    let answer = client.report(BLOOM, old).await.unwrap();
    assert_eq!((answer.generation, answer.is_new), (old, false));
    assert_eq!(client.get(BLOOM).await.unwrap().generation, old);
    agent.stop().await;
}

/// The budget when every token is reported: the first at once, then gaps of 1, 2, 4 … 60 min.
fn most_requests(hours: u64) -> u64 {
    let (mut requests, mut at, mut gap) = (1, 0, 1);
    while at + gap <= hours * 60 {
        at += gap;
        gap = (gap * 2).min(60);
        requests += 1;
    }
    requests
}

#[tokio::test]
async fn a_loop_of_reports_stays_within_the_budget_and_is_told_when_to_come_back() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    client.get(BLOOM).await.unwrap();
    // Past the floor of the first fetch.
    agent.time.advance(Duration::from_secs(10));
    let before = agent.issuer.request_count();
    let (mut refused, mut renewed) = (0, 0);
    const HOURS: u64 = 6;
    // Every ten seconds for six hours somebody's API answers 401 to the newest token.
    for _ in 0..HOURS * 360 {
        let current = client.get(BLOOM).await.expect("never an error while a token is valid").generation;
        let reporter = client.clone();
        let report = client.begin(async move { reporter.report(BLOOM, current).await }).await;
        let answer = report.await.unwrap();
        match answer {
            Ok(answer) => {
                assert!(answer.is_new);
                renewed += 1;
            }
            Err(status) => {
                assert_eq!(refusal(&status), (Code::ResourceExhausted, "LIMIT".to_owned(), true));
                assert!(retry_delay(&status) > Duration::ZERO && retry_delay(&status) <= 60 * MINUTE);
                refused += 1;
            }
        }
        agent.time.advance(Duration::from_secs(10));
    }
    let asked = agent.issuer.request_count() - before;
    // Every token is reported at once, so none lives half its life unreported; regular refreshes come on top, at most one
    // for each life's refresh point.
    assert!(asked <= most_requests(HOURS) + HOURS * 3600 / (3600 * 3 / 4), "{asked} requests");
    assert!(renewed >= 6 && refused > 1000, "{renewed} renewed, {refused} refused");
    agent.stop().await;
}

#[tokio::test]
async fn a_loop_of_greedy_min_validity_stays_within_the_budget_and_always_gets_the_token() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    client.get(BLOOM).await.unwrap();
    let before = agent.issuer.request_count();
    const HOURS: u64 = 6;
    for _ in 0..HOURS * 360 {
        // 85 % of an hour: soon not met.
        let token = client.get_valid_for(BLOOM, Some(51 * MINUTE)).await.expect("a token is valid");
        assert!(agent.issuer.is_live(&token.access_token));
        agent.time.advance(Duration::from_secs(10));
    }
    let asked = agent.issuer.request_count() - before;
    // When 51 of 60 minutes are no longer left, every 9 minutes; until the gaps of the budget, now 16 and 32 minutes, are
    // longer than that. A token that then lives half its life unreported starts the budget anew: 7 in 90 minutes.
    assert!((6..=HOURS * 60 / 90 * 7 + 1).contains(&asked), "{asked} requests");
    agent.stop().await;
}

#[tokio::test]
async fn a_min_validity_above_nine_tenths_of_the_life_makes_no_request() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    client.get(BLOOM).await.unwrap();
    agent.time.advance(10 * MINUTE);
    for wanted in [54 * MINUTE + Duration::from_nanos(1), 60 * MINUTE, Duration::from_secs(315_576_000_000)] {
        client.get_valid_for(BLOOM, Some(wanted)).await.unwrap();
        assert_eq!(agent.issuer.request_count(), 1, "{wanted:?}");
    }
    client.get_valid_for(BLOOM, Some(50 * MINUTE)).await.unwrap();
    assert_eq!(agent.issuer.request_count(), 1, "exactly as much as is left");
    client.get_valid_for(BLOOM, Some(54 * MINUTE)).await.unwrap();
    assert_eq!(agent.issuer.request_count(), 2, "exactly nine tenths may be asked for");
    agent.stop().await;
}

#[tokio::test]
async fn a_greedy_caller_waits_until_the_refresh_is_settled_and_gets_the_token_that_is_then_there() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    let old = client.get(BLOOM).await.unwrap();
    agent.time.advance(20 * MINUTE);
    let greedy = || {
        let caller = client.clone();
        client.begin(async move { caller.get_valid_for(BLOOM, Some(50 * MINUTE)).await })
    };
    // It fails: the valid token is given all the same.
    agent.issuer.push_fault(Fault::status(StatusCode::BAD_GATEWAY).held());
    let (first, second) = (greedy().await, greedy().await);
    agent.issuer.wait_for_request(2).await;
    assert!(!first.is_finished() && !second.is_finished(), "they wait");
    let patient = client.get_valid_for(BLOOM, Some(30 * MINUTE)).await.unwrap();
    assert_eq!(patient, old, "who is content with what is there does not wait");
    agent.issuer.release();
    assert_eq!((first.await.unwrap().unwrap(), second.await.unwrap().unwrap()), (old.clone(), old.clone()));
    assert_eq!(agent.issuer.request_count(), 2, "one refresh for both");
    // The attempt after the failure is the schedule's, and a greedy caller joins it.
    let third = greedy().await;
    agent.pass_an_attempt(BLOOM).await;
    assert!(third.await.unwrap().unwrap().generation > old.generation);
    assert_eq!(agent.issuer.request_count(), 3);
    agent.stop().await;
}

#[tokio::test]
async fn a_min_validity_that_is_no_duration_is_refused() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    let mut tokens = client.tokens.clone();
    let request = bloom_agent::pb::GetTokenRequest {
        name: BLOOM.to_owned(),
        min_validity: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
    };
    let status = tokens.get_token(request).await.expect_err("negative");
    assert_eq!(status.code(), Code::InvalidArgument);
    agent.stop().await;
}
