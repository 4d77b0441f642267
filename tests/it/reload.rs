//! Reloads: all or nothing, judged on open connections too, and no token request unless the identity changed.

use bloom_agent::{daemon::Signal, dev_issuer::Fault};
use tokio::task::JoinSet;
use tonic::Code;

use crate::support::{Agent, BLOOM, Next as _, Setting, as_caller, profile, refusal, skipped_without_root};

const CALLER: u32 = 1234;

fn allowing(rules: &str) -> String {
    profile(BLOOM, &format!("allow = [{rules}]"))
}

#[tokio::test]
async fn a_permission_taken_away_ends_the_watch_and_the_next_call_of_an_open_connection() {
    if skipped_without_root("a_permission_taken_away_ends_the_watch_and_the_next_call_of_an_open_connection")
    {
        return;
    }
    let agent = Agent::start_with(Setting { tokens: allowing("'uid:1234'"), ..Setting::default() }).await;
    let (operator, caller) = (agent.client().await, as_caller(&agent, CALLER).await);
    let token = caller.get(BLOOM).await.unwrap();
    let mut watch = caller.watch(BLOOM).await.unwrap();
    assert_eq!(watch.next_message().await.unwrap().unwrap().token.unwrap(), token);
    let mut other = operator.watch(BLOOM).await.unwrap();
    other.next_message().await.unwrap();
    assert_eq!(caller.list().await.len(), 1);

    agent.write_config(&allowing("'uid:4321'"));
    operator.reload().await.unwrap();
    let denied = (Code::PermissionDenied, "NOT_ALLOWED".to_owned(), false);
    assert_eq!(refusal(&watch.next_message().await.expect_err("the end")), denied);
    assert_eq!(refusal(&caller.get(BLOOM).await.expect_err("denied")), denied);
    assert_eq!(refusal(&caller.watch(BLOOM).await.expect_err("denied")), denied);
    assert_eq!(refusal(&caller.report(BLOOM, token.generation).await.expect_err("denied")), denied);
    assert_eq!(caller.list().await, []);

    // And given back to the same connection, without a request for another token.
    agent.write_config(&allowing("'uid:4321', 'gid:1234'"));
    operator.reload().await.unwrap();
    assert_eq!(caller.get(BLOOM).await.unwrap(), token);
    assert_eq!(agent.issuer.request_count(), 1);
    // The other watch has seen nothing of all this.
    let rotated = operator.refresh(BLOOM).await.unwrap().generation;
    assert_eq!(other.next_message().await.unwrap().unwrap().token.unwrap().generation, rotated);
    agent.stop().await;
}

#[tokio::test]
async fn a_waiting_caller_is_judged_by_the_config_that_is_in_force_when_the_token_comes() {
    if skipped_without_root("a_waiting_caller_is_judged_by_the_config_in_force_when_the_token_comes") {
        return;
    }
    let agent = Agent::start_with(Setting {
        tokens: allowing("'uid:1234'"),
        before: |issuer| issuer.push_fault(Fault::none().held()),
        ..Setting::default()
    })
    .await;
    let (operator, caller) = (agent.client().await, as_caller(&agent, CALLER).await);
    agent.issuer.wait_for_request(1).await;
    let call = caller.begin_get(BLOOM).await;
    agent.write_config(&allowing("'uid:4321'"));
    operator.reload().await.unwrap();
    agent.issuer.release();
    let status = call.await.unwrap().expect_err("no longer allowed");
    assert_eq!(refusal(&status).0, Code::PermissionDenied);
    agent.stop().await;
}

#[tokio::test]
async fn a_profile_that_is_gone_is_not_found_and_one_that_comes_back_is_new() {
    let agent = Agent::start_with(Setting {
        tokens: profile(BLOOM, "") + &profile("other", "audience = 'b'"),
        ..Setting::default()
    })
    .await;
    let client = agent.client().await;
    let status = client.get("").await.expect_err("which one?");
    assert_eq!(refusal(&status), (Code::InvalidArgument, "NAME_REQUIRED".to_owned(), false));
    let mut watch = client.watch("other").await.unwrap();
    watch.next_message().await.unwrap().unwrap();

    agent.write_config(&profile(BLOOM, ""));
    let done = client.reload().await.unwrap();
    assert_eq!((done.added.len(), done.replaced.len(), done.removed), (0, 0, vec!["other".to_owned()]));
    let unknown = (Code::NotFound, "UNKNOWN_PROFILE".to_owned(), false);
    assert_eq!(refusal(&watch.next_message().await.expect_err("the end")), unknown);
    assert_eq!(refusal(&client.get("other").await.expect_err("gone")), unknown);
    assert_eq!(client.get("").await.unwrap().name, BLOOM, "no name is needed where there is one profile");

    agent.write_config(&(profile(BLOOM, "") + &profile("other", "audience = 'b'")));
    let requests = agent.issuer.request_count();
    assert_eq!(client.reload().await.unwrap().added, ["other"]);
    client.get("other").await.unwrap();
    assert_eq!(agent.issuer.request_count(), requests + 1);
    agent.stop().await;
}

