//! Tokens as systemd credentials: what the manager's child is answered that asks for a unit.

use std::{
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use bloom_agent::{
    access::{Placement, SliceName, UnitName},
    clock::Clock as _,
    credential::FindUnit,
    daemon::Signal,
    dev_issuer::{Control, Fault},
    units::Answer,
};
use http::StatusCode;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, socket};
use tokio::{io::AsyncReadExt as _, net::UnixStream, task::JoinSet};

use crate::support::{Agent, BLOOM, Setting, as_uid, profile, skipped_without_root, soon};

/// systemd's CREDENTIAL_SIZE_MAX: what is larger fails the start of the unit.
const LARGEST_CREDENTIAL: usize = 1024 * 1024;
const LOANS: &str = "loans.service";

/// In which unit every process is: the test says it.
#[derive(Clone)]
struct Cgroup(Arc<Mutex<Answer>>);

fn in_system(unit: &str) -> Answer {
    let slice = SliceName::parse("system.slice").unwrap();
    UnitName::parse(unit).map_or(Answer::None, |unit| Answer::In(Placement { unit, slice }))
}

impl Cgroup {
    fn of(unit: &str) -> Self {
        Self(Arc::new(Mutex::new(in_system(unit))))
    }

    fn set(&self, unit: &str) {
        *self.0.lock().unwrap() = in_system(unit);
    }

    fn find(&self) -> FindUnit {
        let answer = Arc::clone(&self.0);
        Arc::new(move |_, _| Box::pin(std::future::ready(answer.lock().unwrap().clone())))
    }
}

fn tokens() -> String {
    profile(BLOOM, "allow = ['unit:loans.service', 'unit:batch@.service']")
        + &profile("partner", "allow = ['uid:0', 'unit:loans.service & uid:0', 'unit:other.service']")
}

async fn start(cgroup: &Cgroup, before: fn(&Control)) -> Agent {
    Agent::start_with(Setting {
        tokens: tokens(),
        find_unit: Some(cgroup.find()),
        before,
        ..Setting::default()
    })
    .await
}

/// An address as the manager's child has it.
fn address(unit: &str, credential: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    // Abstract names are everybody's.
    format!("{:x}{:08x}/unit/{unit}/{credential}", std::process::id(), NUMBER.fetch_add(1, Relaxed))
}

/// Asks from that address. It writes nothing, as the manager's child does.
fn ask_from(path: &Path, address: Option<&str>) -> OwnedFd {
    let asking = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    if let Some(address) = address {
        bind(asking.as_raw_fd(), &UnixAddr::new_abstract(address.as_bytes()).unwrap()).unwrap();
    }
    connect(asking.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    asking
}

/// What a unit finds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    Token(String),
    /// The manager fails its start.
    NoStart,
}

async fn read(asking: OwnedFd) -> Found {
    let asking = StdUnixStream::from(asking);
    asking.set_nonblocking(true).unwrap();
    let mut asking = UnixStream::from_std(asking).unwrap();
    let mut bytes = Vec::new();
    soon("an answer", asking.read_to_end(&mut bytes)).await.unwrap();
    if bytes.len() > LARGEST_CREDENTIAL {
        assert!(bytes.starts_with(b"bloom-agent refuses this credential"));
        return Found::NoStart;
    }
    assert!(!bytes.is_empty(), "the unit would start with an empty credential");
    Found::Token(String::from_utf8(bytes).unwrap())
}

async fn ask(agent: &Agent, unit: &str, credential: &str) -> Found {
    read(ask_from(&agent.credential_socket(), Some(&address(unit, credential)))).await
}

async fn logged(agent: &Agent, text: &str, count: usize) {
    let all = async {
        while agent.log().matches(text).count() < count {
            tokio::task::yield_now().await;
        }
    };
    soon(text, all).await;
}

