//! Restarts: what the service manager has kept is gone on with, and nothing is asked of the provider that it need not be.

use std::{
    collections::BTreeMap,
    io::IoSliceMut,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::net::UnixDatagram,
    },
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bloom_agent::{
    clock::Clock as _,
    daemon::keep::Found,
    dev_issuer::{Fault, Reply},
    sealed,
    secret::Secret,
    source::{ReadSecret, Reading, SourceFault, Stamp},
    store::Phase,
    stored::{BootId, MAX_RECORD},
    systemd::{Notifier, StoredDescriptor},
};
use http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tonic::Code;
use zeroize::Zeroizing;

use crate::support::{
    Agent, BLOOM, Client, End, SECRET, Setting, profile, refusal, retry_delay, soon, write_secret,
};

const OTHER_SECRET: &str = "another-secret";
const MINUTE: Duration = Duration::from_secs(60);

/// The part of a service manager that keeps descriptors.
struct Manager {
    socket: UnixDatagram,
    address: String,
    kept: BTreeMap<String, Vec<OwnedFd>>,
    /// All names that it was ever given, in their order.
    given: Vec<String>,
    /// Removals are lost: whoever sent them was killed before.
    deaf_to_removals: bool,
    _directory: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self {
            socket,
            address: path.to_str().unwrap().to_owned(),
            kept: BTreeMap::new(),
            given: Vec::new(),
            deaf_to_removals: false,
            _directory: directory,
        }
    }

    fn notifier(&self) -> Notifier {
        Notifier::to(&self.address).unwrap()
    }

    /// Reads all that was sent, as far as it is about descriptors.
    fn read(&mut self) {
        loop {
            let mut text = [0; 4096];
            let mut buffers = [IoSliceMut::new(&mut text)];
            let mut space = nix::cmsg_space!([std::os::fd::RawFd; 4]);
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let received = recvmsg::<()>(self.socket.as_raw_fd(), &mut buffers, Some(&mut space), flags);
            let Ok(received) = received else { return };
            let mut descriptors = Vec::new();
            for message in received.cmsgs().unwrap() {
                if let ControlMessageOwned::ScmRights(numbers) = message {
                    // SAFETY: the kernel has just made them for us, and nobody else knows them.
                    #[allow(unsafe_code, reason = "received descriptors are numbers")]
                    descriptors
                        .extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
                }
            }
            let length = received.bytes;
            let text = std::str::from_utf8(&text[..length]).unwrap();
            let lines: Vec<_> = text.lines().collect();
            let name =
                lines.iter().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or_default().to_owned();
            if lines.contains(&"FDSTORE=1") {
                assert_eq!(descriptors.len(), 1);
                self.given.push(name.clone());
                self.kept.entry(name).or_default().append(&mut descriptors);
            } else if lines.contains(&"FDSTOREREMOVE=1") && !self.deaf_to_removals {
                self.kept.remove(&name);
            }
        }
    }

    fn names(&mut self) -> Vec<String> {
        self.read();
        self.kept.keys().cloned().collect()
    }

    /// Waits until what it keeps is such.
    async fn until(&mut self, what: &str, mut ready: impl FnMut(&[String]) -> bool) -> Vec<String> {
        let reached = async {
            loop {
                let names = self.names();
                if ready(&names) {
                    return names;
                }
                tokio::task::yield_now().await;
            }
        };
        soon(what, reached).await
    }

    /// The one record, of an attempt that has ended: before it there is one of it as if it had failed.
    async fn stored(&mut self) -> Vec<String> {
        let_all_run().await;
        self.until("it is stored", |names| names.len() == 1).await
    }

    /// What a new process is handed: it stays in the store, too.
    fn found(&mut self) -> Found {
        self.read();
        let descriptors = self.kept.iter().flat_map(|(name, kept)| {
            kept.iter().map(|descriptor| stored(name, descriptor.try_clone().unwrap()))
        });
        found(descriptors.collect())
    }

    /// What the one record holds.
    fn bytes(&mut self) -> Vec<u8> {
        self.read();
        let descriptor = self.kept.values().flatten().next().unwrap();
        sealed::open(descriptor.try_clone().unwrap(), MAX_RECORD).unwrap().to_vec()
    }
}