#[tokio::test]
async fn a_caller_who_waits_for_a_profile_that_goes_is_told_so() {
    let agent = Agent::start_with(Setting {
        before: |issuer| issuer.push_fault(Fault::none().held()),
        ..Setting::default()
    })
    .await;
    let client = agent.client().await;
    agent.issuer.wait_for_request(1).await;
    let call = client.begin_get(BLOOM).await;
    agent.write_config(&profile("other", ""));
    client.reload().await.unwrap();
    let status = call.await.unwrap().expect_err("gone");
    assert_eq!(refusal(&status), (Code::NotFound, "UNKNOWN_PROFILE".to_owned(), false));
    agent.issuer.release();
    agent.stop().await;
}

#[tokio::test]
async fn a_changed_identity_withdraws_the_token_in_the_instant_of_the_swap() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    let old = client.get(BLOOM).await.unwrap();
    let mut watch = client.watch(BLOOM).await.unwrap();
    watch.next_message().await.unwrap();

    agent.issuer.push_fault(Fault::none().held());
    agent.write_config(&profile(BLOOM, "audience = 'another-api'"));
    assert_eq!(client.reload().await.unwrap().replaced, [BLOOM]);
    // The reload is answered, and the new token is still to come: the old one is not served for it.
    let call = client.begin_get(BLOOM).await;
    agent.issuer.wait_for_request(2).await;
    assert!(!call.is_finished());
    assert_eq!(client.list().await[0].generation, 0);
    agent.issuer.release();
    let new = call.await.unwrap().unwrap();
    assert_eq!((new.audience.as_str(), new.generation > old.generation), ("another-api", true));
    assert_eq!(watch.next_message().await.unwrap().unwrap().token.unwrap(), new);
    agent.stop().await;
}

#[tokio::test]
async fn the_answer_in_flight_for_an_old_identity_is_dropped() {
    let agent = Agent::start_with(Setting {
        before: |issuer| issuer.push_fault(Fault::none().held()),
        ..Setting::default()
    })
    .await;
    let client = agent.client().await;
    agent.issuer.wait_for_request(1).await;
    let call = client.begin_get(BLOOM).await;
    agent.write_config(&profile(BLOOM, "audience = 'another-api'"));
    client.reload().await.unwrap();
    // Who waited for the old identity waits for the new one, which is fetched while the old answer is still held.
    let token = call.await.unwrap().unwrap();
    assert_eq!((token.audience.as_str(), agent.issuer.request_count()), ("another-api", 2));
    agent.issuer.release();
    assert_eq!(client.get(BLOOM).await.unwrap(), token);
    agent.stop().await;
}

#[tokio::test]
async fn what_is_no_part_of_the_identity_keeps_the_token() {
    let mut agent = Agent::start().await;
    let client = agent.client().await;
    let token = client.get(BLOOM).await.unwrap();
    for lines in [
        &format!("allow = ['uid:7', 'uid:{}']", nix::unistd::geteuid()),
        "refresh = { at = 0.5, jitter = 0.0 }",
        "assumed_lifetime = '5m'",
        "require_scope = true",
        "scopes = ['data-access:all']\naudience = 'dev-api'",
        "client_secret.file = '/nowhere'",
        "client_secret.file = 'SECRET_FILE'\nclient_secret_next.file = '/nowhere'",
    ] {
        agent.write_config(&profile(BLOOM, lines));
        let done = client.reload().await.unwrap_or_else(|status| panic!("{lines}: {status}"));
        assert_eq!((done.added.len(), done.replaced.len(), done.removed.len()), (0, 0, 0), "{lines}");
        assert_eq!(client.get(BLOOM).await.unwrap(), token, "{lines}");
    }
    // Limits hold at once, on connections that are open.
    agent.limits = "watches = 1".to_owned();
    agent.write_config(&profile(BLOOM, ""));
    client.reload().await.unwrap();
    let first = client.watch(BLOOM).await.unwrap();
    let status = client.watch(BLOOM).await.expect_err("one is enough");
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "LIMIT".to_owned(), true));
    drop(first);
    assert_eq!(agent.issuer.request_count(), 1);
    agent.stop().await;
}

