//! Hostile local users at the shipped daemon's socket: every attack of the table, by a uid of its own, while another user
//! calls GetToken. What it costs is measured by `benches/abuse`.

#![allow(
    clippy::disallowed_methods,
    reason = "the agent is a process: whether it hangs is seen on a real clock"
)]

pub(crate) mod attacks;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::{Duration, Instant},
};

use bloom_agent::pb::{GetTokenRequest, token_service_client::TokenServiceClient};
use tokio::{runtime::Runtime, sync::oneshot, task::JoinSet};

use self::attacks::{ATTACKS, Attack, Must, Standing, strike};
use crate::host::{Agent, Host, User, connect, is_root, messages, printed, shown};

/// Nothing below takes long; what takes so long hangs.
const HANG: Duration = Duration::from_secs(60);
/// Who may have the token and behaves.
const VICTIM: u32 = 2002;
/// The group of those who may have it and do not behave.
const HOLDERS: u32 = 3001;
/// The first of them; each attack has the next.
const HOSTILE: u32 = 4000;

/// A host whose socket is open to everybody; the token is for the victim and the group.
fn host(limits: &str) -> (Host, Agent) {
    let host = Host::new("s3cret");
    let allow = format!("allow = [\"uid:{VICTIM}\", \"gid:{HOLDERS}\"]");
    let table = host.agent_table("socket_mode = \"0666\"");
    host.config(&format!("{table}{limits}\n{}", host.profile("bloom", &allow)));
    let agent = host.run();
    (host, agent)
}

/// What is open: connections by the agent's own book, descriptors by the kernel's.
fn open(host: &Host, agent: &Agent) -> (u32, usize) {
    let metrics = host.cli(&["metrics"]);
    let text = printed(&metrics);
    let connections =
        text.lines().find_map(|line| line.strip_prefix("bloom_agent_connections ")?.parse().ok());
    let descriptors = fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    (connections.unwrap_or_else(|| panic!("{text}\n{}", messages(&metrics))), descriptors)
}

/// Waits until as much is open as was.
fn back_at(base: (u32, usize), host: &Host, agent: &Agent, attack: &Attack) {
    let began = Instant::now();
    loop {
        let now = open(host, agent);
        // The channel's own descriptors come and go; there are never more.
        if now.0 == base.0 && now.1 <= base.1 {
            return;
        }
        assert!(began.elapsed() < HANG, "{attack:?}: {now:?} is open, {base:?} was\n{}", agent.log());
    }
}

/// Wages an attack over four connections, each opened again when it ends, until told to stop.
fn wage(user: &User, socket: &Path, attack: &'static Attack, ended: &AtomicU32, stop: oneshot::Receiver<()>) {
    user.act(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let again = |strikes: &mut JoinSet<_>| {
                let socket = socket.to_owned();
                strikes.spawn(async move { strike(&socket, attack).await });
            };
            let mut strikes = JoinSet::new();
            (0..4).for_each(|_| again(&mut strikes));
            let mut stop = stop;
            loop {
                tokio::select! {
                    _ = &mut stop => return,
                    Some(_) = strikes.join_next() => {
                        ended.fetch_add(1, SeqCst);
                        again(&mut strikes);
                    }
                }
            }
        });
    });
}