fn stored(name: &str, descriptor: OwnedFd) -> StoredDescriptor {
    StoredDescriptor { name: name.to_owned(), descriptor }
}

fn boot(digit: char) -> Option<BootId> {
    Some(BootId::parse(&digit.to_string().repeat(32)).unwrap())
}

fn found(descriptors: Vec<StoredDescriptor>) -> Found {
    Found { descriptors, boot: boot('7'), most: 512 }
}

/// An agent under `manager`, from the beginning.
async fn start(manager: &mut Manager, setting: Setting) -> Agent {
    Agent::start_with(Setting { notifier: manager.notifier(), found: manager.found(), ..setting }).await
}

async fn restart(agent: &mut Agent, manager: &mut Manager, how: End) -> Client {
    agent.end(how).await;
    let (notifier, found) = (manager.notifier(), manager.found());
    agent.begin(notifier, found).await;
    agent.client().await
}

/// Lets every task run until it waits.
async fn let_all_run() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Nothing of what a record holds is ever told.
fn assert_discreet(agent: &Agent, tokens: &[&str]) {
    let log = agent.log();
    for word in tokens.iter().chain(&[SECRET, OTHER_SECRET]) {
        assert!(!log.contains(word), "{log}");
    }
}

#[tokio::test]
async fn a_token_survives_twenty_restarts_and_crashes_without_a_request() {
    let mut manager = Manager::new();
    let mut agent = start(&mut manager, Setting::default()).await;
    let client = agent.client().await;
    let first = client.get(BLOOM).await.unwrap();
    let names = manager.stored().await;
    assert_eq!(names, [format!("token.{BLOOM}.{}", first.generation)]);
    let next = agent.next_attempt(BLOOM).await;
    for round in 0..20 {
        agent.time.advance(MINUTE);
        let how = if round % 2 == 0 { End::InOrder } else { End::Crash };
        let client = restart(&mut agent, &mut manager, how).await;
        assert_eq!(client.get(BLOOM).await.unwrap(), first, "{round}");
        assert_eq!(agent.next_attempt(BLOOM).await, next, "the refresh is drawn once, not at each restart");
    }
    assert_eq!(agent.issuer.request_count(), 1);
    assert_eq!(manager.given.len(), 2, "nothing is stored that is stored already");

    agent.pass_an_attempt(BLOOM).await;
    let second = agent.client().await.get(BLOOM).await.unwrap();
    assert!(second.generation > first.generation);
    let name = format!("token.{BLOOM}.{}", second.generation);
    manager.until("the new one takes its place", |names| names == [name.as_str()]).await;
    assert_discreet(&agent, &[&first.access_token, &second.access_token]);
    agent.stop().await;
}

#[tokio::test]
async fn a_refused_profile_waits_over_restarts_and_says_why() {
    let mut manager = Manager::new();
    let before = Setting { before: |issuer| issuer.set_secrets([OTHER_SECRET]), ..Setting::default() };
    let mut agent = start(&mut manager, before).await;
    agent.attempts_until(BLOOM, |attempts| attempts.settled == 1).await;
    let first = manager.stored().await.remove(0);
    // The second time it waits for longer than any caller.
    agent.pass_an_attempt(BLOOM).await;
    let next = agent.next_attempt(BLOOM).await;
    manager.until("the second is stored", |names| names.len() == 1 && names[0] != first).await;
    for round in 0..20 {
        let how = if round % 2 == 0 { End::InOrder } else { End::Crash };
        let client = restart(&mut agent, &mut manager, how).await;
        let status = client.get(BLOOM).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::Unavailable, "PROVIDER_REFUSED".to_owned(), true));
        assert!(retry_delay(&status) > Duration::ZERO);
        assert_eq!((agent.next_attempt(BLOOM).await, agent.issuer.request_count()), (next, 2), "{round}");
        assert_eq!(agent.attempts(BLOOM).consecutive_failures, 2);
    }
    let after = agent.pass_an_attempt(BLOOM).await;
    assert_eq!((after.consecutive_failures, agent.issuer.request_count()), (3, 3));
    let again = agent.next_attempt(BLOOM).await;
    assert_eq!(again.since(agent.time.now().boot), 2 * MINUTE, "and the delay has doubled");
    assert_discreet(&agent, &[]);
    agent.stop().await;
}

