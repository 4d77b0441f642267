//! The agent as it is shipped, with everything on: peer check, rules, audit, metrics, limits, `:authority` adapter.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use bloom_agent::dev_issuer::{Fault, Reply};
use http::StatusCode;

use crate::{
    host::{Agent, Host},
    wire::{Call, Connection, Scratch},
};

/// The profile that is asked for.
pub(crate) const PROFILE: &str = "bloom";

/// A token as providers give them: a JWT of the usual size.
const TOKEN_BYTES: usize = 1_000;

/// Limits out of the way, where one uid opens more than one user's clients should.
pub(crate) const NO_LIMITS: &str = "connections_total = 1000000\nconnections = 1000000\ncalls = 1000000\n\
    watches = 1000000\nstreams_per_connection = 1000000\nconnects_per_second = 1000000\n";

/// An issuer whose tokens are of that size, a config, and room for sockets.
pub(crate) struct Bench {
    pub(crate) host: Host,
    tokens: AtomicU32,
}

impl Bench {
    /// One profile, all limits as they come.
    pub(crate) fn new() -> Self {
        Self::with("", |host| host.profile(PROFILE, ""))
    }

    pub(crate) fn without_limits() -> Self {
        Self::with(NO_LIMITS, |host| host.profile(PROFILE, ""))
    }

    /// For these users, whose number is in the way no more than any other limit is.
    pub(crate) fn for_users(users: [u32; 2]) -> Self {
        let allowed = users.map(|uid| format!("\"uid:{uid}\"")).join(", ");
        Self::configured("socket_mode = \"0666\"", NO_LIMITS, |host| {
            host.profile(PROFILE, &format!("allow = [{allowed}]"))
        })
    }

    /// With these limits and profiles.
    pub(crate) fn with(limits: &str, profiles: impl FnOnce(&Host) -> String) -> Self {
        Self::configured("", limits, profiles)
    }

    fn configured(agent: &str, limits: &str, profiles: impl FnOnce(&Host) -> String) -> Self {
        let host = Host::new("a-secret-of-the-bench");
        let profiles = profiles(&host);
        host.config(&format!("{}[limits]\n{limits}\n{profiles}", host.agent_table(agent)));
        let bench = Self { host, tokens: AtomicU32::new(0) };
        bench.mint();
        bench
    }

    /// From now on the issuer gives another token.
    pub(crate) fn mint(&self) {
        let token = format!("{:a>TOKEN_BYTES$}", self.tokens.fetch_add(1, Ordering::Relaxed));
        let body = format!(r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":86400}}"#);
        self.host.issuer.control.set_rule(Some(Fault::reply(Reply::json(StatusCode::OK, body))));
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.host.path("agent.sock")
    }

    /// Starts the agent under `launcher` (a profiler, a CPU), and waits for its first token.
    pub(crate) fn start(&self, launcher: &[&str]) -> Agent {
        let mut command = launched(launcher, self.host.program("bloom-agent").as_path());
        command.args(["run", "--config"]).arg(self.host.path("config.toml"));
        let agent = Agent::spawn(command);
        agent.wait_for_log("serving");
        assert!(self.reply().len() > TOKEN_BYTES, "a token");
        agent
    }

    /// What the agent answers, framed (a byte, four of length, the message).
    pub(crate) fn reply(&self) -> Vec<u8> {
        let mut connection = Connection::open(&self.socket()).unwrap();
        connection.call(&Call::get_token(PROFILE), &mut Scratch::new()).unwrap()
    }

    /// The same in a file, for the floors to answer with.
    pub(crate) fn reply_file(&self) -> PathBuf {
        let path = self.host.path("reply");
        fs::write(&path, self.reply()).unwrap();
        path
    }
}

/// A command, by way of its launcher.
pub(crate) fn launched(launcher: &[&str], program: &std::path::Path) -> Command {
    match launcher.split_first() {
        None => Command::new(program),
        Some((first, arguments)) => {
            let mut command = Command::new(first);
            command.args(arguments).arg(program);
            command
        }
    }
}

/// A running agent's process.
pub(crate) fn pid(agent: &Agent) -> u32 {
    agent.pid().as_raw().try_into().unwrap()
}

/// Waits until so many profiles have their token.
pub(crate) fn wait_for_tokens(agent: &Agent, count: usize) {
    while agent.log().matches("a new token").count() < count {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