#[tokio::test]
async fn a_unit_that_a_rule_names_finds_the_token_and_nothing_else() {
    if skipped_without_root("a_unit_that_a_rule_names_finds_the_token_and_nothing_else") {
        return;
    }
    let cgroup = Cgroup::of(LOANS);
    let agent = start(&cgroup, |_| ()).await;
    let token = agent.client().await.get(BLOOM).await.unwrap();
    assert_eq!(ask(&agent, LOANS, BLOOM).await, Found::Token(token.access_token.clone()));
    let told = format!("granted verb=credential profile=bloom generation={} uid=0", token.generation);
    assert!(agent.log().contains(&told), "{}", agent.log());
    assert!(agent.log().contains("unit=loans.service rule=unit:loans.service"), "{}", agent.log());

    cgroup.set("batch@7.service");
    assert_eq!(ask(&agent, "batch@7.service", BLOOM).await, Found::Token(token.access_token));
    assert!(!agent.log().contains("decision=denied"), "{}", agent.log());
    agent.stop().await;
}

#[tokio::test]
async fn no_start_for_a_unit_that_no_rule_names_alone_and_the_same_for_a_profile_that_is_none() {
    if skipped_without_root("no_start_for_a_unit_that_no_rule_names_alone") {
        return;
    }
    let cgroup = Cgroup::of(LOANS);
    let agent = start(&cgroup, |_| ()).await;
    // Root may have every token by the API, and a line that names a user beside the unit is not judged here.
    for credential in ["partner", "invented", "Not A Name", "unit"] {
        assert_eq!(ask(&agent, LOANS, credential).await, Found::NoStart, "{credential}");
    }
    cgroup.set("reports.service");
    for credential in [BLOOM, "partner", "invented"] {
        assert_eq!(ask(&agent, "reports.service", credential).await, Found::NoStart, "{credential}");
    }
    for denied in [
        "decision=denied verb=credential profile=partner uid=0",
        "decision=denied verb=credential profile=unknown uid=0",
        "decision=denied verb=credential profile=bloom uid=0",
    ] {
        assert!(agent.log().contains(denied), "{denied} is not in {}", agent.log());
    }
    assert!(!agent.log().contains("invented") && !agent.log().contains("Not A Name"), "{}", agent.log());
    let metrics = agent.client().await.metrics().await.unwrap();
    assert!(metrics.contains("bloom_agent_denied_total{verb=\"credential\"} 7"), "{metrics}");
    agent.stop().await;
}

#[tokio::test]
async fn no_start_for_an_address_that_lies_or_says_nothing_or_for_a_process_in_no_unit() {
    if skipped_without_root("no_start_for_an_address_that_lies_or_says_nothing") {
        return;
    }
    let cgroup = Cgroup::of("reports.service");
    let agent = start(&cgroup, |_| ()).await;
    assert_eq!(ask(&agent, LOANS, BLOOM).await, Found::NoStart);
    assert!(agent.log().contains("the process that asks is not in the unit that its address names"));
    // Its own unit's name is what the audit has, not the one it claims.
    assert!(!agent.log().contains("loans.service"), "{}", agent.log());

    cgroup.set(LOANS);
    let garbage = [format!("{}/x", address(LOANS, BLOOM)), address(LOANS, ""), "garbage".to_owned()];
    for address in garbage.iter().map(|text| Some(text.as_str())).chain([None]) {
        let asked = ask_from(&agent.credential_socket(), address);
        assert_eq!(read(asked).await, Found::NoStart, "{address:?}");
    }
    cgroup.set("");
    assert_eq!(ask(&agent, LOANS, BLOOM).await, Found::NoStart);
    assert!(agent.log().contains("the process that asks is in no service of the slices"));
    assert!(!agent.log().contains("decision=granted"), "{}", agent.log());
    agent.stop().await;
}

