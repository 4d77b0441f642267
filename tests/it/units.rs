//! Rules by unit: who is in which, by the kernel's word at the moment of the connection, whatever happens later.
//!
//! The units are cgroups of the test's own, in a part of the machine's tree that the agent takes for the manager's. A
//! caller is a process of its own there; what it connected is used from here, as by whoever is handed a socket.

use std::{
    fs,
    io::{self, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use bloom_agent::units::Units;
use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
        wait::waitpid,
    },
    unistd::{Pid, geteuid},
};
use tonic::Code;

use crate::{
    connector::successor,
    support::{Agent, BLOOM, Client, Next as _, Setting, profile, refusal},
};

const ALICE: u32 = 2001;
const BOB: u32 = 2002;
const LOANS: &str = "system.slice/loans.service";
const OTHER: &str = "system.slice/other.service";

/// A part of the machine's tree of cgroups.
struct Tree(PathBuf);

impl Tree {
    /// None, said aloud, where this machine gives none.
    fn new(test: &str) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let skip = |why: &str| {
            // Past the test runner, which keeps what a passing test prints to itself.
            let _loud = io::stderr().write_fmt(format_args!("SKIPPED: {test}: {why}\n"));
            None
        };
        if !geteuid().is_root() {
            return skip("it must be root to make cgroups");
        }
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let Some(mount) = mounts
            .into_iter()
            .find(|mount| mount.join("cgroup.procs").exists() && mount.join("cgroup.controllers").exists())
        else {
            return skip("no cgroup2 is mounted");
        };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = mount.join(format!("bloom-agent-test-{}-{number}", std::process::id()));
        if let Err(error) = fs::create_dir(&root) {
            return skip(&format!("no cgroup can be made: {error}"));
        }
        let tree = Self(root);
        for unit in ["init.scope", LOANS, OTHER, "apps.slice/loans.service"] {
            fs::create_dir_all(tree.0.join(unit)).unwrap();
        }
        let metrics = bloom_agent::metrics::Metrics::new("test", Default::default(), Default::default());
        let time = std::sync::Arc::new(bloom_agent::timer::ManualTime::default());
        match Units::below(&tree.0, time, metrics) {
            Ok(_) => Some(tree),
            Err(why) => skip(why),
        }
    }

    /// An agent whose units these are, with one profile.
    async fn agent(&self, rules: &str) -> Agent {
        let root = self.0.clone();
        let units = Box::new(move |clock, metrics| Units::below(&root, clock, metrics).unwrap());
        Agent::start_with(Setting { tokens: profile(BLOOM, rules), units, ..Setting::default() }).await
    }

    /// Puts a process into a unit.
    fn enter(&self, unit: &str, pid: Pid) {
        fs::write(self.0.join(unit).join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// A process of that uid in that unit, which has connected to the agent.
    fn caller(&self, agent: &Agent, unit: &str, uid: u32) -> Caller {
        let stream = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let address = UnixAddr::new(agent.socket()).unwrap();
        let procs = fs::File::options().write(true).open(self.0.join(unit).join("cgroup.procs")).unwrap();
        let connects = stream.as_raw_fd();
        let act = move || {
            (&procs).write_all(b"0")?;
            take_ids(uid)?;
            // What was made before the fork is one socket for both; the kernel notes who connects it.
            connect(connects, &address)?;
            Ok(())
        };
        let mut command = Command::new("sleep");
        command.arg("infinity").stdin(Stdio::null()).stdout(Stdio::null());
        #[allow(unsafe_code, reason = "acts as the child before it becomes another program")]
        // SAFETY: between fork and exec only system calls are made; what they need was allocated before.
        unsafe {
            command.pre_exec(act);
        }
        Caller { process: command.spawn().unwrap(), stream }
    }

    /// A process in that unit with the process id of another, which has gone.
    fn successor(&self, unit: &str, gone: Pid) -> Pid {
        let gone = successor(gone, 0);
        self.enter(unit, gone);
        gone
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // Children first; a cgroup with a process in it stays behind, which the next run does not mind.
        let units =
            [LOANS, OTHER, "apps.slice/loans.service", "system.slice", "apps.slice", "init.scope", ""];
        for unit in units {
            let _stays = fs::remove_dir(self.0.join(unit));
        }
    }
}

#[allow(unsafe_code, reason = "glibc's wrappers are not for between fork and exec")]
fn take_ids(uid: u32) -> io::Result<()> {
    // SAFETY: numbers, and a null pointer of no elements.
    let answers = unsafe {
        [
            libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()),
            libc::syscall(libc::SYS_setresgid, uid, uid, uid),
            libc::syscall(libc::SYS_setresuid, uid, uid, uid),
        ]
    };
    if answers == [0; 3] { Ok(()) } else { Err(io::Error::last_os_error()) }
}

struct Caller {
    process: Child,
    stream: OwnedFd,
}

impl Caller {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().cast_signed())
    }

    /// Ends the process and waits for it: its id is free.
    fn end(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// What it has connected, in our hands.
    async fn client(&self) -> Client {
        Client::over(UnixStream::from(self.stream.try_clone().unwrap())).await
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _ended = self.process.wait();
    }
}

async fn denied(client: &Client) -> bool {
    match client.get(BLOOM).await {
        Ok(_) => false,
        Err(status) => {
            assert_eq!(refusal(&status), (Code::PermissionDenied, "NOT_ALLOWED".to_owned(), false));
            true
        }
    }
}

const RULES: &str = "allow = ['uid:2001 & unit:loans.service']";