/// A credential: another file at each start, of which nothing but its content says whether it has changed.
#[derive(Default)]
struct Credential {
    secret: Mutex<&'static str>,
    readings: AtomicU64,
}

impl ReadSecret for Credential {
    fn read(&self) -> Result<Reading, SourceFault> {
        let number = self.readings.fetch_add(1, Ordering::SeqCst);
        let secret = Secret::parse(Zeroizing::new(self.secret.lock().unwrap().as_bytes().to_vec())).unwrap();
        Ok(Reading { secret, stamp: Stamp::numbered(number) })
    }

    fn describe(&self) -> String {
        "a credential".to_owned()
    }
}

#[tokio::test]
async fn a_rotation_by_restart_is_tried_at_once_and_the_same_secret_is_not() {
    let mut manager = Manager::new();
    let credential = Arc::new(Credential::default());
    *credential.secret.lock().unwrap() = SECRET;
    let setting = Setting {
        secret: Some(credential.clone()),
        before: |issuer| issuer.set_secrets([OTHER_SECRET]),
        ..Setting::default()
    };
    let mut agent = start(&mut manager, setting).await;
    agent.attempts_until(BLOOM, |attempts| attempts.settled == 1).await;
    let next = agent.next_attempt(BLOOM).await;
    manager.stored().await;

    restart(&mut agent, &mut manager, End::InOrder).await;
    let read = async {
        while credential.readings.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
    };
    soon("the secret is looked at", read).await;
    let_all_run().await;
    assert_eq!((agent.attempts(BLOOM).phase, agent.issuer.request_count()), (Phase::Idle { next }, 1));

    *credential.secret.lock().unwrap() = OTHER_SECRET;
    let client = restart(&mut agent, &mut manager, End::InOrder).await;
    // The time stands still: nothing but the other content can bring the attempt about.
    agent.attempts_until(BLOOM, |attempts| attempts.settled == 1).await;
    client.get(BLOOM).await.unwrap();
    assert_eq!(agent.issuer.request_count(), 2);
    assert_discreet(&agent, &[]);
    agent.stop().await;
}

