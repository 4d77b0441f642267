//! What the metrics say is what happened.

use std::time::Duration;

use bloom_agent::dev_issuer::{Fault, Outage, Reply};
use http::StatusCode;

use crate::support::{Agent, BLOOM, profile};

/// One series' value.
fn value(metrics: &str, series: &str) -> i64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{metrics}")).parse().unwrap()
}

const EXPIRY: &str = "bloom_agent_token_expiry_timestamp_seconds{profile=\"bloom\"}";

#[tokio::test]
async fn an_expired_tokens_expiry_stays_and_a_withdrawn_ones_goes() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    let token = client.get(BLOOM).await.unwrap();
    let expiry = token.expires_at.unwrap().seconds;
    assert_eq!(value(&client.metrics().await.unwrap(), EXPIRY), expiry);

    agent.issuer.set_outage(Outage::Refuse);
    agent.time.advance(Duration::from_secs(2 * 3600));
    agent.attempts_until(BLOOM, |attempts| attempts.last_failure.is_some()).await;
    assert_eq!(value(&client.metrics().await.unwrap(), EXPIRY), expiry, "an alert on it keeps firing");

    agent.write_config(&profile(BLOOM, "audience = 'another-api'"));
    client.reload().await.unwrap();
    assert_eq!(
        value(&client.metrics().await.unwrap(), EXPIRY),
        0,
        "for the new audience there was never one"
    );
    agent.stop().await;
}

#[tokio::test]
async fn every_call_is_counted_by_its_end_whoever_answered_it() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    client.get(BLOOM).await.unwrap();
    client.get("no-such-profile").await.expect_err("unknown");
    client.check("").await.unwrap();
    let watch = client.watch(BLOOM).await.unwrap();
    drop(watch);
    client.catch_up().await;
    let metrics = client.metrics().await.unwrap();
    let calls = |method: &str, code: &str| {
        value(&metrics, &format!("bloom_agent_calls_total{{method=\"{method}\",code=\"{code}\"}}"))
    };
    assert_eq!(calls("GetToken", "OK"), 1);
    assert_eq!(calls("GetToken", "NOT_FOUND"), 1);
    assert!(calls("HealthCheck", "OK") >= 1);
    assert_eq!(calls("WatchToken", "CANCELLED"), 1);
    agent.stop().await;
}

#[tokio::test]
async fn an_answer_that_departs_from_the_rfc_is_counted_each_time() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    client.get(BLOOM).await.unwrap();
    for count in 1..=2 {
        let token = agent.issuer.mint();
        let body = format!(r#"{{"access_token":"{token}","token_type":"bearer","expires_in":"3600"}}"#);
        agent.issuer.push_fault(Fault::reply(Reply::json(StatusCode::OK, body)));
        agent.time.advance(Duration::from_secs(30));
        client.refresh(BLOOM).await.unwrap();
        let metrics = client.metrics().await.unwrap();
        let deviations: Vec<_> = metrics
            .lines()
            .filter(|line| line.starts_with("bloom_agent_provider_deviations_total{"))
            .collect();
        assert!(
            deviations
                .iter()
                .any(|line| line.contains("textual_lifetime") && line.ends_with(&format!(" {count}"))),
            "{deviations:?}"
        );
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_request_larger_than_any_of_ours_is_refused_before_it_is_held() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    let status = client.get(&"x".repeat(5000)).await.expect_err("too long");
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status:?}");
    agent.stop().await;
}
