//! Who a caller is, when the caller does everything to be somebody else: it dies, becomes another program or another user,
//! hands its socket on, gives its process id away, or lives in namespaces of its own. The kernel's word at connect(2) counts.

use std::{
    io::{IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::Command,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tonic::Code;

use crate::{
    connector::{Connector, Step, become_user, nothing, successor, take_ids, turn_into},
    host::{Agent, Host, User, is_root, on_this_thread, shown},
    support::{Client, refusal},
};

const ALICE: u32 = 2001;
const MALLORY: u32 = 2009;

fn user(uid: u32) -> User {
    User::new(uid, uid, &[])
}

/// An agent with a profile of Alice's and one of root's, at a socket that is open to all.
fn two_profiles() -> Host {
    let host = Host::new("s3cret");
    let agent = host.agent_table("socket_mode = \"0666\"");
    let alices = host.profile("alices", "allow = [\"uid:2001\"]");
    host.config(&(agent + &alices + &host.profile("roots", "allow = [\"uid:0\"]")));
    host
}

/// Whether a connection gets the token of that profile.
async fn gets(client: &Client, profile: &str) -> bool {
    match client.get(profile).await {
        Ok(token) => {
            assert_eq!(token.name, profile);
            true
        }
        Err(status) => {
            assert_eq!(refusal(&status), (Code::PermissionDenied, "NOT_ALLOWED".to_owned(), false));
            false
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    As(&'static str),
    NotAtAll,
}

/// As whom a connection is served: root gets Alice's too.
fn served(stream: UnixStream) -> Served {
    on_this_thread(async {
        let client = Client::over(stream).await;
        match (gets(&client, "alices").await, gets(&client, "roots").await) {
            (true, true) => Served::As("root"),
            (true, false) => Served::As("Alice"),
            (false, false) => Served::NotAtAll,
            (false, true) => panic!("root without Alice's"),
        }
    })
}

/// Stops the agent, and waits until it stands still.
fn hold(agent: &Agent) {
    agent.signal(Signal::SIGSTOP);
    let stopped = waitpid(agent.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert!(matches!(stopped, WaitStatus::Stopped(_, Signal::SIGSTOP)), "{stopped:?}");
}

fn sleeping() -> Command {
    let mut command = Command::new("sleep");
    command.arg("infinity");
    command
}

fn takes(uids: [u32; 3]) -> Step {
    Box::new(move || take_ids(uids, uids, &[]))
}

/// A connector whose process does this before and after it connects.
fn connector(socket: &Path, before: Step, after: Step) -> Connector {
    Connector::new(&[socket], [before, after], sleeping())
}

fn effective_uid(pid: Pid) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    uids.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_connection_stays_its_connectors_whatever_that_becomes() {
    if !is_root("callers that become somebody else") {
        return;
    }
    let host = two_profiles();
    let agent = host.run();
    let socket = host.path("agent.sock");

    // Of the three ids of a process the effective one counts, as for files.
    for (uids, expected) in [
        ([ALICE, 0, 0], Served::As("root")),
        ([0, ALICE, 0], Served::As("Alice")),
        ([0, MALLORY, 0], Served::NotAtAll),
        ([ALICE, MALLORY, ALICE], Served::NotAtAll),
    ] {
        let process = connector(&socket, takes(uids), nothing());
        assert_eq!(served(process.stream()), expected, "{uids:?}");
    }

    // Another user since: up and down.
    for (before, after, expected) in [
        ([0, ALICE, 0], [0; 3], Served::As("Alice")),
        ([0, MALLORY, 0], [ALICE; 3], Served::NotAtAll),
        ([0; 3], [MALLORY; 3], Served::As("root")),
        ([0; 3], [65_534; 3], Served::As("root")),
    ] {
        let process = connector(&socket, takes(before), Box::new(move || turn_into(after)));
        assert_eq!(served(process.stream()), expected, "{before:?}, then {after:?}");
    }

    // Another program since, which is root's by its mode.
    let program = host.path("setuid-sleep");
    let mut copy = Command::new("sh");
    copy.args(["-c", "install -m 4755 \"$(command -v sleep)\" \"$0\""]).arg(&program);
    assert!(copy.status().unwrap().success());
    let setuid = |uid| {
        let mut sleep = Command::new(&program);
        sleep.arg("infinity");
        Connector::new(&[&socket], [become_user(&user(uid)), nothing()], sleep)
    };
    for (uid, expected) in [(ALICE, Served::As("Alice")), (MALLORY, Served::NotAtAll)] {
        let process = setuid(uid);
        assert_eq!(effective_uid(process.pid()), 0, "the test's directory is mounted nosuid");
        assert_eq!(served(process.stream()), expected, "setuid root since, by {uid}");
    }

    // Gone before the agent has accepted it.
    hold(&agent);
    let mut gone = [ALICE, MALLORY].map(|uid| connector(&socket, become_user(&user(uid)), nothing()));
    gone.iter_mut().for_each(Connector::end);
    agent.signal(Signal::SIGCONT);
    for (process, expected) in gone.iter().zip([Served::As("Alice"), Served::NotAtAll]) {
        assert_eq!(served(process.stream()), expected, "gone");
    }
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
}

#[test]
fn a_program_that_is_roots_by_its_mode_connects_as_root() {
    if !is_root("a setuid caller") {
        return;
    }
    let host = two_profiles();
    let _agent = host.run();
    let program = host.path("setuid-cli");
    let mut install = Command::new("install");
    assert!(
        install
            .args(["-m", "4755"])
            .arg(host.program("bloom-agent-cli"))
            .arg(&program)
            .status()
            .unwrap()
            .success()
    );
    let mut command = user(ALICE).command(&program);
    let output =
        command.arg("--socket").arg(host.path("agent.sock")).args(["token", "roots"]).output().unwrap();
    assert!(output.status.success(), "{}", shown(&output));
}

/// Hands a descriptor on, as SCM_RIGHTS does, to somebody who is another user; what that one does with it.
fn handed_to<T: Send>(uid: u32, stream: &UnixStream, deed: impl FnOnce(UnixStream) -> T + Send) -> T {
    let (here, there) = UnixStream::pair().unwrap();
    let descriptors = [stream.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(here.as_raw_fd(), &[IoSlice::new(b"!")], &rights, MsgFlags::empty(), None).unwrap();
    user(uid).act(|| {
        let mut byte = [0];
        let mut buffers = [IoSliceMut::new(&mut byte)];
        let mut space = nix::cmsg_space!(RawFd);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(there.as_raw_fd(), &mut buffers, Some(&mut space), flags).unwrap();
        let Some(ControlMessageOwned::ScmRights(numbers)) = received.cmsgs().unwrap().next() else {
            panic!("no descriptor came")
        };
        #[allow(unsafe_code, reason = "received descriptors are numbers")]
        // SAFETY: the kernel has just made it for us, and nobody else knows it.
        let handed = unsafe { OwnedFd::from_raw_fd(numbers[0]) };
        deed(UnixStream::from(handed))
    })
}

#[test]
fn a_socket_that_is_handed_on_stays_its_connectors() {
    if !is_root("a socket handed to another user") {
        return;
    }
    let host = two_profiles();
    let agent = host.run();
    let socket = host.path("agent.sock");
    for (giver, taker, expected) in [
        // Whoever hands it on, hands on what it may: README and SECURITY say so.
        (ALICE, MALLORY, Served::As("Alice")),
        (0, MALLORY, Served::As("root")),
        // And nobody gains by being handed one, or by handing his own to somebody who may more.
        (MALLORY, ALICE, Served::NotAtAll),
        (MALLORY, 0, Served::NotAtAll),
    ] {
        let process = connector(&socket, become_user(&user(giver)), nothing());
        assert_eq!(handed_to(taker, &process.stream(), served), expected, "from {giver} to {taker}");
    }
    // The audit names the connector.
    let log = agent.log();
    assert!(log.lines().any(|line| line.contains("decision=granted") && line.contains("uid=2001")), "{log}");
    let granted = |line: &&str| line.contains("decision=granted") && line.contains("uid=2009");
    assert!(!log.lines().any(|line| granted(&line)), "{log}");
}

#[test]
fn a_process_id_that_comes_round_between_connect_and_decision_gives_nobody_anything() {
    if !is_root("a process id that is given to another user") {
        return;
    }
    let host = two_profiles();
    let agent = host.run();
    let socket = host.path("agent.sock");
    for (connects, inherits, expected) in [
        (MALLORY, ALICE, Served::NotAtAll),
        (MALLORY, 0, Served::NotAtAll),
        (ALICE, MALLORY, Served::As("Alice")),
        (ALICE, 0, Served::As("Alice")),
    ] {
        hold(&agent);
        let mut process = connector(&socket, become_user(&user(connects)), nothing());
        let pid = process.pid();
        process.end();
        let heir = successor(pid, inherits);
        agent.signal(Signal::SIGCONT);
        let seen = served(process.stream());
        kill(heir, Signal::SIGKILL).unwrap();
        waitpid(heir, None).unwrap();
        assert_eq!(seen, expected, "connected by {connects}; {pid} is {inherits}'s by now");
    }
}

/// The exit status of the shipped client behind `wrapper`.
fn asks(host: &Host, wrapper: &[&str], profile: &str) -> Option<i32> {
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).arg(host.program("bloom-agent-cli"));
    let output =
        command.arg("--socket").arg(host.path("agent.sock")).args(["token", profile]).output().unwrap();
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 77)), "{wrapper:?}: {}", shown(&output));
    code
}

#[test]
fn a_caller_in_namespaces_of_its_own_is_who_it_is_outside() {
    if !is_root("callers in namespaces") {
        return;
    }
    let host = two_profiles();
    let agent = host.run();
    let as_alice = ["setpriv", "--reuid=2001", "--regid=2001", "--clear-groups", "--"];
    let as_mallory = ["setpriv", "--reuid=2009", "--regid=2009", "--clear-groups", "--"];
    let (may, may_not) = (Some(0), Some(77));
    // Inside it is root, or nobody; outside it is who it was.
    for inside in [&["unshare", "--user", "--map-root-user"][..], &["unshare", "--user"]] {
        assert_eq!(asks(&host, &[&as_alice, inside].concat(), "alices"), may, "{inside:?}");
        assert_eq!(asks(&host, &[&as_alice, inside].concat(), "roots"), may_not, "{inside:?}");
        assert_eq!(asks(&host, &[&as_mallory, inside].concat(), "alices"), may_not, "{inside:?}");
    }
    // Another name for every file, another root, another /proc, another number.
    let root = host.path("root");
    std::fs::create_dir(&root).unwrap();
    let chroot = format!("mount --rbind / {0}; exec chroot {0} \"$@\"", root.display());
    let elsewhere = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", &chroot, "sh"];
    let numbered = ["unshare", "--pid", "--fork", "--mount-proc"];
    for outside in [&elsewhere[..], &numbered] {
        assert_eq!(asks(&host, &[outside, &as_alice].concat(), "alices"), may, "{outside:?}");
        assert_eq!(asks(&host, &[outside, &as_alice].concat(), "roots"), may_not, "{outside:?}");
        assert_eq!(asks(&host, &[outside, &as_mallory].concat(), "alices"), may_not, "{outside:?}");
        assert_eq!(asks(&host, outside, "roots"), may, "root is root in there: {outside:?}");
    }
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
}

#[test]
fn an_agent_in_a_user_namespace_admits_nobody_whom_its_kernel_cannot_name() {
    if !is_root("an agent in a user namespace") {
        return;
    }
    let host = Host::new("s3cret");
    let rules = "allow = [\"uid:2001\", \"gid:2001\", \"gid:65534\", \"group:root\"]";
    host.config(&(host.agent_table("socket_mode = \"0666\"") + &host.profile("anybodys", rules)));
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user"]).arg(host.program("bloom-agent"));
    command.arg("run").arg("--config").arg(host.path("config.toml"));
    let agent = Agent::spawn(command);
    agent.wait_for_log("serving");
    let answers = |user: &User| {
        let process = Connector::of(user, &[&host.path("agent.sock")]);
        on_this_thread(async { gets(&process.client().await, "anybodys").await })
    };
    // The only uid that is mapped.
    assert!(answers(&User::new(0, 0, &[])));
    // In there each of these is uid 65534, whatever rule names it, its group, or the group that it seems to have.
    for user in [
        User::new(ALICE, ALICE, &[]),
        User::new(MALLORY, 0, &[0]),
        User::new(MALLORY, 65_534, &[65_534]),
        User::new(65_534, 65_534, &[]),
    ] {
        assert!(!answers(&user), "{user:?}\n{}", agent.log());
    }
    let log = agent.log();
    assert!(log.lines().any(|line| line.contains("decision=denied") && line.contains("uid=65534")), "{log}");
}

#[test]
fn an_agent_in_a_pid_namespace_serves_by_uid_whom_it_cannot_number() {
    if !is_root("an agent in a pid namespace") {
        return;
    }
    let host = two_profiles();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child"]).arg(host.program("bloom-agent"));
    command.arg("run").arg("--config").arg(host.path("config.toml"));
    let agent = Agent::spawn(command);
    agent.wait_for_log("serving");
    let socket = host.path("agent.sock");
    for (uid, expected) in
        [(ALICE, Served::As("Alice")), (MALLORY, Served::NotAtAll), (0, Served::As("root"))]
    {
        assert_eq!(served(Connector::of(&user(uid), &[&socket]).stream()), expected, "{uid}");
    }
    let told = |words: &[&str]| agent.log().lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(told(&["decision=granted", "uid=2001", "pid=0"]), "{}", agent.log());
    assert!(told(&["decision=denied", "uid=2009", "pid=0"]), "{}", agent.log());
}
