//! The operator's calls: for admins alone, past back-off, and without a token or a secret in any answer.

use std::time::Duration;

use bloom_agent::{
    clock::Clock as _,
    dev_issuer::{Control, Fault},
};
use http::StatusCode;
use tonic::Code;

use crate::support::{Agent, BLOOM, SECRET, Setting, as_caller, profile, refusal, skipped_without_root};

#[tokio::test]
async fn who_is_no_admin_gets_nothing_of_the_four() {
    if skipped_without_root("who_is_no_admin_gets_nothing_of_the_four") {
        return;
    }
    let tokens = profile(BLOOM, "allow = ['uid:1234']");
    let agent = Agent::start_with(Setting { tokens, ..Setting::default() }).await;
    let (operator, caller) = (agent.client().await, as_caller(&agent, 1234).await);
    let token = caller.get(BLOOM).await.expect("a token is all that it may have");
    let denied = [
        caller.refresh(BLOOM).await.expect_err("denied"),
        caller.refresh("invented").await.expect_err("denied"),
        caller.reload().await.expect_err("denied"),
        caller.status().await.expect_err("denied"),
        caller.metrics().await.expect_err("denied"),
    ];
    for status in denied {
        assert_eq!(refusal(&status), (Code::PermissionDenied, "NOT_ALLOWED".to_owned(), false));
        assert_eq!(status.message(), "uid 1234 may not administer the agent");
    }
    assert_eq!(agent.issuer.request_count(), 1);
    let metrics = operator.metrics().await.unwrap();
    assert!(metrics.contains("bloom_agent_denied_total"), "{metrics}");
    assert!(!metrics.contains("1234"), "no caller is in a label: {metrics}");
    assert_eq!(caller.get(BLOOM).await.unwrap(), token);
    agent.stop().await;
}

#[tokio::test]
async fn a_refresh_by_the_operator_waits_for_no_back_off_and_no_floor() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    let first = client.get(BLOOM).await.unwrap();
    // Within the floor.
    let second = client.refresh(BLOOM).await.unwrap();
    assert!(second.generation > first.generation);

    let reset = agent.time.now().wall;
    agent.issuer.push_fault(Fault::too_many_requests(Some(Duration::from_secs(3600)), reset));
    let status = client.refresh(BLOOM).await.expect_err("told how it went");
    let (code, _, retries) = refusal(&status);
    assert_eq!((code, retries), (Code::Unavailable, true));
    assert!(status.message().contains("429"), "in the provider's words: {}", status.message());
    // Now within an hour of Retry-After.
    let third = client.refresh(BLOOM).await.unwrap();
    assert!(third.generation > second.generation);

    agent.issuer.push_fault(Fault::status(StatusCode::UNAUTHORIZED));
    client.refresh(BLOOM).await.expect_err("refused");
    assert!(client.refresh(BLOOM).await.is_ok(), "within the 30 s of a refusal");
    assert_eq!(agent.issuer.request_count(), 6);
    assert_eq!(client.get(BLOOM).await.unwrap().generation, client.list().await[0].generation);
    let status = client.refresh("invented").await.expect_err("there is none");
    assert_eq!(refusal(&status), (Code::NotFound, "UNKNOWN_PROFILE".to_owned(), false));
    agent.stop().await;
}

#[tokio::test]
async fn a_refresh_by_the_operator_joins_the_request_in_flight() {
    let held = |issuer: &Control| issuer.push_fault(Fault::none().held());
    let agent = Agent::start_with(Setting { before: held, ..Setting::default() }).await;
    let client = agent.client().await;
    agent.issuer.wait_for_request(1).await;
    let mut refreshes = Vec::new();
    for _ in 0..3 {
        let operator = client.clone();
        refreshes.push(client.begin(async move { operator.refresh(BLOOM).await }).await);
    }
    agent.issuer.release();
    for refresh in refreshes {
        let generation = refresh.await.unwrap().unwrap().generation;
        assert_eq!(generation, client.get(BLOOM).await.unwrap().generation);
    }
    assert_eq!(agent.issuer.request_count(), 1);
    agent.stop().await;
}

#[tokio::test]
async fn status_and_metrics_say_everything_but_a_token_or_a_secret() {
    let own = nix::unistd::geteuid();
    let tokens = profile(BLOOM, &format!("allow = ['uid:7', 'uid:{own}']"))
        + &profile("broken", "client_id = 'nobody'\nscopes = ['data-access:all']").replacen(
            "client_id = 'it-client'\n",
            "",
            1,
        );
    let agent = Agent::start_with(Setting { tokens, ..Setting::default() }).await;
    let client = agent.client().await;
    let token = client.get(BLOOM).await.unwrap();
    let watch = client.watch(BLOOM).await.unwrap();
    agent.attempts_until("broken", |attempts| attempts.settled == 1).await;

    let status = client.status().await.unwrap();
    let [bloom, broken] = status.profiles.as_slice() else { panic!("two profiles: {:?}", status.profiles) };
    assert_eq!((status.connections, status.watches), (1, 1));
    assert_eq!(status.pid, i32::try_from(std::process::id()).unwrap());
    assert_eq!((bloom.requests, bloom.consecutive_failures), (1, 0));
    assert_eq!(bloom.allow, ["uid:7".to_owned(), format!("uid:{own}")]);
    assert!(
        bloom.token_url.ends_with("/oauth2/token") && bloom.secret_source.contains("secret"),
        "{bloom:?}"
    );
    assert_eq!(bloom.token.as_ref().unwrap().generation, token.generation);
    assert_eq!((broken.requests, broken.consecutive_failures), (1, 1));
    assert!(broken.last_failure_text.contains("invalid_client"), "{}", broken.last_failure_text);

    let metrics = client.metrics().await.unwrap();
    for family in [
        "bloom_agent_token_expiry_timestamp_seconds{profile=\"bloom\"}",
        "bloom_agent_refreshes_total{profile=\"bloom\",outcome=",
        "bloom_agent_refreshes_total{profile=\"broken\",outcome=",
        "bloom_agent_calls_total{method=\"GetToken\",code=\"OK\"} 1",
        "bloom_agent_connections 1",
        "bloom_agent_denied_total",
        "bloom_agent_degraded",
        "# EOF",
    ] {
        assert!(metrics.contains(family), "{family} is not in:\n{metrics}");
    }
    let said = [metrics, format!("{status:?}"), agent.log()];
    for said in said {
        assert!(!said.contains(&token.access_token) && !said.contains(SECRET), "{said}");
    }
    drop(watch);
    agent.stop().await;
}
