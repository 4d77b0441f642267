//! `token` and `exec`: one token, now or within a while.

use std::{ffi::OsString, io, os::unix::process::CommandExt as _, process::Command, time::Duration};

use super::{
    Session,
    args::{ExecArgs, Format, TokenArgs},
    json,
    output::{self, Stop},
    table,
    trouble::Ask,
};
use crate::{
    client::{Agent, Error, Token},
    clock::{Clock as _, SystemClock},
    exit::Exit,
    token::ProfileName,
};

/// Without `--wait`.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
const EXEC_DEADLINE: Duration = Duration::from_secs(30);
/// The longest that the agent itself waits.
const LONGEST_CALL: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Prints the token.
pub(super) async fn token(session: &Session, args: &TokenArgs) -> Result<(), Stop> {
    let name = args.name.as_ref().map(ProfileName::as_str);
    let wish = Wish { name, min_validity: args.min_validity };
    let got = match args.wait {
        None => match session.connect().await {
            Ok(agent) => wish.ask(&agent, DEADLINE).await.map_err(|error| (Some(agent), error)),
            Err(error) => Err((None, error)),
        },
        Some(patience) => until(session, &wish, None, patience).await,
    };
    let token = match got {
        Ok(token) => token,
        Err((agent, error)) => return Err(session.told(agent.as_ref(), error, Ask::Token(name)).await),
    };
    output::data(&formatted(&token, args.format))?;
    note_short_life(&token, args.min_validity);
    Ok(())
}

/// Becomes the command; returns only if that fails.
pub(super) async fn exec(session: &Session, args: ExecArgs) -> Result<(), Stop> {
    let name = args.name.as_ref().map(ProfileName::as_str);
    let wish = Wish { name, min_validity: None };
    // An agent that is not there is told at once; one that restarts meanwhile is waited for.
    let agent = match session.connect().await {
        Ok(agent) => agent,
        Err(error) => return Err(session.told(None, error, Ask::Token(name)).await),
    };
    let token = match until(session, &wish, Some(agent), EXEC_DEADLINE).await {
        Ok(token) => token,
        Err((agent, error)) => return Err(session.told(agent.as_ref(), error, Ask::Token(name)).await),
    };
    let mut command = args.command.into_iter();
    let program = command.next().unwrap_or_default();
    let error = Command::new(&program).args(command).env("BLOOM_TOKEN", token.access_token()).exec();
    Err(cannot_run(&program, &error))
}

/// The line that a format makes of a token, without its newline.
pub(super) fn formatted(token: &Token, format: Format) -> String {
    match format {
        Format::Raw => token.access_token().to_owned(),
        Format::Header => format!("Authorization: {}", token.authorization()),
        Format::Json => json::line(&json::Token::new(token)),
        Format::Env => format!("BLOOM_TOKEN={}", token.access_token()),
    }
}

/// env(1)'s codes, outside of our table because they are the command's.
pub(super) fn cannot_run(program: &OsString, error: &io::Error) -> Stop {
    let what = format!("bloom-agent-cli: cannot run {}\n", program.display());
    output::message(&format!("{what}  {error}\n  correct the command: a path, or a name that PATH has\n"));
    if error.kind() == io::ErrorKind::NotFound { Stop::Command(127) } else { Stop::Command(126) }
}

struct Wish<'a> {
    name: Option<&'a str>,
    min_validity: Option<Duration>,
}

impl Wish<'_> {
    async fn ask(&self, agent: &Agent, deadline: Duration) -> Result<Token, Error> {
        let agent = agent.clone().with_deadline(deadline);
        match self.min_validity {
            None => agent.token(self.name).await,
            Some(validity) => agent.token_valid_for(self.name, validity).await,
        }
    }
}

/// Asks until `patience` is over, as long as the answer is one of those that pass (69 and 75).
async fn until(
    session: &Session,
    wish: &Wish<'_>,
    mut agent: Option<Agent>,
    patience: Duration,
) -> Result<Token, (Option<Agent>, Error)> {
    let end = tokio::time::Instant::now() + patience;
    let mut pause = FIRST_PAUSE;
    loop {
        let connected = match agent.take() {
            Some(agent) => Ok(agent),
            None => session.connect().await,
        };
        let error = match connected {
            Ok(connected) => {
                let left = end
                    .saturating_duration_since(tokio::time::Instant::now())
                    .clamp(FIRST_PAUSE, LONGEST_CALL);
                match wish.ask(&connected, left).await {
                    Ok(token) => return Ok(token),
                    Err(error) => {
                        agent = Some(connected);
                        error
                    }
                }
            }
            Err(error) => error,
        };
        let left = end.saturating_duration_since(tokio::time::Instant::now());
        if left.is_zero() || !matches!(Exit::from(&error), Exit::Unreachable | Exit::TryLater) {
            return Err((agent, error));
        }
        // The wait that the agent proposes is the provider's; asking the agent again costs nothing, and somebody may
        // mend the cause meanwhile. A limit is the agent's own.
        let asked_for = if let Error::Limit { retry_after, .. } = &error { *retry_after } else { None };
        tokio::time::sleep(asked_for.unwrap_or(pause).min(left)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The token is valid, so it is printed; that it is valid for less than was asked for is worth a word.
fn note_short_life(token: &Token, wish: Option<Duration>) {
    let Some((wish, expires)) = wish.zip(token.as_message().expires_at) else { return };
    let left = table::wall_time(expires).since(SystemClock.now().wall);
    if left < wish {
        let (left, wish) = (table::span(left), table::span(wish));
        output::message(&format!(
            "bloom-agent-cli: note: this token is valid for {left}, which is less than {wish}\n"
        ));
    }
}
