//! What a person reads when something went wrong: what, why, and what to do; one line each. Pure.

use std::{fmt, io, path::Path, time::Duration};

use super::caller::{Caller, Door};
use crate::{
    client::{self, Reason, Wall},
    exit::Exit,
};

/// A failure as it is told.
#[derive(Debug)]
pub(super) struct Trouble {
    /// How the program ends.
    pub(super) exit: Exit,
    what: String,
    why: String,
    todo: String,
}

/// What was asked of the agent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ask<'a> {
    /// A token, or something about it, of this profile.
    Token(Option<&'a str>),
    /// An admin's refresh of this profile.
    Refresh(&'a str),
    /// Anything else that only an admin may ask.
    Admin,
}

/// What is known around an error.
#[derive(Debug)]
pub(super) struct Around<'a> {
    /// What was asked.
    pub(super) ask: Ask<'a>,
    /// Who asks.
    pub(super) caller: &'a Caller,
    /// What the socket's mode says, where that was the obstacle.
    pub(super) door: Option<Door>,
    /// The profiles that the caller may use, where that was found out.
    pub(super) usable: &'a [String],
}

impl Trouble {
    /// One that does not come from the agent.
    pub(super) fn new(
        exit: Exit,
        what: impl Into<String>,
        why: impl fmt::Display,
        todo: impl Into<String>,
    ) -> Self {
        Self { exit, what: what.into(), why: why.to_string(), todo: todo.into() }
    }

    /// The agent's answer, or its silence, in words.
    pub(super) fn of(error: &client::Error, around: &Around<'_>) -> Self {
        use client::Error;
        let exit = Exit::from(error);
        let say = |what: String, why: String, todo: String| Self { exit, what, why, todo };
        match error {
            Error::NotRunning { sockets, source } => {
                let places = names(sockets.iter().map(|path| path.display()), " nor ");
                not_running(&places, source)
            }
            Error::NotAllowed { wall: Wall::Socket(path), .. } => around.at_the_door(path),
            Error::NotAllowed { wall: Wall::Agent, .. } => around.refused(),
            Error::NameRequired { profiles, text } => say(
                "more than one profile is yours: name one".to_owned(),
                if profiles.is_empty() {
                    text.clone()
                } else {
                    format!("you may use: {}", names(profiles, ", "))
                },
                format!("such as: bloom-agent-cli token {}", profiles.first().map_or("NAME", String::as_str)),
            ),
            Error::UnknownProfile { profiles, text } => {
                let known = if profiles.is_empty() { around.usable } else { profiles };
                say(
                    format!("the agent has no profile {}", around.ask.quoted()),
                    if known.is_empty() { text.clone() } else { format!("it has: {}", names(known, ", ")) },
                    "correct the name, or add it to the agent's configuration".to_owned(),
                )
            }
            Error::Unavailable { reason, retry_after, text } => {
                let (why, todo) = unavailable(*reason, *retry_after, text, around.ask);
                let what = match around.ask {
                    Ask::Token(Some(name)) | Ask::Refresh(name) => {
                        format!("no token for \"{name}\" right now")
                    }
                    Ask::Token(None) => "no token right now".to_owned(),
                    Ask::Admin => "not right now".to_owned(),
                };
                say(what, why, todo)
            }
            // The agent's text names the limit, so the advice need not guess which it was.
            Error::Limit { retry_after, text } => say(
                "the agent has enough of these calls".to_owned(),
                text.clone(),
                format!("make fewer of them; {}", again(*retry_after)),
            ),
            Error::InvalidRequest { lines } => say(
                "the agent refuses the request".to_owned(),
                lines.join("; "),
                "see `bloom-agent-cli help`; compare the versions of agent and command".to_owned(),
            ),
            Error::ConfigFaults { faults } => say(
                "the new configuration is not taken over: the agent goes on with the old one".to_owned(),
                faults.join("\n  "),
                "mend that and reload again; `bloom-agent check` shows the same".to_owned(),
            ),
            Error::Internal { text } => say(
                "the agent failed".to_owned(),
                text.clone(),
                "its log says more: journalctl -u bloom-agent".to_owned(),
            ),
            other => say(
                "the agent cannot be understood".to_owned(),
                other.to_string(),
                "compare the versions: bloom-agent --version, bloom-agent-cli --version".to_owned(),
            ),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "bloom-agent-cli: {}", self.what)?;
        writeln!(f, "  {}", self.why)?;
        writeln!(f, "  {}", self.todo)
    }
}

