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
    hardening, names,
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

/// The user of the packaged agent: root checks for it, unless told otherwise.
const PACKAGED_USER: &str = "bloom-agent";

/// Becomes the user that the agent runs as, since files are judged by who reads them, and says which if that is another.
/// `user` is whom the caller names; root means the packaged user, where the host has it.
pub fn act_for(user: Option<&str>) -> Result<Option<String>, UserFault> {
    let own = geteuid();
    let name = match user {
        Some(name) => name,
        None if own.is_root() => PACKAGED_USER,
        None => return Ok(None),
    };
    let fault = |why, remedy| UserFault { user: name.to_owned(), why, remedy };
    let found = match names::user(name) {
        Ok(Some(found)) => found,
        // An agent that somebody started by hand, as root.
        Ok(None) if user.is_none() => return Ok(None),
        Ok(None) => {
            return Err(fault("this host knows no such user", "name the user that the agent runs as"));
        }
        Err(errno) => {
            return Err(fault(errno.desc(), "try it again when the host's directory service answers"));
        }
    };
    if found.uid == own {
        return Ok(None);
    }
    hardening::become_user(&found)
        .map_err(|errno| fault(errno.desc(), "run it as root, or as that user and without --user"))?;
    Ok(Some(found.name))
}

/// A user that the check cannot be done for.
#[derive(Debug, thiserror::Error)]
#[error("cannot check as the user {user}\n{why}\n{remedy}")]
pub struct UserFault {
    user: String,
    why: &'static str,
    remedy: &'static str,
}

/// Why a check could not be done.
#[derive(Debug, thiserror::Error)]
pub enum CheckFault {
    /// Nothing to print to, or no event loop.
    #[error(transparent)]
    Run(#[from] RunFault),
    /// The output cannot be written, or nobody reads it.
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
    // A look-up that hangs has been told of; it is not waited for.
    runtime.shutdown_background();
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn checked(files: &[(&str, &str)]) -> (Checked, String, String) {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("config.d")).unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let path = directory.path().join("config.toml");
        let (mut out, mut faults) = (Vec::new(), Vec::new());
        let workshop = Arc::new(Workshop::for_check(None));
        let checked = check(&path, &Connect::No, &workshop, &mut out, &mut faults).unwrap();
        let here = format!("{}/", directory.path().display());
        let text = |bytes| String::from_utf8(bytes).unwrap().replace(&here, "");
        (checked, text(out), text(faults))
    }

    #[track_caller]
    fn assert_starts(text: &str, starts: &[&str]) {
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), starts.len(), "{text}");
        for (line, start) in lines.iter().zip(starts) {
            assert!(line.starts_with(start), "expected {start}\nfound {line}");
        }
    }

    const PARTNER: &str = "provider = 'oauth2'\ntoken_url = 'https://id.example/t'\nclient_id = 'c'\n";

    #[test]
    fn one_check_tells_what_is_wrong_with_the_text_and_what_only_the_host_knows() {
        let main = "log.level = 'loud'\n[agent]\nadmin = ['user:no-such-user-9f2']\nsocket_group = \
                    'no-such-group-9f2'\nca_file = '/nowhere/ca.pem'\n";
        let one = format!("[tokens.a]\n{PARTNER}client_secret.file = '/nowhere/secret'\n");
        // No profile can be made of it, and still its rules and its secrets are judged.
        let other = "[tokens.b]\nprovider = 'oauth'\nclient_id = 'c'\nallow = ['user:no-such-user-9f2']\n\
                     client_secret.file = '/nowhere/other'\nclient_secret_next.credential = 'next'\n";
        let files = [("config.toml", main), ("config.d/1.toml", &one), ("config.d/2.toml", other)];
        let (checked, out, faults) = checked(&files);
        assert_eq!((checked, out.as_str()), (Checked::Faults, ""));
        assert_starts(
            &faults,
            &[
                "config.toml:1: log.level: is none of the words",
                "config.toml:3: agent.admin[0]: names a user that this host does not know",
                "config.toml:4: agent.socket_group: this host knows no such group",
                "config.toml:5: agent.ca_file: cannot use",
                "config.d/1.toml:5: tokens.a.client_secret: cannot use",
                "config.d/2.toml:2: tokens.b.provider: is none of the words",
                "config.d/2.toml:4: tokens.b.allow[0]: names a user that this host does not know",
                "config.d/2.toml:5: tokens.b.client_secret: cannot use",
                "8 faults; the agent would not take this config",
                "note: config.d/2.toml:6: tokens.b.client_secret_next: is a credential",
            ],
        );
    }

    #[test]
    fn without_the_main_file_the_others_are_judged_and_nothing_is_said_of_its_keys() {
        let drop_in =
            format!("[tokens.a]\n{PARTNER}allow = ['user:no-such-user-9f2']\nclient_secret.file = 's'\n");
        let (checked, _, faults) = checked(&[("config.d/1.toml", &drop_in)]);
        assert_eq!(checked, Checked::Faults);
        assert_starts(
            &faults,
            &[
                "config.toml: cannot use the config",
                "config.d/1.toml:5: tokens.a.allow[0]: names a user that this host does not know",
                "config.d/1.toml:6: tokens.a.client_secret.file: is not an absolute path",
                "3 faults; the agent would not take this config",
            ],
        );
    }

    #[test]
    fn an_output_that_cannot_be_written_is_told_in_three_lines() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        fs::write(&path, "agent.socket_group = 'root'\n").unwrap();
        let workshop = Arc::new(Workshop::for_check(None));
        let fault = check(&path, &Connect::No, &workshop, &mut Full, &mut Vec::new()).unwrap_err();
        let told = fault.to_string();
        assert_starts(&told, &["the output cannot be written", "", "look at what"]);
    }
}
