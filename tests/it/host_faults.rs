//! What a host does to the shipped daemon: kills it, stops it, takes descriptors, threads, disk and names away from it.
//! After each fault the same is asked ([`crate::invariants`]).

use std::{
    fs,
    net::UdpSocket,
    os::unix::{fs::FileTypeExt as _, net::UnixListener},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use bloom_agent::{clock::SystemClock, dev_issuer::Fault};
use nix::sys::{
    signal::Signal,
    wait::{WaitPidFlag, WaitStatus, waitpid},
};
use tokio::{sync::watch, task::JoinSet};
use tonic::Code;

use crate::{
    host::{Agent, Host, Printing, User, is_root, messages, on_this_thread, printed, shown},
    invariants::{Aftermath, Footprint, Given, OTHER, STRANGER},
    support::{Client, HANG, as_uid},
};

const SECRET: &str = "C4N4RY-of-the-client";
const BLOOM: &str = "bloom";

/// A host with one profile, of root's and of [`OTHER`]'s.
fn one_profile() -> Host {
    let host = Host::new(SECRET);
    host.config(&config(&host));
    host
}

fn config(host: &Host) -> String {
    let agent = host.agent_table("socket_mode = \"0666\"");
    agent + &host.profile(BLOOM, &format!("allow = [\"uid:{OTHER}\"]"))
}

/// What the shipped daemon is started with, behind another program.
fn behind(host: &Host, wrapper: &[&str]) -> Command {
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).arg(host.program("bloom-agent"));
    command.arg("run").arg("--config").arg(host.path("config.toml"));
    command
}

/// A story's world: the agent, what it took at rest, and what callers were given.
struct Story {
    host: Host,
    agent: Agent,
    at_rest: Footprint,
    given: Arc<Given>,
}

impl Story {
    fn begin(host: Host, command: Command) -> Self {
        let agent = Agent::spawn(command);
        let story = Self { host, at_rest: Footprint::of(agent.pid()), agent, given: Arc::default() };
        // The first token makes all that every later one needs: the threads, the arenas of the allocator.
        let token = story.host.cli(&["token", BLOOM, "--wait", "60s"]);
        assert!(token.status.success(), "{}\n{}", shown(&token), story.agent.log());
        let refreshed = story.host.cli(&["refresh", BLOOM]);
        assert!(refreshed.status.success(), "{}\n{}", shown(&refreshed), story.agent.log());
        Self { at_rest: Footprint::of(story.agent.pid()), ..story }
    }

    fn usual() -> Self {
        let host = one_profile();
        let command = host.daemon(&["run"]);
        Self::begin(host, command)
    }

    fn socket(&self) -> PathBuf {
        self.host.path("agent.sock")
    }

    async fn client(&self) -> Client {
        Client::over(std::os::unix::net::UnixStream::connect(self.socket()).unwrap()).await
    }

    /// Runs a part of the story; where it hangs, the agent's log says why.
    fn act<T>(&self, part: impl Future<Output = T>) -> T {
        on_this_thread(async {
            match tokio::time::timeout(HANG - Duration::from_secs(5), part).await {
                Ok(done) => done,
                Err(_) => panic!("it hangs\n{}", self.agent.log()),
            }
        })
    }

    /// Somebody whom no rule names.
    async fn stranger(&self) -> Client {
        let connect = || std::os::unix::net::UnixStream::connect(self.socket()).unwrap();
        Client::over(as_uid(STRANGER, STRANGER, &[], connect)).await
    }

    /// A token, which is there.
    async fn get(&self, client: &Client) -> bloom_agent::pb::Token {
        let token =
            client.get(BLOOM).await.unwrap_or_else(|status| panic!("{status:?}\n{}", self.agent.log()));
        self.given.note(&token);
        token
    }

