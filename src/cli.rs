//! `bloom-agent-cli`: the agent for people and scripts.
//!
//! Data goes to standard output, messages to standard error, and the exit code says what to do ([`crate::exit`]). It
//! runs on one thread, links no TLS into its path and leaves without tearing its runtime down: it is started in front of
//! every `curl`. It never prints a token in a message, and never one that is not visible ASCII.

pub mod args;
mod caller;
mod json;
mod output;
mod table;
mod token;
mod trouble;
mod verbs;
mod watch;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use args::{CommandLine, Verb};
use caller::{Caller, Door};
use clap::Parser as _;
use output::Stop;
use trouble::{Around, Ask, Trouble};

use crate::{
    client::{Agent, Error, Reason, SocketPath, Wall},
    exit::Exit,
    log, pb,
};

/// What is asked of the agent only to explain a failure must not become one.
const EXPLANATION_DEADLINE: Duration = Duration::from_secs(1);

/// The whole program: `args` with the program's name first. It does not return; `exec` may not even come back.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ! {
    log::withhold_panic_messages("bloom-agent-cli");
    let code = match CommandLine::try_parse_from(args::settle_wait(args)) {
        Ok(line) => run(line),
        Err(error) => {
            // Help and version are answers. A closed pipe is no reason to fail, and there is no other place to tell.
            let _ = error.print();
            if error.use_stderr() { Exit::Usage.code() } else { Exit::Done.code() }
        }
    };
    // Everything is flushed. Dropping the runtime and its connection would cost a tenth of the whole run.
    std::process::exit(code.into())
}

fn run(line: CommandLine) -> u8 {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => std::mem::ManuallyDrop::new(runtime),
        Err(error) => {
            let todo = "look at the limits of this session: ulimit -a";
            output::message(&Trouble::new(Exit::System, "cannot start", error, todo).to_string());
            return Exit::System.code();
        }
    };
    let session = Session { socket: line.socket };
    let outcome = runtime.block_on(async {
        match line.verb {
            Verb::Token(args) => token::token(&session, &args).await,
            Verb::Watch(args) => watch::watch(&session, &args).await,
            Verb::List(printing) => verbs::list(&session, printing).await,
            Verb::Status(printing) => verbs::status(&session, printing).await,
            Verb::Refresh(args) => verbs::refresh(&session, &args).await,
            Verb::Reload(printing) => verbs::reload(&session, printing).await,
            Verb::ReportRejected(args) => verbs::report_rejected(&session, &args).await,
            Verb::Exec(args) => token::exec(&session, args).await,
            Verb::Metrics => verbs::metrics(&session).await,
        }
    });
    match outcome {
        Ok(()) | Err(Stop::ReaderGone) => Exit::Done.code(),
        Err(Stop::Command(code)) => code,
        Err(Stop::Trouble(trouble)) => {
            output::message(&trouble.to_string());
            trouble.exit.code()
        }
    }
}

/// Which agent, for all that a verb does with it.
struct Session {
    socket: Option<PathBuf>,
}

impl Session {
    async fn connect(&self) -> Result<Agent, Error> {
        Agent::connect(SocketPath::discover(self.socket.clone())?).await
    }

    fn caller(&self) -> Caller {
        Caller::current()
    }

    /// `error` in words, with what else can be found out: what the caller may use, why there is no token, what the
    /// socket's mode is.
    async fn told(&self, agent: Option<&Agent>, error: Error, ask: Ask<'_>) -> Stop {
        let list = match (&error, agent) {
            (
                Error::NotAllowed { wall: Wall::Agent, .. }
                | Error::UnknownProfile { .. }
                | Error::Unavailable { reason: Reason::Deadline, .. },
                Some(agent),
            ) => Some(agent.clone().with_deadline(EXPLANATION_DEADLINE).list().await),
            _ => None,
        };
        let error = match (error, &list) {
            // Not even this one is answered: the agent has stopped, whatever holds its socket.
            (Error::Unavailable { reason: Reason::Deadline, .. }, Some(Err(_))) => silent(agent),
            (Error::Unavailable { reason: Reason::Deadline, retry_after, text }, Some(Ok(tokens))) => {
                Error::Unavailable { reason: reason_of(tokens, ask), retry_after, text }
            }
            (error, _) => error,
        };
        let usable: Vec<String> = match &list {
            Some(Ok(tokens)) => tokens.iter().map(|token| crate::client::printable(&token.name)).collect(),
            _ => Vec::new(),
        };
        let door = match &error {
            Error::NotAllowed { wall: Wall::Socket(path), .. } => Door::of(path),
            _ => None,
        };
        Stop::Trouble(Trouble::of(&error, &Around { ask, caller: &self.caller(), door, usable: &usable }))
    }
}

fn silent(agent: Option<&Agent>) -> Error {
    Error::NotRunning {
        sockets: agent.map(|agent| agent.socket().to_owned()).into_iter().collect(),
        source: std::io::ErrorKind::TimedOut.into(),
    }
}

/// Why the profile that was asked for has no token, by its state.
fn reason_of(tokens: &[pb::TokenStatus], ask: Ask<'_>) -> Reason {
    let status = match (ask, tokens) {
        (Ask::Token(Some(name)), tokens) => tokens.iter().find(|token| token.name == name),
        (Ask::Token(None), [only]) => Some(only),
        _ => None,
    };
    match status.map(|status| (status.state(), status.last_failure())) {
        Some((_, pb::FailureKind::ProviderUnreachable)) => Reason::ProviderUnreachable,
        Some((_, pb::FailureKind::ProviderError)) => Reason::ProviderError,
        Some((_, pb::FailureKind::ProviderRefused)) => Reason::ProviderRefused,
        Some((_, pb::FailureKind::SecretUnreadable)) => Reason::SecretUnreadable,
        Some((pb::TokenState::Pending, _)) => Reason::TokenPending,
        _ => Reason::Deadline,
    }
}