#[tokio::test]
async fn a_file_that_appears_while_nobody_runs_is_read_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("late");
    let tokens = profile(BLOOM, &format!("client_secret.file = '{}'", file.display()));
    let mut manager = Manager::new();
    let mut agent = start(&mut manager, Setting { tokens, ..Setting::default() }).await;
    agent.attempts_until(BLOOM, |attempts| attempts.settled == 1).await;
    manager.stored().await;
    agent.end(End::InOrder).await;
    write_secret(&file, SECRET);
    let (notifier, found) = (manager.notifier(), manager.found());
    agent.begin(notifier, found).await;
    agent.attempts_until(BLOOM, |attempts| attempts.settled == 1).await;
    agent.client().await.get(BLOOM).await.unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn a_retry_after_outlasts_a_restart_with_another_secret_and_another_config() {
    let mut manager = Manager::new();
    let setting = Setting {
        before: |issuer| {
            let reply = Reply::json(StatusCode::UNAUTHORIZED, r#"{"error":"invalid_client"}"#);
            issuer.push_fault(Fault::reply(reply.header(RETRY_AFTER, HeaderValue::from_static("600"))));
        },
        ..Setting::default()
    };
    let mut agent = start(&mut manager, setting).await;
    agent.attempts_until(BLOOM, |attempts| attempts.settled == 1).await;
    manager.stored().await;
    let asked = agent.time.now().boot + 10 * MINUTE;

    agent.write_config(&profile(BLOOM, "assumed_lifetime = '5m'"));
    write_secret(&agent.secret_file(), OTHER_SECRET);
    agent.issuer.set_secrets([OTHER_SECRET]);
    let client = restart(&mut agent, &mut manager, End::InOrder).await;
    let status = client.get(BLOOM).await.unwrap_err();
    assert_eq!(retry_delay(&status), 10 * MINUTE);
    assert_eq!((agent.next_attempt(BLOOM).await, agent.issuer.request_count()), (asked, 1));
    agent.pass_an_attempt(BLOOM).await;
    client.get(BLOOM).await.unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn a_failing_profile_tries_at_once_after_a_restart_with_another_config_and_only_then() {
    let mut manager = Manager::new();
    let mut agent = start(
        &mut manager,
        Setting {
            before: |issuer| issuer.set_rule(Some(Fault::status(StatusCode::SERVICE_UNAVAILABLE))),
            ..Setting::default()
        },
    )
    .await;
    for _ in 0..5 {
        agent.pass_an_attempt(BLOOM).await;
    }
    agent.attempts_until(BLOOM, |attempts| attempts.settled >= 5).await;
    let (next, requests) = (agent.next_attempt(BLOOM).await, agent.issuer.request_count());
    manager.stored().await;
    restart(&mut agent, &mut manager, End::InOrder).await;
    assert_eq!((agent.next_attempt(BLOOM).await, agent.issuer.request_count()), (next, requests));

    agent.issuer.set_rule(None);
    agent.write_config(&profile(BLOOM, "assumed_lifetime = '5m'"));
    let client = restart(&mut agent, &mut manager, End::InOrder).await;
    agent.attempts_until(BLOOM, |attempts| attempts.settled == 1).await;
    client.get(BLOOM).await.unwrap();
    assert_eq!(agent.issuer.request_count(), requests + 1);
    agent.stop().await;
}

#[tokio::test]
async fn an_attempt_that_the_end_cuts_off_counts() {
    let mut manager = Manager::new();
    let hanging =
        Setting { before: |issuer| issuer.set_rule(Some(Fault::none().held())), ..Setting::default() };
    let mut agent = start(&mut manager, hanging).await;
    for round in 1..=8 {
        let sent = async {
            while agent.issuer.request_count() < round {
                tokio::task::yield_now().await;
            }
        };
        soon("the request is sent", sent).await;
        restart(&mut agent, &mut manager, End::InOrder).await;
        let attempts = agent.attempts(BLOOM);
        assert_eq!(u64::from(attempts.consecutive_failures), round);
        let Phase::Idle { next } = attempts.phase else { panic!("at once, in spite of {round} failures") };
        assert!(next > agent.time.now().boot);
        agent.time.advance_to(next);
    }
    agent.issuer.set_rule(None);
    agent.issuer.release();
    agent.stop().await;
}

/// What becomes of a record that is not as it was: a request, a removal, and one line that says why.
#[tokio::test]
async fn what_cannot_be_trusted_is_removed_with_one_line_and_costs_a_request() {
    type Change = fn(&mut Agent, &mut Found, &[u8]);
    let cases: [(&str, &str, Change); 10] = [
        ("of another boot", "from before the host was booted", |_, found, _| found.boot = boot('8')),
        ("of an unknown boot", "boot id of this host is not known", |_, found, _| found.boot = None),
        ("of another identity", "asks for other tokens now", |agent, _, _| {
            agent.write_config(&profile(BLOOM, "audience = 'other'"));
        }),
        ("tampered with", "it is damaged", |_, found, bytes| {
            let mut changed = bytes.to_vec();
            changed[bytes.len() / 2] ^= 1;
            found.descriptors[0].descriptor = sealed::seal(&changed).unwrap();
        }),
        ("of another version", "in no form that this version knows", |_, found, bytes| {
            found.descriptors[0].descriptor = sealed::seal(&[b"another!", bytes].concat()).unwrap();
        }),
        ("empty", "in no form that this version knows", |_, found, _| {
            found.descriptors[0].descriptor = sealed::seal(b"").unwrap();
        }),
        ("not sealed", "it is not sealed", |_, found, bytes| {
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, bytes).unwrap();
            found.descriptors[0].descriptor = file.into();
        }),
        ("too large", "longer than it may be", |_, found, bytes| {
            let long = [bytes, &[0; MAX_RECORD]].concat();
            found.descriptors[0].descriptor = sealed::seal(&long).unwrap();
        }),
        ("there twice", "several of its name", |_, found, bytes| {
            let name = found.descriptors[0].name.clone();
            found.descriptors.push(stored(&name, sealed::seal(bytes).unwrap()));
        }),
        ("a socket", "it is not memory", |_, found, _| {
            found.descriptors[0].descriptor = UnixDatagram::unbound().unwrap().into();
        }),
    ];
    for (what, why, change) in cases {
        let mut manager = Manager::new();
        let mut agent = start(&mut manager, Setting::default()).await;
        let first = agent.client().await.get(BLOOM).await.unwrap();
        let name = manager.stored().await.remove(0);
        let bytes = manager.bytes();
        agent.end(End::InOrder).await;
        // The wall clock is all that tells the next generation from the first.
        agent.time.advance(MINUTE);
        let (notifier, mut found) = (manager.notifier(), manager.found());
        change(&mut agent, &mut found, &bytes);
        agent.begin(notifier, found).await;
        let second = agent.client().await.get(BLOOM).await.unwrap();
        assert_ne!(second.access_token, first.access_token, "{what}");
        assert_eq!(agent.issuer.request_count(), 2, "{what}");
        manager.until("it is removed", |names| !names.contains(&name)).await;
        let log = agent.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains("is not taken over")).collect();
        assert!(lines.len() == 1 && lines[0].contains(why) && lines[0].contains(&name), "{what}: {lines:?}");
        assert_discreet(&agent, &[&first.access_token, &second.access_token]);
        agent.stop().await;
    }
}