#[tokio::test]
async fn a_new_refresh_share_moves_the_refresh_point_of_the_token_that_is_there() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    client.get(BLOOM).await.unwrap();
    let before = agent.next_attempt(BLOOM).await;
    agent.write_config(&profile(BLOOM, "refresh = { at = 0.5, jitter = 0.0 }"));
    client.reload().await.unwrap();
    let after = agent.next_attempt(BLOOM).await;
    assert!(after < before);
    agent.pass_an_attempt(BLOOM).await;
    assert_eq!(agent.issuer.granted_count(), 2);
    agent.stop().await;
}

#[tokio::test]
async fn a_faulty_config_changes_nothing_and_all_its_faults_are_told() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    let token = client.get(BLOOM).await.unwrap();
    let before = client.status().await.unwrap();
    agent.write_config(
        "[tokens.bloom]\nprovider = 'bloom'\nclient_id = 'x'\nclient_secret = 'canary-4711'\ncolour = 1\n\
         [tokens.Other]\nprovider = 'oauth2'\ntoken_url = 'http://plain.example/'\n",
    );
    let status = client.reload().await.expect_err("faults");
    assert_eq!(status.code(), Code::InvalidArgument);
    let told = status.message();
    for fault in ["environment", "scopes", "colour", "client_secret", "not a profile's name", "token_url"] {
        assert!(told.contains(fault), "{fault} is not in: {told}");
    }
    assert!(!told.contains("canary-4711") && !agent.log().contains("canary-4711"), "{told}");

    assert_eq!(client.get(BLOOM).await.unwrap(), token);
    let after = client.status().await.unwrap();
    assert_eq!((after.configured_at, after.profiles), (before.configured_at, before.profiles));
    assert_eq!(agent.issuer.request_count(), 1);
    // And the next good one is taken.
    agent.write_config(&profile(BLOOM, ""));
    client.reload().await.unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn what_only_the_host_knows_and_what_only_a_restart_can_change_are_faults_of_the_same_reload() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    agent.write_raw_config(&format!(
        "[agent]\nsocket = '/run/elsewhere.sock'\nsocket_mode = '0600'\n[log]\nlevel = 'loud'\n{}",
        profile(BLOOM, "ca_file = '/nowhere/ca.pem'"),
    ));
    let status = client.reload().await.expect_err("faults");
    let told = status.message();
    let faults =
        ["agent.socket:", "agent.socket_mode:", "restart for that", "log.level:", "tokens.bloom.ca_file:"];
    for fault in faults {
        assert!(told.contains(fault), "{fault} is not in: {told}");
    }
    assert_eq!(told.lines().count(), 4, "{told}");
    agent.stop().await;
}

#[tokio::test]
async fn a_storm_of_reloads_is_shared_and_costs_no_request() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    let token = client.get(BLOOM).await.unwrap();
    let own = nix::unistd::geteuid();
    let mut reloads = JoinSet::new();
    for n in 0..100 {
        agent.write_config(&allowing(&format!("'uid:{}', 'uid:{own}'", 100 + n)));
        if n % 10 == 0 {
            agent.signal(Signal::Reload).await;
        }
        let client = client.clone();
        reloads.spawn(async move { client.reload().await });
    }
    while let Some(done) = reloads.join_next().await {
        done.unwrap().unwrap();
    }
    let status = client.status().await.unwrap();
    assert_eq!(
        status.profiles[0].allow,
        ["uid:199".to_owned(), format!("uid:{own}")],
        "the last word counts"
    );
    assert_eq!(client.get(BLOOM).await.unwrap(), token);
    assert_eq!(agent.issuer.request_count(), 1);
    // Whoever asks while one is under way shares the one after it, which reads what is written by then.
    let done = agent.log().matches(" reloaded").count();
    assert!((2..=110).contains(&done), "{done}");
    agent.stop().await;
}

#[tokio::test]
async fn a_reload_by_signal_is_one_that_nobody_waits_for() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    client.get(BLOOM).await.unwrap();
    let mut watch = client.watch(BLOOM).await.unwrap();
    watch.next_message().await.unwrap();
    agent.write_config(&profile("other", ""));
    agent.signal(Signal::Reload).await;
    let status = watch.next_message().await.expect_err("its profile is gone");
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(client.get("other").await.unwrap().name, "other");
    agent.stop().await;
}