#[tokio::test]
async fn no_start_for_who_is_not_root_whatever_unit_he_is_in() {
    if skipped_without_root("no_start_for_who_is_not_root_whatever_unit_he_is_in") {
        return;
    }
    let agent = start(&Cgroup::of(LOANS), |_| ()).await;
    let (path, address) = (agent.credential_socket(), address(LOANS, BLOOM));
    let asked = as_uid(1234, 1234, &[], || ask_from(&path, Some(&address)));
    assert_eq!(read(asked).await, Found::NoStart);
    assert!(
        agent.log().contains("decision=denied verb=credential profile=bloom uid=1234"),
        "{}",
        agent.log()
    );
    agent.stop().await;
}

#[tokio::test]
async fn two_hundred_units_wait_for_one_token_request() {
    if skipped_without_root("two_hundred_units_wait_for_one_token_request") {
        return;
    }
    let agent = Agent::start_with(Setting {
        tokens: profile(BLOOM, "allow = ['unit:loans.service']"),
        find_unit: Some(Cgroup::of(LOANS).find()),
        before: |issuer| issuer.push_fault(Fault::none().held()),
        ..Setting::default()
    })
    .await;
    agent.issuer.wait_for_request(1).await;
    let mut units = JoinSet::new();
    for _ in 0..200 {
        let asked = ask_from(&agent.credential_socket(), Some(&address(LOANS, BLOOM)));
        units.spawn(read(asked));
    }
    logged(&agent, "a unit waits for its credential", 200).await;
    agent.issuer.release();
    let found = units.join_all().await;
    let token = agent.client().await.get(BLOOM).await.unwrap().access_token;
    assert!(found.len() == 200 && found.iter().all(|found| *found == Found::Token(token.clone())));
    assert_eq!(agent.issuer.request_count(), 1);
    agent.stop().await;
}

#[tokio::test]
async fn a_unit_waits_through_attempts_that_fail_as_long_as_the_next_is_due_in_time() {
    if skipped_without_root("a_unit_waits_through_attempts_that_fail") {
        return;
    }
    let agent = Agent::start_with(Setting {
        tokens: profile(BLOOM, "allow = ['unit:loans.service']"),
        find_unit: Some(Cgroup::of(LOANS).find()),
        before: |issuer| {
            issuer.push_fault(Fault::close());
            issuer.push_fault(Fault::close());
        },
        ..Setting::default()
    })
    .await;
    agent.attempts_until(BLOOM, |attempts| attempts.settled == 1).await;
    let asked = ask_from(&agent.credential_socket(), Some(&address(LOANS, BLOOM)));
    logged(&agent, "a unit waits for its credential", 1).await;
    agent.pass_an_attempt(BLOOM).await;
    agent.pass_an_attempt(BLOOM).await;
    assert!(matches!(read(asked).await, Found::Token(_)));
    agent.stop().await;
}

#[tokio::test]
async fn no_start_when_no_token_has_come_in_thirty_seconds() {
    if skipped_without_root("no_start_when_no_token_has_come_in_thirty_seconds") {
        return;
    }
    let agent = start(&Cgroup::of(LOANS), |issuer| {
        issuer.push_fault(Fault::none().held());
        issuer.push_fault(Fault::none().held());
    })
    .await;
    agent.issuer.wait_for_request(2).await;
    let asked = ask_from(&agent.credential_socket(), Some(&address(LOANS, BLOOM)));
    logged(&agent, "a unit waits for its credential", 1).await;
    let mut answer = JoinSet::new();
    answer.spawn(read(asked));
    agent.time.advance(Duration::from_millis(29_999));
    // Served in between: whoever waited less than that would have been answered by now.
    agent.client().await.status().await.unwrap();
    assert!(answer.try_join_next().is_none());
    agent.time.advance(Duration::from_millis(1));
    assert_eq!(soon("refused", answer.join_all()).await, [Found::NoStart]);
    let log = agent.log();
    assert!(log.contains("a credential is refused: there is no token, and none came in time"), "{log}");
    assert!(!log.contains("decision=denied"), "{log}");
    agent.issuer.release();
    agent.stop().await;
}

