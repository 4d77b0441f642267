//! SIGKILL at each point where the agent waits: whatever was under way, the next one starts from what the world has, and serves.
//!
//! The agent and the provider run on one thread; after so many turns of it the agent is gone, with nothing done any more.

use bloom_agent::{daemon::keep::Found, dev_issuer::Fault, systemd::Notifier};

use crate::{
    invariants::{Given, all_is_well},
    support::{Agent, BLOOM, End, Setting, profile, soon},
};

/// When a kill comes, in turns of the thread; how many an exchange takes is the machine's business.
const TURNS: [usize; 10] = [0, 1, 2, 3, 5, 8, 13, 21, 34, 55];

/// So many turns more.
async fn take_turns(turns: usize) {
    for _ in 0..turns {
        tokio::task::yield_now().await;
    }
}

/// A token; what the provider may still hold, since nobody came to ask for it, is let go.
async fn a_token(agent: &Agent) -> Result<bloom_agent::pb::Token, tonic::Status> {
    let call = agent.client().await.begin_get(BLOOM).await;
    while !call.is_finished() {
        agent.issuer.release();
        tokio::task::yield_now().await;
    }
    call.await.unwrap()
}

/// Begins something, of which the agent is then killed.
type Begin = fn(&Agent);

#[tokio::test]
async fn killed_wherever_it_waits_the_next_one_serves_and_the_provider_hardly_notices() {
    let begins: [(&str, Begin); 3] = [
        ("a refresh", |agent| agent.time.advance(std::time::Duration::from_secs(3_100))),
        ("a refresh that the provider holds", |agent| {
            agent.issuer.push_fault(Fault::none().held());
            agent.time.advance(std::time::Duration::from_secs(3_100));
        }),
        ("a step of the wall clock", |agent| {
            // Past the floor between two fetches.
            agent.time.advance(std::time::Duration::from_secs(60));
            let wall = bloom_agent::clock::Clock::now(&agent.time).wall;
            agent.time.set_wall(wall + std::time::Duration::from_secs(7_200));
        }),
    ];
    for (what, begin) in begins {
        let mut unsent = 0;
        // From its beginning on, and from when the provider has been asked.
        for (is_asked, turns) in
            [false, true].into_iter().flat_map(|is_asked| TURNS.map(|turns| (is_asked, turns)))
        {
            let mut agent = Agent::start().await;
            let given = Given::default();
            let client = agent.client().await;
            given.note(&client.get(BLOOM).await.unwrap());
            begin(&agent);
            let asked = async {
                while is_asked && agent.issuer.request_count() < 2 {
                    tokio::task::yield_now().await;
                }
            };
            soon("the provider is asked", asked).await;
            take_turns(turns).await;
            agent.end(End::Crash).await;
            let when = format!("{what}, asked: {is_asked}, {turns}");
            assert!(client.get(BLOOM).await.is_err(), "{when}: nobody is there");
            unsent += usize::from(agent.issuer.request_count() < 2);
            agent.begin(Notifier::none(), Found::default()).await;
            let token = a_token(&agent).await;
            let token = token.unwrap_or_else(|status| panic!("{when}: {status:?}\n{}", agent.log()));
            given.note(&token);
            // The first one's, the one that was cut off, the next one's.
            all_is_well(&agent, &given, 3).await;
            agent.stop().await;
        }
        assert!(unsent > 0, "{what}: none was killed before it had asked");
    }
}

#[tokio::test]
async fn killed_at_any_moment_of_its_start_or_of_a_reload_it_leaves_nothing_in_the_way() {
    for turns in TURNS {
        let mut agent = Agent::start_with(Setting {
            before: |issuer| issuer.push_fault(Fault::none().held()),
            ..Setting::default()
        })
        .await;
        take_turns(turns).await;
        agent.end(End::Crash).await;
        agent.begin(Notifier::none(), Found::default()).await;
        let token = a_token(&agent).await.unwrap();
        let client = agent.client().await;

        agent.write_config(&profile(BLOOM, "audience = 'another-api'"));
        let operator = client.clone();
        let reload = client.begin(async move { operator.reload().await }).await;
        take_turns(turns).await;
        agent.end(End::Crash).await;
        // It was done, or it was not.
        let _outcome = reload.await.unwrap();
        agent.begin(Notifier::none(), Found::default()).await;
        let new = agent.client().await.get(BLOOM).await.unwrap();
        assert_eq!((new.audience.as_str(), new != token), ("another-api", true));
        all_is_well(&agent, &Given::default(), 4).await;
        agent.stop().await;
    }
}
