//! GetToken without a token: it waits for an attempt that is in flight or due in time, for no other, and for so long.

use std::time::Duration;

use bloom_agent::{
    dev_issuer::{Control, Fault},
    pb,
};
use http::StatusCode;
use tonic::{Code, Request};

use crate::support::{Agent, BLOOM, Setting, refusal, retry_delay, soon};

fn before(before: fn(&Control)) -> Setting {
    Setting { before, ..Setting::default() }
}

fn request(grpc_timeout: &'static str) -> Request<pb::GetTokenRequest> {
    let mut request = Request::new(pb::GetTokenRequest { name: BLOOM.to_owned(), min_validity: None });
    // By hand: the client itself then has no deadline, so what comes is the agent's answer.
    request.metadata_mut().insert("grpc-timeout", grpc_timeout.parse().unwrap());
    request
}

#[tokio::test]
async fn a_call_waits_for_the_attempt_in_flight_and_shares_its_outcome() {
    for (fault, outcome) in [
        (Fault::none(), None),
        (Fault::status(StatusCode::INTERNAL_SERVER_ERROR), Some("PROVIDER_ERROR")),
        (Fault::status(StatusCode::UNAUTHORIZED), Some("PROVIDER_REFUSED")),
        (Fault::close(), Some("PROVIDER_UNREACHABLE")),
    ] {
        let agent = Agent::start_with(before(|issuer| issuer.push_fault(Fault::close().held()))).await;
        // The first attempt is over before the one that is looked at begins.
        let client = agent.client().await;
        agent.issuer.wait_for_request(1).await;
        agent.issuer.release();
        agent.attempts_until(BLOOM, |attempts| attempts.settled == 1).await;

        agent.issuer.push_fault(fault.held());
        agent.time.advance_to(agent.next_attempt(BLOOM).await);
        agent.issuer.wait_for_request(2).await;
        let call = client.begin_get(BLOOM).await;
        assert!(!call.is_finished());
        agent.issuer.release();
        let answer = call.await.unwrap();
        assert_eq!(answer.as_ref().err().map(|status| refusal(status).1).as_deref(), outcome);
        assert_eq!(agent.issuer.request_count(), 2);
        agent.stop().await;
    }
}

#[tokio::test]
async fn a_call_waits_for_an_attempt_that_is_due_in_time_and_moves_none_forward() {
    let agent = Agent::start_with(before(|issuer| issuer.push_fault(Fault::close()))).await;
    agent.attempts_until(BLOOM, |attempts| attempts.settled == 1).await;
    let client = agent.client().await;
    // The next is due within a second, and the time stands still.
    let call = client.begin_get(BLOOM).await;
    assert!(!call.is_finished());
    assert_eq!(agent.issuer.request_count(), 1, "a call moves no attempt forward");
    agent.pass_an_attempt(BLOOM).await;
    assert!(agent.issuer.is_live(&call.await.unwrap().unwrap().access_token));
    agent.stop().await;
}

#[tokio::test]
async fn a_call_fails_at_once_when_the_next_attempt_comes_too_late() {
    let agent = Agent::start_with(before(|issuer| issuer.set_secrets(["another"]))).await;
    agent.attempts_until(BLOOM, |attempts| attempts.settled == 1).await;
    let client = agent.client().await;
    // Refused: the next attempt is 30 s away. Who has 30 s waits for it; who has less does not.
    let status =
        soon("an answer", client.tokens.clone().get_token(request("29S"))).await.expect_err("no token");
    assert_eq!(refusal(&status), (Code::Unavailable, "PROVIDER_REFUSED".to_owned(), true));
    assert_eq!(retry_delay(&status), Duration::from_secs(30));
    // The second refusal doubles it: nobody waits so long, whatever deadline was set.
    agent.pass_an_attempt(BLOOM).await;
    for timeout in ["31S", "59S", "1H"] {
        let answer = soon("an answer", client.tokens.clone().get_token(request(timeout))).await;
        assert_eq!(retry_delay(&answer.expect_err("no token")), Duration::from_secs(60), "{timeout}");
    }
    assert_eq!(agent.issuer.request_count(), 2);
    agent.stop().await;
}

#[tokio::test]
async fn the_caller_s_deadline_is_kept_and_the_answer_says_what_is_missing() {
    let agent = Agent::start_with(before(|issuer| issuer.push_fault(Fault::none().held()))).await;
    agent.issuer.wait_for_request(1).await;
    let client = agent.client().await;
    // The issuer answers nobody before it is told to, so only the deadline can end these; and the client has none.
    for timeout in ["1n", "1m", "30m", "0S"] {
        let answer = soon("an answer", client.tokens.clone().get_token(request(timeout))).await;
        let status = answer.expect_err("no token");
        assert_eq!(refusal(&status), (Code::Unavailable, "TOKEN_PENDING".to_owned(), true), "{timeout}");
    }
    agent.issuer.release();
    assert!(client.get(BLOOM).await.is_ok());
    assert_eq!(agent.issuer.request_count(), 1, "callers that gave up cancelled nothing");
    agent.stop().await;
}

#[tokio::test]
async fn callers_that_go_away_cancel_nothing() {
    let agent = Agent::start_with(before(|issuer| issuer.push_fault(Fault::none().held()))).await;
    agent.issuer.wait_for_request(1).await;
    let stays = agent.client().await;
    let patient = stays.begin_get(BLOOM).await;
    // One resets its stream, one closes its connection.
    let leaves = agent.client().await;
    drop(leaves.begin_get(BLOOM).await);
    leaves.catch_up().await;
    drop(stays.begin_get(BLOOM).await);
    stays.catch_up().await;
    drop(leaves);
    agent.issuer.release();
    assert!(patient.await.unwrap().is_ok());
    assert_eq!(agent.issuer.request_count(), 1);
    agent.stop().await;
}

#[tokio::test]
async fn a_caller_who_wants_more_validity_is_not_kept_waiting_for_an_attempt_that_comes_too_late() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    let token = client.get(BLOOM).await.unwrap();
    let quiet = Fault::too_many_requests(Some(Duration::from_secs(1800)), Default::default());
    agent.issuer.push_fault(quiet);
    agent.time.advance_to(agent.next_attempt(BLOOM).await);
    agent.attempts_until(BLOOM, |attempts| attempts.last_failure.is_some()).await;

    // No time passes while they are answered: the next attempt is half an hour away.
    let answer = client.get_valid_for(BLOOM, Some(Duration::from_secs(3000))).await.unwrap();
    assert_eq!(answer, token);
    let report = client.report(BLOOM, token.generation).await.unwrap();
    assert_eq!((report.generation, report.is_new), (token.generation, false));
    assert_eq!(agent.issuer.request_count(), 2);
    agent.stop().await;
}
