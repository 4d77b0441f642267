//! `bloom-agent check`: the daemon's own reader, and everything that it would only notice later.

use std::{io::Write, path::Path, sync::Arc};

use nix::unistd::geteuid;

use super::{
    load,
    profile::{Workshop, client, transport},
    run::{RunFault, runtime, socket_group},
};
use crate::{
    config::{Config, DEFAULT_SOCKET_GROUP, SecretSpec},
    names,
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
    /// Nobody reads the output.
    #[error(
        "the output cannot be written\n{0}\nlook at what it is connected to, and whether its disk is full"
    )]
    Output(#[from] std::io::Error),
    /// `--connect NAME` with a name that no profile has.
    #[error(
        "there is no profile {0}\nthe config does not name it\nrun `bloom-agent check` to see what it has"
    )]
    UnknownProfile(ProfileName),
}

/// Checks the config at `path`; what it finds goes to `faults`, what is good to `out`.
pub fn check(
    path: &Path,
    connect: &Connect,
    workshop: &Arc<Workshop>,
    out: &mut dyn Write,
    faults: &mut dyn Write,
) -> Result<Checked, CheckFault> {
    let loaded = match load::from_files(path) {
        Ok(loaded) => loaded,
        Err(found) => return report(&found, faults),
    };
    let config = &loaded.config;
    let (found, notes) = beyond_the_text(config, workshop);
    if !found.is_empty() {
        return report(&found, faults);
    }
    for note in loaded.warnings.iter().chain(&notes) {
        writeln!(faults, "note: {note}")?;
    }
    let profiles = config.tokens.len();
    writeln!(out, "{}: good; {profiles} profile{}", path.display(), if profiles == 1 { "" } else { "s" })?;
    match connect {
        Connect::No => Ok(Checked::Good),
        Connect::All => way_to(config, config.tokens.keys(), out, faults),
        Connect::One(name) if !config.tokens.contains_key(name) => {
            Err(CheckFault::UnknownProfile(name.clone()))
        }
        Connect::One(name) => way_to(config, std::iter::once(name), out, faults),
    }
}

fn report(found: &[String], faults: &mut dyn Write) -> Result<Checked, CheckFault> {
    for fault in found {
        writeln!(faults, "{fault}")?;
    }
    let count = found.len();
    writeln!(
        faults,
        "{count} fault{}; the agent would not take this config",
        if count == 1 { "" } else { "s" }
    )?;
    Ok(Checked::Faults)
}

/// Faults and notes of what the config names: users and groups, trust stores, secrets.
fn beyond_the_text(config: &Config, workshop: &Arc<Workshop>) -> (Vec<String>, Vec<String>) {
    let lookup = names::resolve(&config.names());
    let findings = config.check_names(&lookup, geteuid().as_raw());
    let mut faults: Vec<_> =
        findings.faults.iter().chain(&findings.unknown).map(ToString::to_string).collect();
    let mut notes: Vec<_> = findings.warnings.iter().map(ToString::to_string).collect();
    if let Err(RunFault::Group { why, remedy, .. }) = socket_group(&config.agent) {
        if config.agent.socket_group.is_some() {
            faults.push(config.problem("agent.socket_group", why, remedy).to_string());
        } else {
            // Of the default this user may be mistaken: it is that of who binds the socket.
            let wrong = format!("is {DEFAULT_SOCKET_GROUP}, not being set: {why}");
            notes.push(config.problem("agent.socket_group", wrong, remedy).to_string());
        }
    }
    for (name, profile) in &config.tokens {
        if let Err(problem) = workshop.build(name, profile, None) {
            let path = format!("tokens.{name}.{}", problem.key);
            faults.push(config.problem(&path, problem.wrong, problem.right).to_string());
        }
        let secrets =
            [("client_secret", Some(&profile.secret)), ("client_secret_next", profile.next_secret.as_ref())];
        for (key, spec) in secrets.into_iter().filter_map(|(key, spec)| Some((key, spec?))) {
            let path = format!("tokens.{name}.{key}");
            if matches!(spec, SecretSpec::Credential(_)) && workshop.credentials.is_none() {
                let wrong = "is a credential, which only systemd delivers, so it cannot be read here";
                notes.push(config.problem(&path, wrong, "it is read when the unit starts").to_string());
            } else if let Err(fault) = workshop.source(spec).read() {
                faults.push(
                    config.problem(&path, format!("{}: {}", fault.what, fault.why), fault.remedy).to_string(),
                );
            }
        }
    }
    (faults, notes)
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
    // A look-up that hangs has been told of; it is not waited for.
    runtime.shutdown_background();
    Ok(checked)
}