#[tokio::test]
async fn a_connection_is_its_connectors_whoever_holds_it() {
    let Some(tree) = Tree::new("a_connection_is_its_connectors_whoever_holds_it") else { return };
    let agent = tree.agent(RULES).await;
    // This process is in none of these units, and speaks for each of them.
    for (unit, uid, is_denied) in [
        (LOANS, ALICE, false),
        (OTHER, ALICE, true),
        (LOANS, BOB, true),
        ("apps.slice/loans.service", ALICE, true),
    ] {
        let caller = tree.caller(&agent, unit, uid);
        assert_eq!(denied(&caller.client().await).await, is_denied, "{unit} {uid}");
    }
    let operator = agent.client().await;
    assert_eq!(operator.status().await.unwrap().unit_lookup, "cgroup");
    let log = agent.log();
    let told = |words: &[&str]| log.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(told(&["decision=granted", "uid=2001", "unit=loans.service"]), "{log}");
    assert!(told(&["decision=denied", "uid=2001", "unit=other.service"]), "{log}");
    // Bob is not in a rule whatever his unit, so nobody asks for it.
    assert!(!told(&["uid=2002", "unit="]), "{log}");
    assert_eq!(log.matches("the units of callers are looked up").count(), 1, "{log}");
    agent.stop().await;
}

#[tokio::test]
async fn who_has_gone_has_no_unit_and_its_process_id_gives_it_none() {
    let Some(tree) = Tree::new("who_has_gone_has_no_unit_and_its_process_id_gives_it_none") else { return };
    let agent = tree.agent(RULES).await;
    // Nothing is accepted before the test waits: both ends run on one thread.
    let mut gone = tree.caller(&agent, LOANS, ALICE);
    gone.end();
    assert!(denied(&gone.client().await).await, "a process that was in the unit, and has ended");

    let mut thief = tree.caller(&agent, OTHER, ALICE);
    thief.end();
    let successor = tree.successor(LOANS, thief.pid());
    let is_denied = denied(&thief.client().await).await;
    kill(successor, Signal::SIGKILL).unwrap();
    waitpid(successor, None).unwrap();
    assert!(is_denied, "a process of the unit has its id by now");

    // A unit that was stopped, and started again, after the connection was accepted.
    let mut stopped = tree.caller(&agent, LOANS, ALICE);
    let client = stopped.client().await;
    client.catch_up().await;
    stopped.end();
    fs::remove_dir(tree.0.join(LOANS)).unwrap();
    fs::create_dir(tree.0.join(LOANS)).unwrap();
    // The list has asked for the unit already, and what was found out stays; here is another that has not.
    assert!(!denied(&client).await);
    let mut other = tree.caller(&agent, LOANS, ALICE);
    let client = other.client().await;
    // The agent's own health asks for nobody's unit.
    client.check("").await.unwrap();
    other.end();
    fs::remove_dir(tree.0.join(LOANS)).unwrap();
    fs::create_dir(tree.0.join(LOANS)).unwrap();
    assert!(denied(&client).await, "the unit of the connection is no more");
    agent.stop().await;
}

#[tokio::test]
async fn who_is_moved_is_where_it_was_when_it_was_accepted() {
    let Some(tree) = Tree::new("who_is_moved_is_where_it_was_when_it_was_accepted") else { return };
    let agent = tree.agent(RULES).await;
    for (first, then, is_denied) in [(LOANS, OTHER, false), (OTHER, LOANS, true)] {
        let caller = tree.caller(&agent, first, ALICE);
        let client = caller.client().await;
        // An answer of the agent's own: the connection is accepted, and nobody has asked for its unit.
        client.check("").await.unwrap();
        tree.enter(then, caller.pid());
        assert_eq!(denied(&client).await, is_denied, "from {first} to {then}");
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_reload_that_asks_for_units_judges_those_who_are_there_already() {
    let Some(tree) = Tree::new("a_reload_that_asks_for_units_judges_those_who_are_there_already") else {
        return;
    };
    let agent = tree.agent("allow = ['uid:2001']").await;
    let operator = agent.client().await;
    assert_eq!(operator.status().await.unwrap().unit_lookup, "not needed");
    let callers = [tree.caller(&agent, LOANS, ALICE), tree.caller(&agent, OTHER, ALICE)];
    let (loans, other) = (callers[0].client().await, callers[1].client().await);
    let (mut of_loans, mut of_other) = (loans.watch(BLOOM).await.unwrap(), other.watch(BLOOM).await.unwrap());
    assert!(
        of_loans.next_message().await.unwrap().is_some() && of_other.next_message().await.unwrap().is_some()
    );

    agent.write_config(&profile(BLOOM, RULES));
    operator.reload().await.unwrap();
    assert_eq!(of_other.next_message().await.unwrap_err().code(), Code::PermissionDenied);
    assert!(!denied(&loans).await && denied(&other).await);

    // Units count in other slices now.
    let own = geteuid();
    let slices =
        format!("[agent]\nadmin = ['uid:{own}']\nunit_slices = ['apps.slice']\n{}", profile(BLOOM, RULES));
    agent.write_raw_config(&slices);
    operator.reload().await.unwrap();
    assert_eq!(of_loans.next_message().await.unwrap_err().code(), Code::PermissionDenied);
    assert!(denied(&loans).await);
    let apps = tree.caller(&agent, "apps.slice/loans.service", ALICE);
    assert!(!denied(&apps.client().await).await);
    drop(callers);
    agent.stop().await;
}
