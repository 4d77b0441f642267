//! How the agent ends: whatever is under way, nothing of it is left running.

use bloom_agent::{
    daemon::Signal,
    dev_issuer::{Control, Fault},
};
use tokio::runtime::Handle;
use tonic::Code;

use crate::support::{Agent, BLOOM, Setting, refusal, soon};

fn held(issuer: &Control) {
    issuer.push_fault(Fault::none().held());
}

/// Stops the agent and everything around it, and looks for tasks that are left.
async fn nothing_is_left_of(agent: Agent) {
    agent.stop().await;
    no_task_is_left().await;
}

async fn no_task_is_left() {
    let gone = async {
        // A cancelled task is gone when it is polled once more.
        while Handle::current().metrics().num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    };
    soon("every task has ended", gone).await;
}

#[tokio::test]
async fn an_idle_agent_stops_at_once_and_leaves_nothing() {
    let agent = Agent::start().await;
    agent.client().await.get(BLOOM).await.unwrap();
    nothing_is_left_of(agent).await;
}

#[tokio::test]
async fn an_agent_stops_during_a_fetch() {
    let agent = Agent::start_with(Setting { before: held, ..Setting::default() }).await;
    agent.issuer.wait_for_request(1).await;
    nothing_is_left_of(agent).await;
}

#[tokio::test]
async fn an_agent_stops_during_waits_and_tells_those_who_wait() {
    let agent = Agent::start_with(Setting { before: held, ..Setting::default() }).await;
    let client = agent.client().await;
    agent.issuer.wait_for_request(1).await;
    let get = client.begin_get(BLOOM).await;
    let operator = client.clone();
    let refresh = client.begin(async move { operator.refresh(BLOOM).await }).await;
    let watch = client.watch(BLOOM).await.unwrap();
    drop(client);
    agent.signal(Signal::Stop).await;
    let ended = (Code::Unavailable, "SHUTTING_DOWN".to_owned(), true);
    assert_eq!(refusal(&get.await.unwrap().expect_err("the end")), ended);
    assert_eq!(refusal(&refresh.await.unwrap().expect_err("the end")), ended);
    drop(watch);
    let mut agent = agent;
    agent.ended().await;
}

#[tokio::test]
async fn a_token_that_is_there_is_given_until_the_last_moment() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    let token = client.get(BLOOM).await.unwrap();
    agent.time.advance(std::time::Duration::from_secs(600));
    agent.issuer.push_fault(Fault::none().held());
    let (reporter, greedy) = (client.clone(), client.clone());
    let generation = token.generation;
    let report = client.begin(async move { reporter.report(BLOOM, generation).await }).await;
    let wanted = Some(std::time::Duration::from_secs(3200));
    let get = client.begin(async move { greedy.get_valid_for(BLOOM, wanted).await }).await;
    agent.issuer.wait_for_request(2).await;
    drop(client);
    agent.signal(Signal::Stop).await;
    // Never an error while a token is valid.
    assert_eq!(get.await.unwrap().unwrap(), token);
    let answer = report.await.unwrap().unwrap();
    assert_eq!((answer.generation, answer.is_new), (generation, false));
    let mut agent = agent;
    agent.ended().await;
}

#[tokio::test]
async fn a_second_stop_waits_for_nobody() {
    let mut agent = Agent::start().await;
    let client = agent.client().await;
    // A stream that nobody reads and a connection that nobody closes.
    let watch = client.watch(BLOOM).await.unwrap();
    agent.signal(Signal::Stop).await;
    agent.signal(Signal::Stop).await;
    agent.ended().await;
    drop((watch, client, agent));
    no_task_is_left().await;
}

#[tokio::test]
async fn a_reload_and_a_stop_in_either_order_end_the_agent() {
    for order in [[Signal::Reload, Signal::Stop], [Signal::Stop, Signal::Reload]] {
        let mut agent = Agent::start().await;
        for signal in order {
            agent.signal(signal).await;
        }
        agent.ended().await;
    }
}

#[tokio::test]
async fn who_gives_the_signals_is_gone_and_so_is_the_agent() {
    let mut agent = Agent::start().await;
    agent.lose_the_signals();
    agent.ended().await;
}
