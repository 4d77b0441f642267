//! The verbs that ask one question and print the answer: `list`, `status`, `refresh`, `reload`, `report-rejected`,
//! `metrics`.

use std::time::Duration;

use super::{
    Session,
    args::{Printing, RefreshArgs, ReportArgs},
    json,
    output::{self, Stop},
    table,
    token::DEADLINE,
    trouble::{Ask, Trouble},
};
use crate::{
    client::{Agent, Error, printable},
    clock::{Clock as _, SystemClock},
    exit::Exit,
    pb,
    token::Generation,
};

/// For what waits on the provider: an exchange of 10 s with each of two secrets.
const SETTLED: Duration = Duration::from_secs(30);

/// `list`.
pub(super) async fn list(session: &Session, printing: Printing) -> Result<(), Stop> {
    let tokens = ask(session, DEADLINE, Ask::Token(None), async |agent| agent.list().await).await?;
    if printing.json {
        return output::data(&json::line(&json::List::new(&tokens)));
    }
    if tokens.is_empty() {
        output::message(&format!(
            "bloom-agent-cli: no profile is yours\n  you are {}\n  ask the operator for an `allow` line\n",
            session.caller()
        ));
        return Ok(());
    }
    output::data(&table::profiles(&tokens, SystemClock.now().wall))
}

/// `status`.
pub(super) async fn status(session: &Session, printing: Printing) -> Result<(), Stop> {
    let status = ask(session, DEADLINE, Ask::Admin, async |agent| agent.status().await).await?;
    output::data(&if printing.json {
        json::line(&json::Status::new(&status))
    } else {
        table::status(&status, SystemClock.now().wall)
    })
}

/// `refresh`.
pub(super) async fn refresh(session: &Session, args: &RefreshArgs) -> Result<(), Stop> {
    let name = args.name.as_str();
    let token = ask(session, SETTLED, Ask::Refresh(name), async |agent| agent.refresh(name).await).await?;
    output::data(&if args.printing.json {
        json::line(&json::Refreshed::new(&token))
    } else {
        table::profile(&token, SystemClock.now().wall)
    })?;
    match token.last_failure() {
        pb::FailureKind::Unspecified => Ok(()),
        kind => Err(Stop::Trouble(Trouble::new(
            Exit::TryLater,
            format!("the refresh of \"{name}\" brought no new token"),
            table::failure(kind),
            "bloom-agent-cli status says what the provider answered",
        ))),
    }
}

/// `reload`.
pub(super) async fn reload(session: &Session, printing: Printing) -> Result<(), Stop> {
    let outcome = ask(session, SETTLED, Ask::Admin, async |agent| agent.reload().await).await?;
    if printing.json {
        return output::data(&json::line(&json::Reloaded::new(&outcome)));
    }
    for warning in &outcome.warnings {
        output::message(&format!("bloom-agent-cli: warning: {}\n", printable(warning)));
    }
    let mut lines = vec!["reloaded".to_owned()];
    for (what, names) in
        [("added", &outcome.added), ("replaced", &outcome.replaced), ("removed", &outcome.removed)]
    {
        if !names.is_empty() {
            lines.push(format!("{what}: {}", printable(&names.join(", "))));
        }
    }
    output::data(&lines.join("\n"))
}

/// `report-rejected`.
pub(super) async fn report_rejected(session: &Session, args: &ReportArgs) -> Result<(), Stop> {
    let name = args.name.as_str();
    let report = async |agent: &Agent| {
        let generation = match args.generation {
            Some(generation) => generation,
            // Generation 0 is no token's: of a profile that is not listed the agent says why, and sends nothing.
            None => agent
                .list()
                .await?
                .iter()
                .find(|token| token.name == name)
                .map_or(0, |token| token.generation),
        };
        agent.report_rejected(Some(name), Generation::from_u64(generation)).await
    };
    let outcome = ask(session, SETTLED, Ask::Token(Some(name)), report).await?;
    let current = outcome.generation;
    let newest = match (current, outcome.is_new) {
        (0, _) => format!("{name}: no token"),
        (_, true) => format!("{name}: {current} (new)"),
        (_, false) => format!("{name}: {current} (unchanged)"),
    };
    output::data(&if args.printing.json { json::line(&json::Reported::new(outcome)) } else { newest })?;
    if outcome.is_new && current != 0 {
        return Ok(());
    }
    Err(Stop::Trouble(Trouble::new(
        Exit::TryLater,
        format!("there is no newer token for \"{name}\" yet"),
        "the refresh has failed or is not over",
        "try again later; `bloom-agent-cli list` shows how it goes",
    )))
}

/// `metrics`.
pub(super) async fn metrics(session: &Session) -> Result<(), Stop> {
    let text = ask(session, DEADLINE, Ask::Admin, async |agent| agent.metrics().await).await?;
    // Lines stay lines; anything else that a terminal would obey has no place in OpenMetrics.
    let lines: Vec<String> = text.lines().map(unsteered).collect();
    output::data(&lines.join("\n"))
}

fn unsteered(line: &str) -> String {
    line.chars().map(|char| if char.is_control() && char != '\t' { '\u{fffd}' } else { char }).collect()
}

async fn ask<T>(
    session: &Session,
    deadline: Duration,
    ask: Ask<'_>,
    question: impl AsyncFnOnce(&Agent) -> Result<T, Error>,
) -> Result<T, Stop> {
    let agent = match session.connect().await {
        Ok(agent) => agent.with_deadline(deadline),
        Err(error) => return Err(session.told(None, error, ask).await),
    };
    match question(&agent).await {
        Ok(answer) => Ok(answer),
        Err(error) => Err(session.told(Some(&agent), error, ask).await),
    }
}
