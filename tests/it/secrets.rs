//! Secrets that change while the agent runs: real files, watched by the real inotify.

use bloom_agent::pb::FailureKind;
use tonic::Code;

use crate::support::{Agent, BLOOM, Next as _, SECRET, Setting, profile, refusal, write_secret};

const SECOND: &str = "the-second-secret";

#[tokio::test]
async fn a_rotation_by_client_secret_next_costs_one_refused_request_and_no_failed_call() {
    // The second secret is already there, in a file beside the first.
    let directory = tempfile::tempdir().unwrap();
    let next = directory.path().join("next");
    write_secret(&next, SECOND);
    let lines = format!("client_secret.file = 'SECRET_FILE'\nclient_secret_next.file = '{}'", next.display());
    let agent = Agent::start_with(Setting { tokens: profile(BLOOM, &lines), ..Setting::default() }).await;
    let client = agent.client().await;
    let refused = || agent.issuer.request_count() - agent.issuer.granted_count();
    client.get(BLOOM).await.unwrap();
    assert_eq!((agent.issuer.request_count(), refused()), (1, 0), "the first is still good");

    agent.issuer.set_secrets([SECOND]);
    agent.pass_an_attempt(BLOOM).await;
    client.get(BLOOM).await.unwrap();
    assert_eq!((agent.issuer.request_count(), refused()), (3, 1), "one refused, then the next one");

    agent.pass_an_attempt(BLOOM).await;
    client.get(BLOOM).await.unwrap();
    assert_eq!((agent.issuer.request_count(), refused()), (4, 1), "the one that last worked goes first");

    write_secret(&agent.secret_file(), SECOND);
    agent.pass_an_attempt(BLOOM).await;
    client.get(BLOOM).await.unwrap();
    std::fs::remove_file(&next).unwrap();
    agent.write_config(&profile(BLOOM, ""));
    client.reload().await.unwrap();
    agent.pass_an_attempt(BLOOM).await;
    client.get(BLOOM).await.unwrap();
    assert_eq!((agent.issuer.request_count(), refused()), (6, 1), "and the file alone is enough again");
    assert_eq!(agent.attempts(BLOOM).consecutive_failures, 0);
    for secret in [SECRET, SECOND] {
        assert!(!agent.log().contains(secret), "{}", agent.log());
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_file_that_is_mended_while_the_profile_is_refused_is_tried_at_once() {
    let agent =
        Agent::start_with(Setting { before: |issuer| issuer.set_secrets([SECOND]), ..Setting::default() })
            .await;
    let client = agent.client().await;
    let status = client.get(BLOOM).await.expect_err("refused");
    assert_eq!(refusal(&status), (Code::Unavailable, "PROVIDER_REFUSED".to_owned(), true));
    let mut watch = client.watch(BLOOM).await.unwrap();
    // The time stands still: nothing but the file can bring the attempt about.
    write_secret(&agent.secret_file(), SECOND);
    watch.next_message().await.unwrap().unwrap().token.expect("the mended secret is accepted");
    assert_eq!(agent.issuer.granted_count(), 1);
    agent.stop().await;
}

#[tokio::test]
async fn a_file_that_was_not_there_is_read_as_soon_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("late");
    let lines = format!("client_secret.file = '{}'", file.display());
    let agent = Agent::start_with(Setting { tokens: profile(BLOOM, &lines), ..Setting::default() }).await;
    let client = agent.client().await;
    let status = client.get(BLOOM).await.expect_err("there is no secret");
    assert_eq!(refusal(&status), (Code::Unavailable, "SECRET_UNREADABLE".to_owned(), true));
    assert!(!status.message().contains("late"), "callers are not told of paths: {}", status.message());
    assert_eq!(client.list().await[0].last_failure(), FailureKind::SecretUnreadable);
    let told = client.status().await.unwrap().profiles.remove(0).last_failure_text;
    assert!(told.contains("late"), "the operator is: {told}");
    assert_eq!(agent.issuer.request_count(), 0);

    let mut watch = client.watch(BLOOM).await.unwrap();
    write_secret(&file, SECRET);
    watch.next_message().await.unwrap().unwrap().token.expect("the secret is accepted");
    agent.stop().await;
}
