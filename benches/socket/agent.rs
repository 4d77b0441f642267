//! The agent as it is shipped, with everything on: peer check, rules, audit, metrics, limits, `:authority` adapter.

use std::{fs, path::PathBuf};

use bloom_agent::dev_issuer::{Fault, Reply};
use http::StatusCode;

use crate::{
    host::{Agent, Host},
    wire::{Call, Connection},
};

/// The profile that is asked for.
pub(crate) const PROFILE: &str = "bloom";

/// A token as providers give them: a JWT of the usual size.
const TOKEN_BYTES: usize = 1_000;

/// An issuer whose tokens are of that size, a config, and room for sockets.
pub(crate) struct Bench {
    pub(crate) host: Host,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with_limits("")
    }

    /// Limits are raised only where a bench opens more than one client should.
    pub(crate) fn with_limits(limits: &str) -> Self {
        let host = Host::new("a-secret-of-the-bench");
        let token = "a".repeat(TOKEN_BYTES);
        let body = format!(r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":86400}}"#);
        host.issuer.control.set_rule(Some(Fault::reply(Reply::json(StatusCode::OK, body))));
        let profile = host.profile(PROFILE, "");
        host.config(&format!("{}[limits]\n{limits}\n{profile}", host.agent_table("")));
        Self { host }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.host.path("agent.sock")
    }

    /// Starts the agent under `launcher` (a profiler, a CPU), and waits for its first token.
    pub(crate) fn start(&self, launcher: &[&str]) -> Agent {
        let agent = match launcher.split_first() {
            None => self.host.start(),
            Some((program, arguments)) => {
                let mut command = std::process::Command::new(program);
                command.args(arguments).arg(self.host.program("bloom-agent")).arg("run");
                Agent::spawn({
                    command.arg("--config").arg(self.host.path("config.toml"));
                    command
                })
            }
        };
        agent.wait_for_log("serving");
        let answer = self.reply();
        assert!(answer.len() > TOKEN_BYTES, "a token");
        agent
    }

    /// What the agent answers, framed (a byte, four of length, the message).
    pub(crate) fn reply(&self) -> Vec<u8> {
        Connection::open(&self.socket()).unwrap().call(&Call::get_token(PROFILE)).unwrap()
    }

    /// The same in a file, for the floors to answer with.
    pub(crate) fn reply_file(&self) -> PathBuf {
        let path = self.host.path("reply");
        fs::write(&path, self.reply()).unwrap();
        path
    }
}