#[tokio::test]
async fn no_start_at_once_when_the_next_attempt_is_too_late() {
    if skipped_without_root("no_start_at_once_when_the_next_attempt_is_too_late") {
        return;
    }
    let agent = Agent::start_with(Setting {
        tokens: profile(BLOOM, "allow = ['unit:loans.service']"),
        find_unit: Some(Cgroup::of(LOANS).find()),
        before: |issuer| (0..20).for_each(|_| issuer.push_fault(Fault::status(StatusCode::UNAUTHORIZED))),
        ..Setting::default()
    })
    .await;
    agent.attempts_until(BLOOM, |attempts| attempts.settled == 1).await;
    let patience = async || agent.next_attempt(BLOOM).await.since(agent.time.now().boot);
    while patience().await <= Duration::from_secs(30) {
        agent.pass_an_attempt(BLOOM).await;
    }
    assert_eq!(ask(&agent, LOANS, BLOOM).await, Found::NoStart);
    agent.stop().await;
}

#[tokio::test]
async fn a_reload_while_a_unit_waits_is_what_it_is_judged_by() {
    if skipped_without_root("a_reload_while_a_unit_waits_is_what_it_is_judged_by") {
        return;
    }
    let agent = Agent::start_with(Setting {
        tokens: profile(BLOOM, "allow = ['unit:loans.service']"),
        find_unit: Some(Cgroup::of(LOANS).find()),
        before: |issuer| issuer.push_fault(Fault::none().held()),
        ..Setting::default()
    })
    .await;
    agent.issuer.wait_for_request(1).await;
    let asked = ask_from(&agent.credential_socket(), Some(&address(LOANS, BLOOM)));
    logged(&agent, "a unit waits for its credential", 1).await;
    agent.write_config(&profile(BLOOM, "allow = ['unit:other.service']"));
    agent.client().await.reload().await.unwrap();
    assert_eq!(read(asked).await, Found::NoStart);
    assert!(agent.log().contains("decision=denied verb=credential profile=bloom"), "{}", agent.log());
    agent.issuer.release();
    agent.stop().await;
}

#[tokio::test]
async fn who_does_not_read_keeps_nobody_else_waiting() {
    if skipped_without_root("who_does_not_read_keeps_nobody_else_waiting") {
        return;
    }
    let agent = start(&Cgroup::of(LOANS), |_| ()).await;
    let stuck: Vec<_> =
        (0..50).map(|_| ask_from(&agent.credential_socket(), Some(&address(LOANS, "partner")))).collect();
    logged(&agent, "a credential is refused", 50).await;
    assert!(matches!(ask(&agent, LOANS, BLOOM).await, Found::Token(_)));
    // They are still refused when they do read.
    for asked in stuck {
        assert_eq!(read(asked).await, Found::NoStart);
    }
    agent.stop().await;
}

#[tokio::test]
async fn who_waits_when_the_agent_ends_is_refused_and_not_left_with_nothing() {
    if skipped_without_root("who_waits_when_the_agent_ends_is_refused_and_not_left_with_nothing") {
        return;
    }
    let mut agent = start(&Cgroup::of(LOANS), |issuer| {
        issuer.push_fault(Fault::none().held());
        issuer.push_fault(Fault::none().held());
    })
    .await;
    agent.issuer.wait_for_request(2).await;
    let asked = ask_from(&agent.credential_socket(), Some(&address(LOANS, BLOOM)));
    logged(&agent, "a unit waits for its credential", 1).await;
    agent.signal(Signal::Stop).await;
    let mut answer = JoinSet::new();
    answer.spawn(read(asked));
    agent.ended().await;
    assert_eq!(answer.join_all().await, [Found::NoStart]);
    agent.issuer.release();
}