#[test]
fn no_attack_of_one_uid_is_felt_by_another_and_none_leaves_anything_behind() {
    if !is_root("hostile users at the shipped daemon") {
        return;
    }
    let (host, agent) = host("");
    let mut wrong = Vec::new();
    let socket = host.path("agent.sock");
    // A connection is that of who connected, whoever calls over it then.
    let (runtime, mut client) = User::new(VICTIM, VICTIM, &[]).act(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(async { TokenServiceClient::new(connect(&socket).await) });
        (runtime, client)
    });
    get(&runtime, &mut client);
    let base = open(&host, &agent);
    for (attack, uid) in ATTACKS.iter().zip(HOSTILE..) {
        // That takes five seconds, and belongs to a test with a clock of its own.
        if attack.must == Must::Outwait {
            continue;
        }
        let groups: &[u32] = if attack.by == Standing::Holder { &[HOLDERS] } else { &[] };
        let user = User::new(uid, uid, groups);
        let (stop, stopped) = oneshot::channel();
        let ended = AtomicU32::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| wage(&user, &socket, attack, &ended, stopped));
            let ends = matches!(attack.must, Must::Cut | Must::Close);
            let began = Instant::now();
            let mut calls = 0;
            // Where the agent is slow the meter's budget grows as fast as it is spent: that an attack ends is the business
            // of a test whose clock stands still (serving.rs).
            while calls < 20 || (ends && calls < 60 && ended.load(SeqCst) < 2) {
                get(&runtime, &mut client);
                calls += 1;
                assert!(began.elapsed() < HANG, "{attack:?} does not end\n{}", agent.log());
            }
            stop.send(()).unwrap();
        });
        back_at(base, &host, &agent, attack);
        let log = agent.log();
        let cuts =
            log.lines().filter(|line| line.contains(&format!("uid={uid} ")) && line.contains("is cut"));
        // What HTTP/2 ends by its own rules may have spent the meter's budget before that.
        let most = usize::from(matches!(attack.must, Must::Cut | Must::Close));
        let cuts = cuts.count();
        if cuts > most {
            wrong.push(format!("{attack:?} was said to be cut {cuts} times, not {most}"));
        }
    }
    let (status, _, log) = agent.stop();
    assert!(wrong.is_empty(), "{wrong:#?}\n{log}");
    assert!(status.success(), "{log}");
    assert!(!log.contains("panic"), "{log}");
    // Whatever was said of a hostile uid was said once.
    let mut said = BTreeSet::new();
    for line in log.lines().filter(|line| line.contains("uid=4")) {
        let event = line.split_once(' ').map_or(line, |(_, event)| event);
        let event: Vec<_> = event.split(' ').filter(|word| !word.starts_with("count=")).collect();
        assert!(said.insert(event.join(" ")) || line.contains("count="), "said twice: {line}\n{log}");
    }
}

fn get(runtime: &Runtime, client: &mut TokenServiceClient<tonic::transport::Channel>) {
    let asked = GetTokenRequest { name: "bloom".to_owned(), min_validity: None };
    let answer = runtime.block_on(async { tokio::time::timeout(HANG, client.get_token(asked)).await });
    assert!(answer.expect("in time").expect("a token").into_inner().token.is_some());
}

#[test]
fn ten_thousand_connects_by_one_uid_leave_room_for_another() {
    if !is_root("ten thousand connects by another user") {
        return;
    }
    let (host, agent) = host("[limits]\nconnections = 20\nconnects_per_second = 1000");
    let socket = host.path("agent.sock");
    let client_of = |uid| host.cli_as(&User::new(uid, uid, &[]), &["token", "bloom", "--wait", "60s"]);
    assert!(client_of(VICTIM).status.success());
    let base = open(&host, &agent);
    let held: Vec<_> = User::new(HOSTILE, HOSTILE, &[]).act(|| {
        // What is closed is forgotten; what is not is held.
        let mut held = Vec::new();
        for n in 0..10_000 {
            let stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
            if n < 200 {
                held.push(stream);
            }
        }
        held
    });
    // The kernel's queue is first come, first served: a few thousand are before it.
    let served = client_of(VICTIM);
    assert!(served.status.success(), "{}\n{}", shown(&served), agent.log());
    assert!(open(&host, &agent).0 <= base.0 + 20);
    drop(held);
    back_at(base, &host, &agent, &ATTACKS[0]);
    let log = agent.log();
    assert_eq!(
        log.lines().filter(|line| line.contains("refused: the uid is at its limit")).count(),
        1,
        "{log}"
    );
}

#[test]
fn who_may_not_connect_costs_nothing() {
    if !is_root("a user before a socket of mode 0600") {
        return;
    }
    let host = Host::new("s3cret");
    host.config(&(host.agent_table("socket_mode = \"0600\"") + &host.profile("bloom", "")));
    let agent = host.run();
    let base = open(&host, &agent);
    let before = agent.log();
    let socket = host.path("agent.sock");
    User::new(HOSTILE, HOSTILE, &[]).act(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for attack in ATTACKS {
            assert_eq!(runtime.block_on(strike(&socket, attack)), attacks::Ended::NotConnected, "{attack:?}");
        }
    });
    back_at(base, &host, &agent, &ATTACKS[0]);
    assert!(!agent.log()[before.len()..].contains(&format!("uid={HOSTILE}")), "{}", agent.log());
}