impl Ask<'_> {
    fn quoted(self) -> String {
        match self {
            Self::Token(Some(name)) | Self::Refresh(name) => format!("\"{name}\""),
            Self::Token(None) | Self::Admin => "of that name".to_owned(),
        }
    }
}

impl Around<'_> {
    fn at_the_door(&self, path: &Path) -> Trouble {
        let shown = path.display();
        let (mode, todo) = match &self.door {
            Some(door) if self.caller.has_group(door.gid) => (
                format!(" ({door})"),
                "ask the operator: the socket's mode and owner keep its own group out".to_owned(),
            ),
            Some(door) if door.members.iter().any(|member| Some(member.as_str()) == self.caller.name()) => {
                let todo = format!(
                    "you are a member of {} since after you logged in: log in again",
                    door.group_name()
                );
                (format!(" ({door})"), todo)
            }
            Some(door) => {
                let todo = match self.caller.name() {
                    Some(name) => format!(
                        "ask the operator: usermod -aG {} {name}; then log in again",
                        door.group_name()
                    ),
                    None => format!(
                        "ask the operator to put you into the group {}; then log in again",
                        door.group_name()
                    ),
                };
                (format!(" ({door})"), todo)
            }
            None => (
                String::new(),
                "ask the operator: you may not search a directory above the socket".to_owned(),
            ),
        };
        Trouble::new(
            Exit::NotAllowed,
            format!("you may not connect to the agent at {shown}"),
            format!("{} may not write to that socket{mode}", self.caller),
            todo,
        )
    }

    fn refused(&self) -> Trouble {
        let caller = self.caller;
        let rule = caller.rule();
        let then = "in /etc/bloom-agent/config.toml, then reload";
        let (what, why, todo) = match self.ask {
            Ask::Admin | Ask::Refresh(_) => (
                "that is for admins of the agent".to_owned(),
                format!("{caller} is none"),
                match rule {
                    Ok(rule) => {
                        format!("use sudo, or ask the operator for admin = [\"{rule}\"] under [agent] {then}")
                    }
                    Err(advice) => format!("use sudo; {advice}"),
                },
            ),
            Ask::Token(name) => {
                let others = match self.usable {
                    [] => "no rule of any profile admits you".to_owned(),
                    usable => format!("you may use: {}", names(usable, ", ")),
                };
                let table = name.unwrap_or("NAME");
                (
                    match name {
                        Some(name) => {
                            format!("the agent does not give you \"{name}\", or there is no such profile")
                        }
                        None => "the agent gives you no token".to_owned(),
                    },
                    format!("you are {caller}; {others}"),
                    match rule {
                        Ok(rule) => {
                            format!("ask the operator for allow = [\"{rule}\"] under [tokens.{table}] {then}")
                        }
                        Err(advice) => advice.to_owned(),
                    },
                )
            }
        };
        Trouble::new(Exit::NotAllowed, what, why, todo)
    }
}