    /// The end of every story. The provider may have seen that many requests by now, beside the two of the beginning.
    fn all_is_well(&self, requests: u64) {
        let aftermath = Aftermath {
            socket: &self.socket(),
            issuer: &self.host.issuer.control,
            profile: BLOOM,
            clock: &SystemClock,
            log: self.agent.log(),
            secrets: &[SECRET],
            given: &self.given,
            most_requests: 2 + requests,
            process: Some((self.agent.pid(), self.at_rest)),
        };
        on_this_thread(aftermath.all_is_well());
    }

    fn metric(&self, name: &str) -> u64 {
        let metrics = printed(&self.host.cli(&["metrics"]));
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
    }
}

/// A caller that never stops: a connection until it breaks, then the next one as soon as there is an agent again. A life of
/// 0 ends it.
async fn call_and_call(
    host: &Host,
    mut lives: watch::Receiver<u64>,
    given: &Given,
    answers: &watch::Sender<u64>,
) -> u64 {
    let mut broken = 0;
    loop {
        let life = *lives.borrow_and_update();
        if life == u64::MAX {
            return broken;
        }
        if let Ok(stream) = std::os::unix::net::UnixStream::connect(host.path("agent.sock"))
            && let Some(client) = Client::try_over(stream).await
        {
            while let Ok(token) = client.get(BLOOM).await {
                assert!(host.issuer.control.is_live(&token.access_token), "half a token");
                given.note(&token);
                answers.send_modify(|count| *count += 1);
                if *lives.borrow() == u64::MAX {
                    return broken;
                }
            }
            broken += 1;
        }
        // The next agent's, unless that is there by now.
        lives.wait_for(|now| *now > life).await.unwrap();
    }
}

#[test]
fn killed_again_and_again_under_load_it_gives_whole_tokens_or_none_and_is_taken_over() {
    const KILLS: u64 = 6;
    let host = one_profile();
    let issuer = &host.issuer.control;
    let given = Given::default();
    let (answers, (lives, _)) = (watch::Sender::new(0), watch::channel(0));
    let answered = |count: u64| {
        let mut answers = answers.subscribe();
        let wanted = *answers.borrow() + count;
        let reached = on_this_thread(async { answers.wait_for(|answers| *answers >= wanted).await.is_ok() });
        assert!(reached);
    };
    let agent = std::thread::scope(|scope| {
        let call = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(call_and_call(&host, lives.subscribe(), &given, &answers))
        };
        let callers: Vec<_> = (0..2).map(|_| scope.spawn(call)).collect();
        let mut watch = None;
        for round in 1..=KILLS {
            let requests = issuer.request_count();
            // Every third one is killed while its request is at the provider, the others after some answers.
            let in_flight = round % 3 == 0;
            if in_flight {
                issuer.push_fault(Fault::none().held());
            }
            let mut agent = host.run();
            lives.send_replace(round);
            watch.get_or_insert_with(|| Printing::spawn(host.cli_command(&["watch", BLOOM])));
            if in_flight {
                on_this_thread(issuer.wait_for_request(requests + 1));
            } else {
                answered(7 * round);
            }
            agent.signal(Signal::SIGKILL);
            agent.wait();
            assert!(!agent.log().contains("panicked"), "{}", agent.log());
            issuer.release();
        }
        let agent = host.run();
        lives.send_replace(KILLS + 1);
        answered(20);
        // One that only watches has seen rotations, none of them twice, and lives.
        let mut watch = watch.unwrap();
        let newest = host.cli(&["token", BLOOM, "--format", "json"]);
        let newest: serde_json::Value = serde_json::from_slice(&newest.stdout).unwrap();
        let mut seen = Vec::new();
        while newest["generation"].as_str() != seen.last().map(String::as_str) {
            let line = watch.line();
            let generation = line.split(' ').nth(1).unwrap().to_owned();
            assert!(!seen.contains(&generation), "{line} once more");
            seen.push(generation);
        }
        lives.send_replace(u64::MAX);
        let broken: Vec<_> = callers.into_iter().map(|caller| caller.join().unwrap()).collect();
        assert!(broken.iter().all(|broken| *broken > KILLS / 2), "{broken:?} connections broke");
        agent
    });
    assert_eq!(
        given.count() as u64,
        KILLS + 1 - KILLS / 3,
        "one for each that was not killed before it had one"
    );
    let aftermath = Aftermath {
        socket: &host.path("agent.sock"),
        issuer: &host.issuer.control,
        profile: BLOOM,
        clock: &SystemClock,
        log: agent.log(),
        secrets: &[SECRET],
        given: &given,
        // Nothing is kept here: systemd's part is another story. One for each start.
        most_requests: KILLS + 1,
        process: Some((agent.pid(), Footprint::of(agent.pid()))),
    };
    on_this_thread(aftermath.all_is_well());
}

