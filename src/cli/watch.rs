//! `watch`: a line, or a run of a command, for each rotation.

use std::{
    ffi::OsString,
    future::Future,
    io,
    pin::Pin,
    process::{ExitStatus, Stdio},
};

use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{
    Session,
    args::{Format, WatchArgs},
    json,
    output::{self, Stop},
    table,
    token::{cannot_run, formatted},
    trouble::Ask,
};
use crate::{
    client::{Event, Token, Watch},
    token::ProfileName,
};

/// Runs until the reader of our output goes away, or only a person can help.
pub(super) async fn watch(session: &Session, args: &WatchArgs) -> Result<(), Stop> {
    let name = args.name.as_ref().map(ProfileName::as_str);
    let agent = match session.connect().await {
        Ok(agent) => agent,
        Err(error) => return Err(session.told(None, error, Ask::Token(name)).await),
    };
    let watch = Rotations { session, name, watch: agent.watch(name), told: Told::No };
    match args.exec.split_first() {
        None => print_each(watch, args).await,
        Some((program, rest)) => {
            let command = Each { program, rest, format: args.format.unwrap_or_default() };
            run_each(watch, &command).await
        }
    }
}

async fn print_each(mut watch: Rotations<'_>, args: &WatchArgs) -> Result<(), Stop> {
    let mut gone = Box::pin(output::reader_gone());
    loop {
        let token = tokio::select! {
            token = watch.next() => token?,
            () = &mut gone => return Err(Stop::ReaderGone),
        };
        output::data(&match args.format {
            Some(format) => formatted(&token, format),
            None if args.json => json::line(&json::Rotation::new(&token)),
            None => format!("{} {} {}", token.name(), token.generation(), expiry(&token)),
        })?;
    }
}

/// A command that is run with each token.
struct Each<'a> {
    program: &'a OsString,
    rest: &'a [OsString],
    format: Format,
}

type Run = Pin<Box<dyn Future<Output = io::Result<ExitStatus>>>>;

/// One run at a time; of the tokens that come meanwhile only the newest is kept.
async fn run_each(mut watch: Rotations<'_>, command: &Each<'_>) -> Result<(), Stop> {
    let mut running: Option<Run> = None;
    let mut newest: Option<Token> = None;
    let mut ran_before = false;
    loop {
        if running.is_none()
            && let Some(token) = newest.take()
        {
            match command.start(&token) {
                Ok(run) => {
                    running = Some(run);
                    ran_before = true;
                }
                // A command that never ran is misspelled; one that did may be in the middle of an upgrade.
                Err(error) if !ran_before => return Err(cannot_run(command.program, &error)),
                Err(error) => command.complain(&error.to_string()),
            }
        }
        tokio::select! {
            // A token that is there already is newer than the one kept.
            biased;
            token = watch.next() => newest = Some(token?),
            ended = ended(&mut running), if running.is_some() => {
                running = None;
                match ended {
                    Ok(status) if status.success() => {}
                    Ok(status) => command.complain(&status.to_string()),
                    Err(error) => command.complain(&error.to_string()),
                }
            }
        }
    }
}

impl Each<'_> {
    fn start(&self, token: &Token) -> io::Result<Run> {
        let mut child = Command::new(self.program)
            .args(self.rest)
            .env("BLOOM_TOKEN_NAME", token.name())
            .env("BLOOM_TOKEN_GENERATION", token.generation().to_string())
            .env("BLOOM_TOKEN_EXPIRES_AT", expiry(token))
            .stdin(Stdio::piped())
            .spawn()?;
        let line = format!("{}\n", formatted(token, self.format));
        Ok(Box::pin(async move {
            if let Some(mut stdin) = child.stdin.take() {
                // A command that does not read it is no failure.
                match stdin.write_all(line.as_bytes()).await {
                    Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                    _ => drop(stdin),
                }
            }
            child.wait().await
        }))
    }

    fn complain(&self, why: &str) {
        let program = self.program.display();
        output::message(&format!("bloom-agent-cli: {program}: {why}; it runs again at the next rotation\n"));
    }
}

async fn ended(running: &mut Option<Run>) -> io::Result<ExitStatus> {
    match running {
        Some(run) => run.await,
        None => std::future::pending().await,
    }
}

/// RFC 3339, UTC.
fn expiry(token: &Token) -> String {
    token.as_message().expires_at.map_or_else(String::new, |time| table::wall_time(time).to_string())
}

/// The tokens of a watch, with a word to the person when the agent goes away.
struct Rotations<'a> {
    session: &'a Session,
    name: Option<&'a str>,
    watch: Watch,
    told: Told,
}

/// Whether the person knows that the agent is away: once is enough.
#[derive(PartialEq, Eq)]
enum Told {
    No,
    Yes,
}

impl Rotations<'_> {
    /// Cancel safe, but for a final error, after which nobody comes back.
    async fn next(&mut self) -> Result<Token, Stop> {
        loop {
            match self.watch.next_event().await {
                Some(Ok(Event::Token(token))) => {
                    self.told = Told::No;
                    return Ok(token);
                }
                Some(Ok(Event::Lost { error, .. })) => {
                    if self.told == Told::No {
                        output::message(&format!("bloom-agent-cli: {error}; trying again\n"));
                        self.told = Told::Yes;
                    }
                }
                Some(Err(error)) => return Err(self.session.told(None, error, Ask::Token(self.name)).await),
                // The stream's end is after its error, and that error ended us.
                None => return Err(Stop::ReaderGone),
            }
        }
    }
}
