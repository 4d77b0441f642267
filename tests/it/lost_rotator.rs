//! A fault of the agent's own: the task of a profile's token panics. Another takes its place, and callers do not notice.

use std::sync::{
    Arc, Mutex, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use bloom_agent::{
    clock::{Clock, Now},
    timer::ManualTime,
};
use tonic::Code;

use crate::support::{Agent, BLOOM, Next as _, Setting, refusal, retry_delay, soon};

/// A clock with a bug: what an attempt does on the rotator's own task panics, for the next so many attempts.
#[derive(Default)]
struct Panicking {
    time: OnceLock<ManualTime>,
    left: Mutex<u64>,
    panics: AtomicU64,
}

impl Panicking {
    fn set(&self, left: u64) {
        *self.left.lock().unwrap() = left;
    }

    fn count(&self) -> u64 {
        self.panics.load(Ordering::SeqCst)
    }
}

impl Clock for Panicking {
    fn now(&self) -> Now {
        let panics = {
            let mut left = self.left.lock().unwrap();
            let panics = *left > 0;
            *left = left.saturating_sub(1);
            panics
        };
        if panics {
            self.panics.fetch_add(1, Ordering::SeqCst);
            // A panic without the hook, which would print hundreds of them.
            std::panic::resume_unwind(Box::new("on purpose"));
        }
        self.time.get().unwrap().now()
    }
}

async fn agent(bug: &Arc<Panicking>) -> Agent {
    let bug = Arc::clone(bug);
    let clock = move |time: ManualTime| -> Arc<dyn Clock> {
        bug.time.set(time).unwrap();
        bug
    };
    Agent::start_with(Setting { clock: Box::new(clock), ..Setting::default() }).await
}

/// When ListTokens says that the next attempt starts, by the wall clock.
async fn next_refresh(client: &crate::support::Client) -> i64 {
    let next = client.list().await[0].next_refresh_at.expect("no attempt is in flight");
    next.seconds * 1000 + i64::from(next.nanos) / 1_000_000
}

/// Waits until `count` rotators were lost, and the last one's successor is in its place.
async fn lost(agent: &Agent, count: usize) {
    let all = async {
        while agent.log().matches("rotator was lost").count() < count {
            tokio::task::yield_now().await;
        }
    };
    soon("the rotator is lost", all).await;
}

#[tokio::test]
async fn a_rotator_that_panics_is_replaced_and_callers_notice_nothing() {
    let bug = Arc::new(Panicking::default());
    let agent = agent(&bug).await;
    let client = agent.client().await;
    let token = client.get(BLOOM).await.unwrap();
    let (mut watch, mut health) = (client.watch(BLOOM).await.unwrap(), client.watch_health(BLOOM).await);
    watch.next_message().await.unwrap();
    health.next_message().await.unwrap();

    bug.set(1);
    agent.time.advance_to(agent.next_attempt(BLOOM).await);
    lost(&agent, 1).await;
    assert_eq!(client.get(BLOOM).await.unwrap(), token, "the successor has the token");
    assert_eq!(client.status().await.unwrap().profiles[0].requests, 1, "and the counts");

    // It tries again by itself.
    agent.time.advance(std::time::Duration::from_secs(2));
    let next = watch.next_message().await.unwrap().unwrap().token.unwrap();
    assert!(next.generation > token.generation, "the same stream, and no token twice");
    assert_eq!(client.get(BLOOM).await.unwrap(), next);
    assert_eq!((bug.count(), agent.issuer.request_count()), (1, 2));
    // Nor did the health watch see anything: its next message is the end of the token's life.
    agent.issuer.set_outage(bloom_agent::dev_issuer::Outage::Refuse);
    agent.time.advance(std::time::Duration::from_secs(3600));
    let status = health.next_message().await.unwrap().unwrap().status();
    assert_eq!(status, tonic_health::pb::health_check_response::ServingStatus::NotServing);
    agent.stop().await;
}

#[tokio::test]
async fn a_fault_that_comes_back_each_time_is_met_ever_more_rarely_and_callers_are_told_when_to_ask_again() {
    let bug = Arc::new(Panicking::default());
    bug.set(u64::MAX);
    let agent = agent(&bug).await;
    let client = agent.client().await;
    lost(&agent, 1).await;
    // The time stands still, so the successor waits.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(bug.count(), 1, "no busy loop");
    const HOUR: i64 = 3_600_000;
    let start = agent.time.now().wall.unix_millis();
    let mut losses = 1;
    while next_refresh(&client).await < start + HOUR {
        let now = agent.time.now().wall.unix_millis();
        let wait = u64::try_from(next_refresh(&client).await - now).unwrap() + 1;
        agent.time.advance(std::time::Duration::from_millis(wait));
        losses += 1;
        lost(&agent, losses).await;
    }
    assert!(
        (120..700).contains(&losses),
        "{losses} in an hour: some 30 s apart at the most, and not a flood"
    );
    // The bug goes away: nobody has to do anything about it.
    bug.set(0);
    let call = client.begin_get(BLOOM).await;
    agent.time.advance(std::time::Duration::from_secs(30));
    assert!(call.await.unwrap().is_ok());
    assert_eq!(agent.issuer.request_count(), 1);
    agent.stop().await;
}

#[tokio::test]
async fn a_caller_who_cannot_wait_for_the_successor_is_told_when_to_come_back() {
    let bug = Arc::new(Panicking::default());
    bug.set(u64::MAX);
    let agent = agent(&bug).await;
    let client = agent.client().await;
    lost(&agent, 1).await;
    let mut request = tonic::Request::new(bloom_agent::pb::GetTokenRequest::default());
    request.metadata_mut().insert("grpc-timeout", "1m".parse().unwrap());
    let status = soon("an answer", client.tokens.clone().get_token(request)).await.expect_err("no token");
    assert_eq!(refusal(&status), (Code::Unavailable, "TOKEN_PENDING".to_owned(), true));
    assert!(retry_delay(&status) <= std::time::Duration::from_secs(1));
    agent.stop().await;
}