#[test]
fn stopped_and_continued_it_answers_all_who_called_meanwhile() {
    let story = Story::usual();
    story.act(async {
        let before = story.client().await;
        let token = story.get(&before).await;
        story.agent.signal(Signal::SIGSTOP);
        let stopped = waitpid(story.agent.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
        let mut calls = JoinSet::new();
        for _ in 0..20 {
            let client = before.clone();
            calls.spawn(async move { client.get(BLOOM).await });
            // The kernel takes connections meanwhile.
            let late = story.client().await;
            calls.spawn(async move { late.get(BLOOM).await });
        }
        tokio::task::yield_now().await;
        story.agent.signal(Signal::SIGCONT);
        while let Some(answer) = calls.join_next().await {
            assert_eq!(answer.unwrap().unwrap(), token);
        }
    });
    story.all_is_well(0);
}

#[test]
fn without_a_descriptor_left_it_serves_who_is_there_and_recovers() {
    let story = Story::usual();
    // A limit that is known at the start bounds the connections; this one comes later, as when a host runs out of files.
    let limit = |most: &str| {
        let mut command = Command::new("prlimit");
        let pid = story.agent.pid().to_string();
        assert!(command.args(["--pid", &pid, &format!("--nofile={most}:")]).status().unwrap().success());
    };
    let connect = || std::os::unix::net::UnixStream::connect(story.socket()).unwrap();
    story.act(async {
        let early = story.client().await;
        let token = story.get(&early).await;
        // Two more connections, and no file beside them.
        limit(&(Footprint::of(story.agent.pid()).descriptors + 2).to_string());
        let mut crowd = Vec::new();
        while !story.agent.log().contains("refused for lack of descriptors") {
            crowd.extend(Client::try_over(connect()).await);
            early.check("").await.unwrap();
        }
        for _ in 0..20 {
            assert_eq!(story.get(&early).await, token);
        }
        // What it can do no more than anybody without a descriptor: it costs no token and no request.
        let failed = early.refresh(BLOOM).await.unwrap_err();
        assert_eq!(failed.code(), Code::Unavailable, "{failed:?}");
        assert_eq!(story.get(&early).await, token);
        drop(crowd);
        limit("1024");
        while !story.agent.log().contains("connections are accepted again") {
            if let Some(client) = Client::try_over(connect()).await {
                // It may be closed unread while the last of the crowd goes.
                let _closed = client.get(BLOOM).await;
            }
        }
    });
    let log = story.agent.log();
    assert_eq!(log.matches("refused for lack of descriptors").count(), 1, "once, not for each: {log}");
    // The attempt that had no descriptor is made again by itself.
    story.all_is_well(1);
}

#[test]
fn without_a_thread_left_it_serves_refreshes_and_reloads_with_those_that_it_has() {
    if !is_root("a limit on another user's threads") {
        return;
    }
    const USER: u32 = 4_321;
    let host = Host::new(SECRET);
    let agent = host.plain_agent_table("socket_mode = \"0666\"");
    // A name that nobody has: who is refused makes the agent look it up again.
    let allow = format!("allow = [\"uid:{OTHER}\", \"user:it-nobody-has-this\"]");
    host.config(&(agent + &host.profile(BLOOM, &allow)));
    host.give(".", USER);
    host.give("secret", USER);
    let ids = ["setpriv", "--reuid=4321", "--regid=4321", "--clear-groups", "--"];
    let command = behind(&host, &ids);
    let story = Story::begin(host, command);
    let limit = |most: &str| {
        // Its own user may lower it.
        let mut command = User::new(USER, USER, &[]).command(Path::new("prlimit"));
        let pid = story.agent.pid().to_string();
        assert!(command.args(["--pid", &pid, &format!("--nproc={most}:")]).status().unwrap().success());
    };
    // No clone(2) succeeds any more, whatever threads come and go.
    limit("1");
    story.act(async {
        let client = story.client().await;
        for _ in 0..5 {
            let before = story.get(&client).await;
            let fresh = client.refresh(BLOOM).await.unwrap();
            assert_ne!(fresh.generation, before.generation, "{}", story.agent.log());
            client.reload().await.unwrap();
            let refused = story.stranger().await.get(BLOOM).await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied);
        }
    });
    story.all_is_well(5);
}

