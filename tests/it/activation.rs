//! The shipped daemon with a service manager's sockets: what it takes, what it tells, what it leaves.

use std::{
    fs::File,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            net::{UnixDatagram, UnixListener},
            process::CommandExt as _,
        },
    },
    process::{Command, Stdio},
    time::Duration,
};

use bloom_agent::dev_issuer::Fault;
use nix::{libc, sys::signal::Signal};

use crate::host::{Agent, Host};

/// The test is the manager: its socket, and how the daemon is started by it with one descriptor.
struct Manager {
    notify: UnixDatagram,
    told: String,
}

impl Manager {
    fn new(host: &Host) -> Self {
        let notify = UnixDatagram::bind(host.path("notify")).unwrap();
        notify.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { notify, told: String::new() }
    }

    /// `descriptor` becomes number 3, under `name`. The shell is there because LISTEN_PID is the daemon's own.
    #[allow(unsafe_code, reason = "a descriptor for the child under a number of its own")]
    fn command(host: &Host, descriptor: OwnedFd, name: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$0\" run --config \"$1\""]);
        command.arg(host.program("bloom-agent")).arg(host.path("config.toml"));
        command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", name).env("NOTIFY_SOCKET", host.path("notify"));
        let pass = move || {
            // SAFETY: two system calls on numbers; what was number 3 in the child is needed by nobody there.
            let passed = unsafe { libc::dup2(descriptor.as_raw_fd(), 3) };
            // SAFETY: as above, on one number. Where it was number 3 already, dup2(2) has left its flag.
            let kept = unsafe { libc::fcntl(3, libc::F_SETFD, 0) };
            if passed == 3 && kept == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // SAFETY: `pass` makes system calls only.
        unsafe { command.pre_exec(pass) };
        command
    }

    /// Waits until it is told this, after what was heard before.
    fn hear(&mut self, words: &str) {
        let mut bytes = [0; 4096];
        loop {
            if let Some(at) = self.told.find(words) {
                self.told.drain(..at + words.len());
                return;
            }
            let length =
                self.notify.recv(&mut bytes).unwrap_or_else(|_| panic!("{words:?} in {:?}", self.told));
            self.told.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
            self.told.push('\n');
        }
    }
}

#[test]
fn a_socket_of_the_managers_is_served_and_left_to_it() {
    let host = Host::new("the-secret");
    let mut manager = Manager::new(&host);
    // Another path than the config's, whose directory nobody could bind in.
    host.config(&(host.agent_table("") + &host.profile("bloom", "")));
    let listener = UnixListener::bind(host.path("passed.sock")).unwrap();
    let passed = OwnedFd::from(listener.try_clone().unwrap());
    let agent = Agent::spawn(Manager::command(&host, passed, "grpc"));
    manager.hear("READY=1\nSTATUS=");
    manager.hear("1 of 1 tokens valid\n");
    let cli = |arguments: &[&str]| {
        let mut command = Command::new(host.program("bloom-agent-cli"));
        command.arg("--socket").arg(host.path("passed.sock")).args(arguments).output().unwrap()
    };
    assert!(cli(&["token"]).status.success());
    assert!(!host.path("agent.sock").exists(), "nothing else is bound");

    host.write("config.toml", "[agent]\nsocket = 7\n", 0o644);
    agent.signal(Signal::SIGHUP);
    manager.hear("RELOADING=1\nMONOTONIC_USEC=");
    manager.hear("READY=1\nSTATUS=1 of 1 tokens valid; the last reload was refused: ");

    let (status, _, log) = agent.stop();
    assert!(status.success(), "{log}");
    manager.hear("STOPPING=1\nSTATUS=stopping");
    assert!(host.path("passed.sock").exists(), "the path is the manager's");
    // Whoever connects meanwhile waits in its queue, and the next agent answers.
    let mut early = Command::new(host.program("bloom-agent-cli"));
    early.arg("--socket").arg(host.path("passed.sock")).arg("list").stdout(Stdio::null());
    let mut early = early.spawn().unwrap();
    host.config(&(host.agent_table("") + &host.profile("bloom", "")));
    let agent = Agent::spawn(Manager::command(&host, listener.into(), "grpc"));
    assert!(early.wait().unwrap().success());
    agent.stop();
}

#[test]
fn an_outage_does_not_hold_up_readiness_unless_the_config_says_so() {
    let host = Host::new("the-secret");
    let mut manager = Manager::new(&host);
    host.issuer.control.set_rule(Some(Fault::status(http::StatusCode::SERVICE_UNAVAILABLE)));
    host.config(&(host.agent_table("") + &host.profile("bloom", "")));
    let socket = |name: &str| OwnedFd::from(UnixListener::bind(host.path(name)).unwrap());
    let agent = Agent::spawn(Manager::command(&host, socket("1"), "grpc"));
    manager.hear("READY=1");
    manager.hear("0 of 1 tokens valid; bloom failed: ");
    agent.stop();
    manager.hear("STOPPING=1");

    host.config(&(host.agent_table("ready = \"tokens\"") + &host.profile("bloom", "")));
    let agent = Agent::spawn(Manager::command(&host, socket("2"), "grpc"));
    manager.hear("EXTEND_TIMEOUT_USEC=");
    manager.hear("0 of 1 tokens valid; bloom failed: ");
    host.issuer.control.set_rule(None);
    manager.hear("READY=1\nSTATUS=1 of 1 tokens valid");
    agent.stop();
}

#[test]
fn what_cannot_be_served_ends_the_start_and_says_what_to_compare() {
    let host = Host::new("the-secret");
    let _manager = Manager::new(&host);
    host.config(&(host.agent_table("") + &host.profile("bloom", "")));
    let file = || OwnedFd::from(File::open(host.path("config.toml")).unwrap());
    let output = Manager::command(&host, file(), "grpc").output().unwrap();
    assert_eq!(output.status.code(), Some(71));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("with the name grpc\nit is no socket\ncompare the .socket unit"), "{said}");
    assert!(!said.contains("reset-failed"), "{said}");

    host.config("[agent]\nsocket = 7\n");
    let output = Manager::command(&host, file(), "other").output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8(output.stderr).unwrap();
    let recovery =
        "systemctl reset-failed bloom-agent.socket bloom-agent.service; systemctl start bloom-agent.socket";
    assert!(said.contains(recovery), "{said}");
    let by_hand = host.run_to_its_end();
    assert!(!String::from_utf8(by_hand.stderr).unwrap().contains("systemctl"));
}
