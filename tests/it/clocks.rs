//! What clocks do to the agent as a whole: it stands still for minutes, sleeps with its host, comes back from a snapshot, and
//! has its wall clock set. The clock is the story's; nothing runs between two of its moments unless the story waits.

use std::time::Duration;

use bloom_agent::{
    clock::{Clock as _, WallTime},
    dev_issuer::Outage,
};

use crate::{
    invariants::{Given, all_is_well},
    support::{Agent, BLOOM, Next as _},
};

const HOUR: Duration = Duration::from_secs(3_600);
const MINUTE: Duration = Duration::from_secs(60);

/// Lets every task run until it waits.
async fn let_all_run() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn stopped_over_the_end_of_its_token_it_never_serves_that_again() {
    // SIGSTOP and SIGCONT, a suspend, a host that is out of breath: time went by, and nothing ran.
    for (past_the_end, is_served) in [
        (None, true),
        (Some(Duration::ZERO), false),
        (Some(Duration::from_nanos(1)), false),
        (Some(10 * MINUTE), false),
        (Some(8 * HOUR), false),
        (Some(400 * 24 * HOUR), false),
    ] {
        let agent = Agent::start().await;
        let (client, given) = (agent.client().await, Given::default());
        let old = client.get(BLOOM).await.unwrap();
        let mut watch = client.watch(BLOOM).await.unwrap();
        assert_eq!(watch.next_message().await.unwrap().unwrap().token.unwrap(), old);

        let end = agent.served_until(BLOOM);
        agent.time.advance_to(past_the_end.map_or(end - Duration::from_nanos(1), |past| end + past));
        // Whichever task runs first, the caller's or the one that should have refreshed long ago.
        let answer = client.get(BLOOM).await.unwrap();
        given.note(&answer);
        assert!(answer == old || !is_served || answer.generation > old.generation);
        assert_eq!(answer == old, is_served, "{past_the_end:?}");
        let rotated = watch.next_message().await.unwrap().unwrap().token.unwrap();
        assert!(rotated.generation > old.generation, "{past_the_end:?}");
        assert_eq!(agent.issuer.request_count(), 2, "one for all that it missed: {past_the_end:?}");
        all_is_well(&agent, &given, 2).await;
        agent.stop().await;
    }
}

#[tokio::test]
async fn stopped_over_the_end_of_its_token_while_the_provider_is_away_it_says_so() {
    let agent = Agent::start().await;
    let (client, given) = (agent.client().await, Given::default());
    given.note(&client.get(BLOOM).await.unwrap());
    agent.issuer.set_outage(Outage::Refuse);
    agent.time.advance(8 * HOUR);
    let call = client.begin_get(BLOOM).await;
    agent.attempts_until(BLOOM, |attempts| attempts.settled == 2).await;
    // Its own patience is tokio's and stands still: the attempts go on until one is further away than it would wait.
    while !call.is_finished() {
        agent.pass_an_attempt(BLOOM).await;
        let_all_run().await;
    }
    assert_eq!(call.await.unwrap().unwrap_err().code(), tonic::Code::Unavailable);
    agent.issuer.set_outage(Outage::Up);
    agent.pass_an_attempt(BLOOM).await;
    client.get(BLOOM).await.unwrap();
    all_is_well(&agent, &given, 2).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_wall_clock_that_is_set_takes_no_token_away_and_costs_one_request_at_most() {
    let start = 1_700_000_000_000;
    let years = 10 * 365 * 24 * 3_600_000;
    for (what, wall, requests) in [
        ("within the token's time", start + 1_800_000, 1),
        ("an hour forward", start + 3_600_000, 2),
        ("an hour back", start - 3_600_000, 1),
        ("ten years forward", start + years, 2),
        ("to 1970", 0, 1),
        ("before 1970", -start, 1),
        ("to the end of time", i64::MAX, 2),
    ] {
        let agent = Agent::start().await;
        let (client, given) = (agent.client().await, Given::default());
        let old = client.get(BLOOM).await.unwrap();
        given.note(&old);
        // Past the floor between two fetches.
        agent.time.advance(MINUTE);
        // While the provider is away the step is of no use, and does no harm either.
        agent.issuer.set_outage(Outage::Refuse);
        agent.time.set_wall(WallTime::from_unix_millis(wall));
        let is_asked = requests > 1;
        if is_asked {
            agent.attempts_until(BLOOM, |attempts| attempts.consecutive_failures == 1).await;
        }
        let_all_run().await;
        assert_eq!(client.get(BLOOM).await.unwrap(), old, "{what}");
        agent.issuer.set_outage(Outage::Up);
        if is_asked {
            agent.pass_an_attempt(BLOOM).await;
        }
        let_all_run().await;
        let now = client.get(BLOOM).await.unwrap();
        assert_eq!((now != old, agent.issuer.request_count()), (is_asked, requests), "{what}");
        if wall < i64::MAX {
            all_is_well(&agent, &given, requests).await;
        }
        agent.stop().await;
    }
}

#[tokio::test]
async fn a_clock_that_is_set_again_and_again_makes_one_request_in_ten_minutes() {
    let agent = Agent::start().await;
    let (client, given) = (agent.client().await, Given::default());
    given.note(&client.get(BLOOM).await.unwrap());
    agent.time.advance(MINUTE);
    for round in 0..6 {
        for step in 0..50 {
            // Forward past every refresh point, back, and forward again.
            let wall = agent.time.now().wall;
            agent.time.set_wall(if step % 2 == 0 { wall + 48 * HOUR } else { wall - 47 * HOUR });
            let_all_run().await;
            given.note(&client.get(BLOOM).await.unwrap());
        }
        // One in each ten minutes, and not none.
        assert_eq!(agent.issuer.request_count(), 2 + round);
        agent.time.advance(10 * MINUTE);
        let_all_run().await;
    }
    all_is_well(&agent, &given, 8).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_snapshot_that_is_restored_heals_at_the_first_time_sync() {
    let agent = Agent::start().await;
    let (client, given) = (agent.client().await, Given::default());
    let old = client.get(BLOOM).await.unwrap();
    given.note(&old);
    let mut watch = client.watch(BLOOM).await.unwrap();
    watch.next_message().await.unwrap();
    // Hours went by outside; for both clocks of the host no time has. Nothing can know better yet.
    agent.issuer.revoke(&old.access_token);
    agent.time.advance(MINUTE);
    let_all_run().await;
    assert_eq!((client.get(BLOOM).await.unwrap(), agent.issuer.request_count()), (old.clone(), 1));
    // The host's time daemon has heard the right time.
    agent.time.set_wall(agent.time.now().wall + 8 * HOUR);
    let new = watch.next_message().await.unwrap().unwrap().token.unwrap();
    assert!(new.generation > old.generation && agent.issuer.is_live(&new.access_token));
    assert_eq!((client.get(BLOOM).await.unwrap(), agent.issuer.request_count()), (new, 2));
    all_is_well(&agent, &Given::default(), 2).await;
    agent.stop().await;
}