#[test]
fn without_a_thread_for_what_blocks_it_does_not_start_and_says_so() {
    if !is_root("a limit on another user's threads") {
        return;
    }
    let host = Host::new(SECRET);
    host.config(&(host.plain_agent_table("") + &host.profile(BLOOM, "")));
    host.give(".", 4_322);
    let ids = ["setpriv", "--reuid=4322", "--regid=4322", "--clear-groups", "--"];
    // One thread for all that serves, and the log's.
    let limited = [&ids[..], &["prlimit", "--nproc=2:2", "--"]].concat();
    let refused = behind(&host, &limited).output().unwrap();
    assert_eq!(refused.status.code(), Some(71), "{}", shown(&refused));
    assert!(messages(&refused).contains("no thread for what blocks"), "{}", shown(&refused));
    assert!(messages(&refused).contains("raise the limit"), "{}", shown(&refused));
}

#[test]
fn a_full_disk_costs_lines_and_no_call_and_lines_come_again_when_there_is_room() {
    if !is_root("a full file system") {
        return;
    }
    let host = one_profile();
    let full = host.path("full");
    fs::create_dir(&full).unwrap();
    let script = "mount -t tmpfs -o size=64k none \"$1\"; head -c 256k /dev/zero >\"$1/filler\" 2>/dev/null || true; \
                  exec 2>>\"$1/log\"; shift; exec \"$@\"";
    let path = full.to_str().unwrap().to_owned();
    let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", &path];
    let command = behind(&host, &wrapper);
    let story = Story::begin(host, command);
    story.act(async {
        let client = story.client().await;
        for _ in 0..20 {
            story.get(&client).await;
            client.reload().await.unwrap();
        }
    });
    let lost = story.metric("bloom_agent_log_lines_dropped_total");
    assert!(lost >= 20, "{lost} lines are counted");
    // The disk as its process sees it.
    let inside = PathBuf::from(format!("/proc/{}/root{path}", story.agent.pid()));
    assert_eq!(fs::metadata(inside.join("log")).unwrap().len(), 0, "the disk was not full");
    fs::remove_file(inside.join("filler")).unwrap();
    let reload = || assert!(story.host.cli(&["reload"]).status.success());
    reload();
    // The reload has been answered, and its line is written by a thread of its own, after all that came before it.
    story.act(async {
        while !fs::read_to_string(inside.join("log")).unwrap().contains("reloaded") {
            tokio::task::yield_now().await;
        }
    });
    let lost = story.metric("bloom_agent_log_lines_dropped_total");
    reload();
    assert_eq!(story.metric("bloom_agent_log_lines_dropped_total"), lost, "no more are lost");
    story.all_is_well(0);
}