#[tokio::test]
async fn a_token_that_expired_meanwhile_is_not_served_and_its_place_is_taken() {
    let mut manager = Manager::new();
    let mut agent = start(&mut manager, Setting::default()).await;
    let first = agent.client().await.get(BLOOM).await.unwrap();
    manager.stored().await;
    let until = agent.served_until(BLOOM);
    agent.end(End::Crash).await;
    agent.time.advance_to(until);
    let (notifier, found) = (manager.notifier(), manager.found());
    agent.begin(notifier, found).await;
    let second = agent.client().await.get(BLOOM).await.unwrap();
    assert!(second.generation > first.generation && agent.issuer.request_count() == 2);
    let name = format!("token.{BLOOM}.{}", second.generation);
    manager.until("the new one takes its place", |names| names == [name.as_str()]).await;
    agent.stop().await;
}

#[tokio::test]
async fn after_a_crash_between_storing_and_removing_the_newer_one_counts() {
    let mut manager = Manager::new();
    manager.deaf_to_removals = true;
    let mut agent = start(&mut manager, Setting::default()).await;
    let client = agent.client().await;
    client.get(BLOOM).await.unwrap();
    manager.until("it is stored", |names| names.len() == 1).await;
    client.refresh(BLOOM).await.unwrap();
    let second = client.get(BLOOM).await.unwrap();
    manager.until("both are there", |names| names.len() == 2).await;
    manager.deaf_to_removals = false;
    let client = restart(&mut agent, &mut manager, End::Crash).await;
    assert_eq!(client.get(BLOOM).await.unwrap(), second);
    assert_eq!(agent.issuer.request_count(), 2);
    let name = format!("token.{BLOOM}.{}", second.generation);
    manager.until("the older one is gone", |names| names == [name.as_str()]).await;
    assert!(agent.log().contains("there is a newer one"), "{}", agent.log());
    agent.stop().await;
}

