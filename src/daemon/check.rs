//! `bloom-agent check`: the daemon's own reader, and everything that it would only notice later.

use std::{collections::BTreeMap, io::Write, path::Path, sync::Arc};

use nix::unistd::geteuid;

use super::{
    load,
    profile::{Workshop, client, transport},
    run::{RunFault, runtime, socket_group},
};
use crate::{
    config::{Config, DEFAULT_SOCKET_GROUP, Draft, SecretSpec, UnknownNames},
    token::ProfileName,
};

/// How a check ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// No fault.
    Good,
    /// The config has faults; each was printed.
    Faults,
    /// A step on the way to a provider failed; it was printed.
    Unreachable,
}

/// Which providers `--connect` goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connect {
    /// None.
    No,
    /// All profiles'.
    All,
    /// One profile's.
    One(ProfileName),
}

/// Why a check could not be done.
#[derive(Debug, thiserror::Error)]
pub enum CheckFault {
    /// Nothing to print to, or no event loop.
    #[error(transparent)]
    Run(#[from] RunFault),
    /// The output cannot be written, or nobody reads it.
    #[error(
        "cannot write what the check found\nthe system says: {0}\nfree some space, or send the output elsewhere"
    )]
    Output(#[from] std::io::Error),
    /// `--connect NAME` with a name that no profile has.
    #[error(
        "there is no profile {0}\nthe config does not name it\nrun `bloom-agent check` to see what it has"
    )]
    UnknownProfile(ProfileName),
}

/// Checks the config at `path`; what it finds goes to `faults`, what is good to `out`: first every
/// fault, then how many, then the notes.
pub fn check(
    path: &Path,
    connect: &Connect,
    workshop: &Arc<Workshop>,
    out: &mut dyn Write,
    faults: &mut dyn Write,
) -> Result<Checked, CheckFault> {
    let mut draft = load::from_files(path);
    beyond_the_text(&mut draft, workshop);
    let (config, notes) = draft.finish_with_warnings();
    if let Err(problems) = &config {
        writeln!(faults, "{problems}")?;
        let count = problems.as_slice().len();
        let plural = if count == 1 { "" } else { "s" };
        writeln!(faults, "{count} fault{plural}; the agent would not take this config")?;
    }
    for note in notes {
        writeln!(faults, "note: {note}")?;
    }
    let Ok(config) = &config else { return Ok(Checked::Faults) };
    let profiles = config.tokens.len();
    writeln!(out, "{}: good; {profiles} profile{}", path.display(), if profiles == 1 { "" } else { "s" })?;
    out.flush()?;
    match connect {
        Connect::No => Ok(Checked::Good),
        Connect::All => way_to(config, config.tokens.keys(), out, faults),
        Connect::One(name) if !config.tokens.contains_key(name) => {
            Err(CheckFault::UnknownProfile(name.clone()))
        }
        Connect::One(name) => way_to(config, std::iter::once(name), out, faults),
    }
}

/// Adds faults and notes of what the config names: users and groups, trust stores, the socket's group, secrets.
fn beyond_the_text(draft: &mut Draft, workshop: &Workshop) {
    // Nothing runs on what is built here: making it is the check.
    let _parts = load::judge(draft, workshop, geteuid().as_raw(), UnknownNames::AreFaults, &BTreeMap::new());
    let agent = draft.agent_key("socket_group");
    if let Some((agent, Err(RunFault::Group { why, remedy, .. }))) =
        agent.map(|agent| (agent, socket_group(agent)))
    {
        if agent.socket_group.is_some() {
            draft.fault(draft.problem("agent.socket_group", why, remedy));
        } else {
            // Of the default this user may be mistaken: it is that of who binds the socket.
            let wrong = format!("is {DEFAULT_SOCKET_GROUP}, not being set: {why}");
            draft.warn(draft.problem("agent.socket_group", wrong, remedy));
        }
    }
    let mut faults = Vec::new();
    let mut notes = Vec::new();
    for written in draft.secrets() {
        if matches!(written.value, SecretSpec::Credential(_)) && workshop.credentials.is_none() {
            let wrong = "is a credential, which only systemd delivers, so it cannot be read here";
            notes.push(written.problem(wrong, "it is read when the unit starts"));
        } else if let Err(fault) = workshop.source(&written.value).read() {
            faults.push(written.problem(format!("{}: {}", fault.what, fault.why), fault.remedy));
        }
    }
    faults.into_iter().for_each(|fault| draft.fault(fault));
    notes.into_iter().for_each(|note| draft.warn(note));
}

fn way_to<'a>(
    config: &Config,
    names: impl Iterator<Item = &'a ProfileName>,
    out: &mut dyn Write,
    faults: &mut dyn Write,
) -> Result<Checked, CheckFault> {
    let runtime = runtime()?;
    let mut checked = Checked::Good;
    for name in names {
        let Some(profile) = config.tokens.get(name) else { continue };
        let client = match transport(profile).and_then(|transport| client(&transport)) {
            Ok(client) => client,
            Err(problem) => {
                writeln!(faults, "{name}: {}; {}", problem.wrong, problem.right)?;
                checked = Checked::Unreachable;
                continue;
            }
        };
        for step in runtime.block_on(client.probe(&profile.client.endpoint)) {
            match step.outcome {
                Ok(found) => writeln!(out, "{name}: {}: {found}", step.step)?,
                Err(fault) => {
                    writeln!(faults, "{name}: {}: {fault}", step.step)?;
                    checked = Checked::Unreachable;
                }
            }
        }
    }
    Ok(checked)
}