fn not_running(places: &str, source: &io::Error) -> Trouble {
    const START: &str =
        "start it: systemctl start bloom-agent; or try one without any setup: bloom-agent dev";
    let (what, why, todo) = match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => (
            "the agent is not running",
            format!("there is no socket at {places}"),
            format!("{START}; or say where it is: --socket or BLOOM_AGENT_SOCK"),
        ),
        io::ErrorKind::ConnectionRefused => {
            ("the agent is not running", format!("nobody listens at {places}"), START.to_owned())
        }
        io::ErrorKind::WouldBlock => (
            "the agent does not answer",
            format!("the queue of connections at {places} stays full"),
            "try again later; its log says more: journalctl -u bloom-agent".to_owned(),
        ),
        io::ErrorKind::TimedOut => (
            "the agent does not answer",
            format!("{places}: connected, but no answer in time"),
            "its log says more: journalctl -u bloom-agent; or restart it: systemctl restart bloom-agent"
                .to_owned(),
        ),
        io::ErrorKind::ConnectionAborted => (
            "the connection to the agent broke",
            format!("{places}: {source}"),
            "try again; if it stays so: is that the agent's socket? Are there too many connections of yours?"
                .to_owned(),
        ),
        _ => (
            "the agent is not reachable",
            format!("{places}: {source}"),
            "is that the agent's socket? Say where it is: --socket or BLOOM_AGENT_SOCK".to_owned(),
        ),
    };
    Trouble::new(Exit::Unreachable, what, why, todo)
}

fn unavailable(reason: Reason, retry_after: Option<Duration>, text: &str, ask: Ask<'_>) -> (String, String) {
    const OPERATOR: &str = "tell the operator: bloom-agent-cli status says what the provider answered";
    let wait = match ask {
        Ask::Token(name) => {
            let name = name.map_or(String::new(), |name| format!(" {name}"));
            format!("{}, or wait: bloom-agent-cli token{name} --wait 1m", again(retry_after))
        }
        Ask::Admin | Ask::Refresh(_) => again(retry_after),
    };
    // An admin may read the provider's own words.
    if matches!(ask, Ask::Admin | Ask::Refresh(_)) && !text.is_empty() && reason != Reason::Deadline {
        return (text.to_owned(), wait);
    }
    match reason {
        Reason::TokenPending => ("the first one is being fetched".to_owned(), wait),
        Reason::ProviderUnreachable => ("the agent does not reach the token endpoint".to_owned(), wait),
        Reason::ProviderError => ("the token endpoint has a passing fault".to_owned(), wait),
        Reason::ProviderRefused => ("the provider refuses the client".to_owned(), OPERATOR.to_owned()),
        Reason::SecretUnreadable => {
            ("the agent cannot read the client's secret".to_owned(), OPERATOR.to_owned())
        }
        Reason::ShuttingDown => ("the agent is shutting down".to_owned(), wait),
        Reason::Deadline => ("the agent has not answered in time".to_owned(), wait),
        _ => (text.to_owned(), wait),
    }
}

fn again(retry_after: Option<Duration>) -> String {
    match retry_after {
        // Rounded up: who asks a moment too early asks twice.
        Some(wait) => format!("try again in {} s", wait.as_secs() + u64::from(wait.subsec_nanos() > 0)),
        None => "try again later".to_owned(),
    }
}

fn names<T: fmt::Display>(all: impl IntoIterator<Item = T>, between: &str) -> String {
    all.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(between)
}

#[cfg(test)]
mod tests {
    use super::{super::caller::tests as people, *};
    use crate::client::Error;

    fn told(error: &Error, ask: Ask<'_>, door: Option<Door>, usable: &[&str]) -> String {
        let usable: Vec<String> = usable.iter().map(|&name| name.to_owned()).collect();
        let caller = people::caller(1000, &[1000, 27]);
        Trouble::of(error, &Around { ask, caller: &caller, door, usable: &usable }).to_string()
    }

    fn unavailable(reason: Reason) -> Error {
        Error::Unavailable {
            reason,
            retry_after: Some(Duration::from_millis(11_001)),
            text: "words".to_owned(),
        }
    }

    fn refused(wall: Wall) -> Error {
        Error::NotAllowed { wall, text: "no".to_owned() }
    }

    const BLOOM: Ask<'static> = Ask::Token(Some("bloom"));

