//! The provider is away for longer than the refresh margin: callers do not notice until the token really expires.

use std::time::Duration;

use bloom_agent::{
    clock::Clock as _,
    dev_issuer::{Control, Fault, Outage},
    pb::{FailureKind, TokenState},
};
use http::StatusCode;
use tonic::Code;

use crate::support::{Agent, BLOOM, refusal, retry_delay};

/// What a caller without a token is told, how it looks to who lists tokens, and what happened at the provider.
type OutageCase = (&'static str, FailureKind, fn(&Control));

const OUTAGES: [OutageCase; 3] = [
    ("PROVIDER_UNREACHABLE", FailureKind::ProviderUnreachable, |issuer| issuer.set_outage(Outage::Refuse)),
    ("PROVIDER_ERROR", FailureKind::ProviderError, |issuer| {
        issuer.set_rule(Some(Fault::status(StatusCode::SERVICE_UNAVAILABLE)));
    }),
    ("PROVIDER_REFUSED", FailureKind::ProviderRefused, |issuer| issuer.set_secrets(["another"])),
];

#[tokio::test]
async fn an_outage_is_noticed_when_the_token_really_expires_and_heals_by_itself() {
    for (reason, kind, begin) in OUTAGES {
        let agent = Agent::start().await;
        let client = agent.client().await;
        let first = client.get(BLOOM).await.unwrap();
        let expires = agent.served_until(BLOOM);
        let margin = expires.since(agent.next_attempt(BLOOM).await);
        assert!(margin > Duration::from_secs(500), "{margin:?}: a fifth of an hour, give or take the jitter");

        begin(&agent.issuer);
        let mut attempts = 0;
        while agent.next_attempt(BLOOM).await < expires {
            let after = agent.pass_an_attempt(BLOOM).await;
            attempts += 1;
            assert_eq!(after.consecutive_failures, attempts);
            assert_eq!(client.get(BLOOM).await.unwrap(), first, "{reason}");
            let state = &client.list().await[0];
            assert_eq!((state.state(), state.last_failure()), (TokenState::Degraded, kind));
        }
        assert!((2..100).contains(&attempts), "{attempts}: neither given up nor a flood");

        // The last moment of its life, to the nanosecond; then the first moment after it.
        agent.time.advance_to(expires - Duration::from_nanos(1));
        assert_eq!(client.get(BLOOM).await.unwrap(), first, "{reason}");
        agent.time.advance_to(expires);
        // Where an attempt is due within its patience, a call waits for that; where not, it fails at once.
        let call = client.begin_get(BLOOM).await;
        agent.pass_an_attempt(BLOOM).await;
        let status = call.await.unwrap().expect_err("it is never served after its expiry");
        assert_eq!(refusal(&status), (Code::Unavailable, reason.to_owned(), true));
        assert!(retry_delay(&status) <= Duration::from_secs(15 * 60), "{:?}", retry_delay(&status));
        let state = &client.list().await[0];
        assert_eq!((state.state(), state.generation), (TokenState::Unavailable, 0));

        agent.issuer.set_outage(Outage::Up);
        agent.issuer.set_rule(None);
        agent.issuer.set_secrets([crate::support::SECRET]);
        agent.pass_an_attempt(BLOOM).await;
        let second = client.get(BLOOM).await.unwrap();
        assert!(second.generation > first.generation && agent.issuer.is_live(&second.access_token));
        assert_eq!(client.list().await[0].state(), TokenState::Valid);
        let log = agent.log();
        assert!(log.contains("recovered"), "{log}");
        for token in [&first.access_token, &second.access_token] {
            assert!(!log.contains(token.as_str()), "a token is in the log");
        }
        assert!(!log.contains(crate::support::SECRET), "the secret is in the log");
        agent.stop().await;
    }
}

#[tokio::test]
async fn a_retry_after_is_what_callers_are_told_and_what_the_agent_keeps_to() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    client.get(BLOOM).await.unwrap();
    agent.issuer.set_rule(Some(Fault::too_many_requests(
        Some(Duration::from_secs(1800)),
        agent.time.now().wall + Duration::from_secs(1800),
    )));
    agent.time.advance_to(agent.served_until(BLOOM));
    agent.attempts_until(BLOOM, |attempts| attempts.consecutive_failures == 1).await;
    let status = client.get(BLOOM).await.expect_err("no token, and the next attempt is far away");
    assert_eq!(refusal(&status).0, Code::Unavailable);
    assert!(retry_delay(&status) >= Duration::from_secs(1800), "{:?}", retry_delay(&status));
    let before = agent.issuer.request_count();
    // As near as it can be without being near enough to wait for.
    agent.time.advance(Duration::from_secs(1769));
    assert!(client.get(BLOOM).await.is_err());
    assert!(agent.next_attempt(BLOOM).await.since(agent.time.now().boot) >= Duration::from_secs(31));
    assert_eq!(agent.issuer.request_count(), before);
    agent.issuer.set_rule(None);
    agent.pass_an_attempt(BLOOM).await;
    assert!(client.get(BLOOM).await.is_ok());
    agent.stop().await;
}
