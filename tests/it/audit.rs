//! Who got what, in the log: the first of each, then a count once a minute; never a token.

use std::time::Duration;

use crate::support::{Agent, BLOOM, SECRET, Setting, as_caller, profile, skipped_without_root, soon};

fn audited(agent: &Agent) -> Vec<String> {
    let pid = format!(" pid={}", std::process::id());
    let log = agent.log();
    let lines = log.lines().filter_map(|line| line.split_once(" INFO bloom_agent::audit: audit "));
    lines.map(|(_, line)| line.replace(&pid, "")).collect()
}

#[tokio::test]
async fn grants_are_told_once_for_each_token_and_denials_once_and_then_counted() {
    if skipped_without_root("grants_are_told_once_for_each_token_and_denials_once_and_then_counted") {
        return;
    }
    let tokens = profile(BLOOM, "allow = ['uid:1234']");
    let agent = Agent::start_with(Setting { tokens, ..Setting::default() }).await;
    let operator = agent.client().await;
    let (caller, stranger) = (as_caller(&agent, 1234).await, as_caller(&agent, 4321).await);
    let first = caller.get(BLOOM).await.unwrap();
    for _ in 0..5 {
        caller.get(BLOOM).await.unwrap();
        stranger.get(BLOOM).await.unwrap_err();
        stranger.get("invented").await.unwrap_err();
        stranger.status().await.unwrap_err();
    }
    operator.refresh(BLOOM).await.unwrap();
    let second = caller.get(BLOOM).await.unwrap();
    caller.report(BLOOM, first.generation).await.unwrap();
    let (old, new) = (first.generation, second.generation);
    let told = [
        format!("decision=granted verb=get profile=bloom generation={old} uid=1234 rule=uid:1234"),
        "decision=denied verb=get profile=bloom uid=4321 count=1".to_owned(),
        "decision=denied verb=get profile=unknown uid=4321 count=1".to_owned(),
        "decision=denied verb=admin profile=unknown uid=4321 count=1".to_owned(),
        "decision=granted verb=refresh-token profile=bloom uid=0 rule=root".to_owned(),
        format!("decision=granted verb=get profile=bloom generation={new} uid=1234 rule=uid:1234"),
        format!(
            "decision=granted verb=report-rejected profile=bloom generation={old} uid=1234 rule=uid:1234"
        ),
    ];
    assert_eq!(audited(&agent), told);

    agent.time.advance(Duration::from_secs(60));
    let counts = async {
        while audited(&agent).len() < told.len() + 3 {
            tokio::task::yield_now().await;
        }
    };
    soon("the counts are told", counts).await;
    let mut counts = audited(&agent).split_off(told.len());
    counts.sort();
    assert_eq!(
        counts,
        [
            "decision=denied verb=admin profile=unknown uid=4321 count=4",
            "decision=denied verb=get profile=bloom uid=4321 count=4",
            "decision=denied verb=get profile=unknown uid=4321 count=4",
        ]
    );
    for secret in [SECRET, &first.access_token, &second.access_token] {
        assert!(!agent.log().contains(secret), "{}", agent.log());
    }
    agent.stop().await;
}