#[test]
fn a_socket_that_loses_its_name_serves_on_and_takes_nothing_of_others_with_it() {
    let story = Story::usual();
    let socket = story.socket();
    story.act(async {
        let early = story.client().await;
        let token = story.get(&early).await;
        let again = async |what: &str| {
            assert_eq!(story.get(&early).await, token, "{what}");
            // And a second one does not take its place behind its back: what is locked is not the name.
            let second = story.host.run_to_its_end();
            assert_eq!(second.status.code(), Some(71), "{what}: {}", shown(&second));
            assert!(messages(&second).contains("another agent runs there"), "{what}: {}", shown(&second));
        };
        let aside = story.host.path("aside.sock");
        // Moved, and moved back: whoever connects is served again, without a restart.
        fs::rename(&socket, &aside).unwrap();
        again("moved away").await;
        let moved = Client::over(std::os::unix::net::UnixStream::connect(&aside).unwrap()).await;
        assert_eq!(story.get(&moved).await, token);
        // Another one's file, then another one's socket, in its place.
        fs::write(&socket, "precious").unwrap();
        again("a file").await;
        fs::remove_file(&socket).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        again("another's socket").await;
        drop(listener);
        fs::rename(&aside, &socket).unwrap();
        assert_eq!(story.get(&story.client().await).await, token);
    });
    // The whole directory has another name for a while.
    let directory = story.host.directory().to_owned();
    let elsewhere = directory.with_extension("elsewhere");
    fs::rename(&directory, &elsewhere).unwrap();
    story.act(async {
        let moved = elsewhere.join("agent.sock");
        story.get(&Client::over(std::os::unix::net::UnixStream::connect(moved).unwrap()).await).await;
    });
    fs::rename(&elsewhere, &directory).unwrap();
    story.all_is_well(0);

    // What is in its place at the end is not its own, and stays.
    fs::remove_file(&socket).unwrap();
    let of_another = UnixListener::bind(&socket).unwrap();
    let (status, _, log) = story.agent.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(fs::symlink_metadata(&socket).unwrap().file_type().is_socket(), "another's socket was removed");
    drop(of_another);
}

#[test]
fn a_read_only_file_system_is_said_at_the_start() {
    if !is_root("a read-only file system") {
        return;
    }
    let host = one_profile();
    let directory = host.directory().to_str().unwrap().to_owned();
    let inside = ["unshare", "--mount", "--propagation", "private", "sh", "-ec"];
    let read_only = "mount --bind \"$1\" \"$1\"; mount -o remount,bind,ro \"$1\"; shift; exec \"$@\"";
    let mut refused = behind(&host, &[&inside[..], &[read_only, "sh", &directory]].concat());
    let refused = refused.output().unwrap();
    assert_eq!(refused.status.code(), Some(71), "{}", shown(&refused));
    assert!(messages(&refused).contains("Read-only file system"), "{}", shown(&refused));
}

#[test]
fn a_thousand_reloads_leave_it_as_it_was() {
    let story = Story::usual();
    let plain = config(&story.host);
    let second = plain.clone() + &story.host.profile("second", "");
    let faulty = plain.replace("ca_file", "ca_flie");
    let mut footprints = Vec::new();
    let mut tokens = Vec::new();
    for _ in 0..5 {
        story.act(async {
            let client = story.client().await;
            let watch = client.watch(BLOOM).await.unwrap();
            story.host.config(&second);
            for round in 0..100 {
                match round {
                    50 => story.host.config(&plain),
                    99 => story.host.config(&faulty),
                    _ => {}
                }
                // A storm of signals beside the calls: they share what is under way.
                story.agent.signal(Signal::SIGHUP);
                let done = client.reload().await;
                assert_eq!(done.is_err(), round == 99, "{done:?}");
                tokens.push(story.get(&client).await);
            }
            footprints.push(Footprint::of(story.agent.pid()));
            story.host.config(&plain);
            drop(watch);
        });
    }
    assert!(tokens.iter().all(|token| *token == tokens[0]), "a reload costs no token");
    // The first two hundred have made all there is to make; threads come up to their number. The last signal's reload may
    // have a file open still.
    let (first, last) = (footprints[1], footprints[footprints.len() - 1]);
    let closed = async {
        while Footprint::of(story.agent.pid()).descriptors > first.descriptors {
            tokio::task::yield_now().await;
        }
    };
    story.act(closed);
    assert!(last.threads <= 20, "{footprints:?}");
    assert!(last.resident_kib <= first.resident_kib + 1024, "{footprints:?}");
    // The second profile's tokens: each time it came.
    story.all_is_well(5);
}