    #[test]
    fn who_is_not_allowed_reads_who_he_is_and_what_the_operator_would_add() {
        assert_eq!(
            told(&refused(Wall::Agent), BLOOM, None, &["partner"]),
            "bloom-agent-cli: the agent does not give you \"bloom\", or there is no such profile\n  \
             you are uid 1000 (alice), groups 1000 (alice), 27 (sudo); you may use: partner\n  \
             ask the operator for allow = [\"user:alice\"] under [tokens.bloom] in /etc/bloom-agent/config.toml, then reload\n"
        );
        let admin = told(&refused(Wall::Agent), Ask::Admin, None, &[]);
        assert!(admin.contains("admin = [\"user:alice\"] under [agent]"), "{admin}");
    }

    #[test]
    fn who_is_kept_out_by_the_socket_s_mode_reads_of_its_group() {
        let wall = || Wall::Socket("/run/a.sock".into());
        for (gid, advice) in [
            (27, "ask the operator: the socket's mode"),
            (990, "log in again"),
            (0, "usermod -aG root alice"),
        ] {
            let text = told(&refused(wall()), BLOOM, Some(people::door(gid)), &[]);
            assert!(
                text.contains(advice) && text.contains("/run/a.sock") && text.contains("mode 0660"),
                "{text}"
            );
            assert!(text.contains("uid 1000 (alice)"), "{text}");
        }
        assert!(told(&refused(wall()), BLOOM, None, &[]).contains("a directory above the socket"));
    }

    #[test]
    fn whatever_goes_wrong_is_told_in_three_lines() {
        let text = || "words".to_owned();
        let not_running =
            |kind: io::ErrorKind| Error::NotRunning { sockets: vec!["/a".into()], source: kind.into() };
        for (error, ask, said) in [
            (not_running(io::ErrorKind::NotFound), BLOOM, "systemctl start bloom-agent"),
            (not_running(io::ErrorKind::ConnectionRefused), BLOOM, "nobody listens at /a"),
            (not_running(io::ErrorKind::WouldBlock), BLOOM, "stays full"),
            (not_running(io::ErrorKind::TimedOut), BLOOM, "no answer in time"),
            (not_running(io::ErrorKind::InvalidInput), BLOOM, "BLOOM_AGENT_SOCK"),
            (
                Error::NameRequired { profiles: vec!["a".to_owned(), "b".to_owned()], text: text() },
                BLOOM,
                "a, b",
            ),
            (Error::NameRequired { profiles: vec![], text: text() }, BLOOM, "words"),
            (Error::UnknownProfile { profiles: vec![], text: text() }, BLOOM, "it has: x, y"),
            (
                unavailable(Reason::TokenPending),
                BLOOM,
                "try again in 12 s, or wait: bloom-agent-cli token bloom --wait",
            ),
            (unavailable(Reason::ProviderRefused), BLOOM, "tell the operator"),
            (unavailable(Reason::SecretUnreadable), Ask::Token(None), "secret"),
            (unavailable(Reason::ProviderRefused), Ask::Refresh("bloom"), "words"),
            (unavailable(Reason::Unknown), BLOOM, "words"),
            (Error::Limit { retry_after: None, text: text() }, BLOOM, "slow down"),
            (Error::InvalidRequest { lines: vec![text()] }, BLOOM, "words"),
            (Error::ConfigFaults { faults: vec![text()] }, Ask::Admin, "bloom-agent check"),
            (Error::Internal { text: text() }, BLOOM, "words"),
            (Error::BadAnswer("nonsense"), BLOOM, "nonsense"),
        ] {
            let message = told(&error, ask, None, &["x", "y"]);
            assert_eq!(message.lines().count(), 3, "{message}");
            assert!(message.lines().all(|line| !line.trim().is_empty()), "{message}");
            assert!(message.contains(said), "{said} is not in\n{message}");
        }
    }

    #[test]
    fn each_fault_of_a_configuration_has_its_line() {
        let message = told(
            &Error::ConfigFaults { faults: vec!["one".to_owned(), "two".to_owned()] },
            Ask::Admin,
            None,
            &[],
        );
        assert!(message.contains("\n  one\n  two\n"), "{message}");
    }
}
