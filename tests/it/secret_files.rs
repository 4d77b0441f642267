//! What becomes of a secret's file under a running agent: each fault keeps the token that is there, costs the provider
//! nothing, is told to the operator, and is over with its remedy.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::Path,
};

use bloom_agent::pb::{FailureKind, TokenState};
use nix::unistd::geteuid;
use tonic::Code;

use crate::{
    invariants::{Given, all_is_well},
    support::{Agent, BLOOM, SECRET, profile, refusal, skipped_without_root, write_secret},
};

/// What is wrong, how it comes about, and what the operator is told.
type Fault = (&'static str, fn(&Path), &'static str);

#[allow(clippy::disallowed_methods, reason = "a file of the test's own")]
fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn replaced_by(path: &Path, make: impl FnOnce(&Path)) {
    let new = path.with_extension("new");
    make(&new);
    fs::rename(new, path).unwrap();
}

const FAULTS: [Fault; 14] = [
    ("gone", |path| fs::remove_file(path).unwrap(), "does not exist"),
    ("truncated", |path| fs::write(path, "").unwrap(), "it is empty"),
    ("one newline", |path| fs::write(path, "\n").unwrap(), "it is empty"),
    ("two lines", |path| fs::write(path, format!("{SECRET}\n{SECRET}\n")).unwrap(), "control character"),
    ("binary", |path| fs::write(path, [0xff, 0xfe, 0x00]).unwrap(), "UTF-8"),
    ("far too long", |path| fs::write(path, vec![b'x'; 70_000]).unwrap(), "longer than"),
    ("open to its group", |path| set_mode(path, 0o640), "its mode 0640"),
    ("open to all", |path| set_mode(path, 0o604), "its mode 0604"),
    ("of two names", |path| fs::hard_link(path, path.with_extension("other")).unwrap(), "2 names"),
    (
        "a link to the right one",
        |path| {
            fs::rename(path, path.with_extension("real")).unwrap();
            symlink(path.with_extension("real"), path).unwrap();
        },
        "symbolic link",
    ),
    ("a link to nowhere", |path| replaced_by(path, |new| symlink("/nowhere", new).unwrap()), "symbolic link"),
    (
        "a FIFO that nobody writes to",
        |path| replaced_by(path, |new| nix::unistd::mkfifo(new, nix::sys::stat::Mode::S_IRUSR).unwrap()),
        "a FIFO",
    ),
    (
        "a directory",
        |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        },
        "a directory",
    ),
    ("another user's", |path| chown(path, Some(1_234), None).unwrap(), "owned by uid 1234"),
];

#[tokio::test]
async fn a_secrets_file_that_goes_wrong_takes_no_token_away_and_its_remedy_is_noticed() {
    for (what, break_it, told) in FAULTS {
        if what == "another user's" && !geteuid().is_root() {
            let _loud = skipped_without_root("a secret's file of another user");
            continue;
        }
        let agent = Agent::start().await;
        let (client, given) = (agent.client().await, Given::default());
        let token = client.get(BLOOM).await.unwrap();
        given.note(&token);
        let file = agent.secret_file();
        break_it(&file);
        // The operator's refresh does not wait for the schedule.
        let failed = client.refresh(BLOOM).await.unwrap_err();
        assert_eq!(refusal(&failed), (Code::Unavailable, "SECRET_UNREADABLE".to_owned(), true), "{what}");
        let state = client.list().await.remove(0);
        assert_eq!(
            (state.state(), state.last_failure()),
            (TokenState::Degraded, FailureKind::SecretUnreadable),
            "{what}: {}",
            agent.log()
        );
        let text = client.status().await.unwrap().profiles.remove(0).last_failure_text;
        assert!(text.contains(told), "{what}: {text}");
        for _ in 0..10 {
            assert_eq!(client.get(BLOOM).await.unwrap(), token, "{what}");
        }
        assert_eq!(agent.issuer.request_count(), 1, "{what}: nothing was sent without a secret");

        let settled = agent.attempts(BLOOM).settled;
        if file.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            fs::remove_dir(&file).unwrap();
        }
        // Whole, by rename, as every message says. The time stands still: the watch alone brings the attempt about.
        write_secret(&file, SECRET);
        agent
            .attempts_until(BLOOM, |attempts| {
                attempts.settled > settled && attempts.consecutive_failures == 0
            })
            .await;
        assert!(client.get(BLOOM).await.unwrap().generation > token.generation, "{what}");
        all_is_well(&agent, &given, 2).await;
        agent.stop().await;
    }
}

#[tokio::test]
async fn half_a_secret_is_refused_by_the_provider_and_the_rest_of_it_is_tried_at_once() {
    let agent = Agent::start().await;
    let (client, given) = (agent.client().await, Given::default());
    let token = client.get(BLOOM).await.unwrap();
    given.note(&token);
    let file = agent.secret_file();
    // In place, and at rest half-way: nothing tells this from a secret.
    fs::write(&file, &SECRET[..SECRET.len() / 2]).unwrap();
    let failed = client.refresh(BLOOM).await.unwrap_err();
    assert_eq!(refusal(&failed), (Code::Unavailable, "PROVIDER_REFUSED".to_owned(), true));
    let state = client.list().await.remove(0);
    assert_eq!((state.state(), state.last_failure()), (TokenState::Degraded, FailureKind::ProviderRefused));
    assert_eq!(client.get(BLOOM).await.unwrap(), token);
    fs::write(&file, SECRET).unwrap();
    agent.attempts_until(BLOOM, |attempts| attempts.consecutive_failures == 0 && attempts.settled > 2).await;
    assert!(client.get(BLOOM).await.unwrap().generation > token.generation);
    // One that was refused, and one for each state that the writing went through.
    all_is_well(&agent, &given, 4).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_disk_that_fails_is_tried_again_and_takes_no_token_away() {
    if skipped_without_root("a_disk_that_fails_is_tried_again_and_takes_no_token_away") {
        return;
    }
    let agent = Agent::start().await;
    let (client, given) = (agent.client().await, Given::default());
    let token = client.get(BLOOM).await.unwrap();
    given.note(&token);
    // A regular file of root's own, mode 0600, of which every byte is an error of the device: EIO.
    let failing = format!("client_secret.file = '/proc/{}/mem'", std::process::id());
    agent.write_config(&profile(BLOOM, &failing));
    client.reload().await.unwrap();
    for failures in 1..=3 {
        let after = agent.pass_an_attempt(BLOOM).await;
        assert_eq!(after.consecutive_failures, failures);
        assert_eq!(client.get(BLOOM).await.unwrap(), token);
    }
    let status = client.status().await.unwrap().profiles.remove(0);
    assert!(status.last_failure_text.contains("I/O error"), "{}", status.last_failure_text);
    let next = agent.next_attempt(BLOOM).await;
    let wait = next.since(bloom_agent::clock::Clock::now(&agent.time).boot);
    assert!(wait <= std::time::Duration::from_secs(8), "soon, and not as a refusal: {wait:?}");
    assert_eq!(agent.issuer.request_count(), 1);
    agent.write_config(&profile(BLOOM, ""));
    client.reload().await.unwrap();
    agent.attempts_until(BLOOM, |attempts| attempts.consecutive_failures == 0).await;
    all_is_well(&agent, &given, 2).await;
    agent.stop().await;
}