/// A name server that never answers, on an address of the loopback of its own.
fn silent_name_server() -> (UdpSocket, String) {
    for last in 1..255_u8 {
        let address = format!("127.53.{}.{last}", std::process::id() % 250);
        if let Ok(socket) = UdpSocket::bind((address.as_str(), 53)) {
            socket.set_nonblocking(true).unwrap();
            return (socket, address);
        }
    }
    panic!("no address of the loopback is free")
}

#[test]
fn a_resolver_that_never_answers_takes_four_threads_and_nothing_from_anybody() {
    if !is_root("a name server of its own") {
        return;
    }
    let host = Host::new(SECRET);
    let (server, address) = silent_name_server();
    // Longer than the test's patience: whatever waits for an answer fails it.
    host.write("resolv.conf", &format!("nameserver {address}\noptions timeout:30 attempts:5\n"), 0o644);
    host.write("nsswitch.conf", "passwd: files\ngroup: files\nhosts: dns\n", 0o644);
    let mut text = config(&host);
    for n in 0..100 {
        // Ten profiles to a name.
        let elsewhere = format!("https://id-{}.faults.invalid/token", n / 10);
        text += &host.profile(&format!("away-{n}"), "").replace(&host.issuer.token_url, &elsewhere);
    }
    host.config(&text);
    let script =
        "mount --bind \"$1\" /etc/resolv.conf; mount --bind \"$2\" /etc/nsswitch.conf; shift 2; exec \"$@\"";
    let files = ["resolv.conf", "nsswitch.conf"].map(|name| host.path(name).to_str().unwrap().to_owned());
    let wrapper =
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", &files[0], &files[1]];
    let command = behind(&host, &wrapper);
    let story = Story::begin(host, command);
    let mut names = std::collections::BTreeSet::new();
    let mut hear = || {
        let mut packet = [0; 512];
        while let Ok(length) = server.recv(&mut packet) {
            // The first label of the question, after the header of 12 bytes.
            let label = usize::from(packet[12]);
            assert!(13 + label < length);
            names.insert(String::from_utf8_lossy(&packet[13..13 + label]).into_owned());
        }
        names.len()
    };
    story.act(async {
        let client = story.client().await;
        let token = story.get(&client).await;
        while hear() < 4 {
            client.check("").await.unwrap();
        }
        // All that take long have begun; a hundred profiles wait for them. Whoever has a token does not.
        for _ in 0..200 {
            assert_eq!(story.get(&client).await, token);
        }
        // The unit's TasksMax= is 32.
        assert!(Footprint::of(story.agent.pid()).threads <= 20, "{:?}", Footprint::of(story.agent.pid()));
        // A refresh goes by an address, and needs no look-up of anybody's.
        let fresh = client.refresh(BLOOM).await.unwrap();
        assert_ne!(fresh.generation, token.generation, "{}", story.agent.log());
        client.reload().await.unwrap();
        assert_eq!(hear(), 4, "no more than four names at a time, and equal ones share theirs");
    });
    story.all_is_well(1);
    assert_eq!(hear(), 4, "they cannot be called back");
    // And it ends when it is told to.
    let (status, _, log) = story.agent.stop();
    assert_eq!(status.code(), Some(0), "{log}");
}