#[tokio::test]
async fn a_manager_that_does_not_read_is_told_the_newest_when_it_does() {
    let mut manager = Manager::new();
    let agent = start(&mut manager, Setting::default()).await;
    let client = agent.client().await;
    let degraded = async || client.status().await.unwrap().degraded;
    // Two datagrams for each, and the kernel's queue ends somewhere.
    while !agent.log().contains("does not take them") {
        client.refresh(BLOOM).await.unwrap();
        agent.time.advance(MINUTE);
        let_all_run().await;
    }
    let newest = client.get(BLOOM).await.unwrap();
    let lines = degraded().await;
    assert!(lines.iter().any(|line| line.contains("the manager does not take them")), "{lines:?}");
    assert!(client.metrics().await.unwrap().contains(r#"bloom_agent_degraded{what="fdstore"} 1"#));

    manager.read();
    agent.time.advance(MINUTE);
    let name = format!("token.{BLOOM}.{}", newest.generation);
    manager.until("the newest is there, alone", |names| names == [name.as_str()]).await;
    let_all_run().await;
    assert_eq!(degraded().await, Vec::<String>::new());
    assert!(client.metrics().await.unwrap().contains(r#"bloom_agent_degraded{what="fdstore"} 0"#));
    assert_discreet(&agent, &[&newest.access_token]);
    agent.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_is_not_stored_and_said_once() {
    let mut manager = Manager::new();
    let tokens: String = ["a", "b", "c"].map(|name| profile(name, &format!("audience = '{name}'"))).concat();
    let found = Found { most: 2, ..found(Vec::new()) };
    let setting = Setting { tokens, notifier: manager.notifier(), found, ..Setting::default() };
    let agent = Agent::start_with(setting).await;
    let client = agent.client().await;
    for name in ["a", "b", "c"] {
        client.get(name).await.unwrap();
        client.refresh(name).await.unwrap();
    }
    let_all_run().await;
    assert_eq!(manager.names().len(), 1, "with one to spare for replacing it");
    assert!(
        manager
            .given
            .iter()
            .all(|name| *name.split('.').nth(1).unwrap() == *manager.given[0].split('.').nth(1).unwrap())
    );
    assert_eq!(agent.log().matches("store is full").count(), 1, "{}", agent.log());
    let degraded = client.status().await.unwrap().degraded;
    assert!(degraded.iter().any(|line| line.contains("the tokens of 2 profiles")), "{degraded:?}");
    assert!(client.metrics().await.unwrap().contains(r#"bloom_agent_degraded{what="fdstore"} 1"#));
    agent.stop().await;
}

#[tokio::test]
async fn a_reload_that_takes_a_profile_away_or_makes_it_another_takes_its_record_away() {
    let mut manager = Manager::new();
    let both = [profile("a", "audience = 'a'"), profile("b", "audience = 'b'")].concat();
    let mut agent = start(&mut manager, Setting { tokens: both, ..Setting::default() }).await;
    let client = agent.client().await;
    for name in ["a", "b"] {
        client.get(name).await.unwrap();
    }
    let old = manager.until("both are stored", |names| names.len() == 2).await;
    agent.write_config(&profile("b", "audience = 'other'"));
    client.reload().await.unwrap();
    let other = client.get("b").await.unwrap();
    let name = format!("token.b.{}", other.generation);
    manager.until("only the new one is there", |names| names == [name.as_str()]).await;
    assert!(!old.contains(&name));
    // And one whose profile went while nobody ran.
    agent.end(End::InOrder).await;
    agent.write_config(&profile("c", "audience = 'c'"));
    let (notifier, found) = (manager.notifier(), manager.found());
    agent.begin(notifier, found).await;
    agent.client().await.get("c").await.unwrap();
    manager.until("only c is there", |names| names.len() == 1 && names[0].starts_with("token.c.")).await;
    assert!(agent.log().contains("there is no such profile any more"), "{}", agent.log());
    agent.stop().await;
}
