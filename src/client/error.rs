//! What went wrong, by what the caller can do about it; read from the status, its `google.rpc.ErrorInfo` and its
//! `google.rpc.RetryInfo`. The agent's own words are made printable here, once.

use std::{
    error::Error as StdError,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt as _;

const DOMAIN: &str = "bloom.agent";
/// Where the agent lists profiles for programs: its message lists them for people.
const PROFILES: &str = "profiles";
const MAX_LINES: usize = 1000;
const MAX_LINE: usize = 1024;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No agent answers: start it, or correct the path. Also when it went away in mid-call.
    #[error("no agent answers at {}: {source}", list(sockets))]
    NotRunning {
        /// Where it was looked for.
        sockets: Vec<PathBuf>,
        /// What the system said.
        source: io::Error,
    },
    /// This process may not have that: its operator has to decide.
    #[error("not allowed by {wall}: {text}")]
    NotAllowed {
        /// What stands in the way.
        wall: Wall,
        /// Its words.
        text: String,
    },
    /// No such profile: correct the name.
    #[error("{text}")]
    UnknownProfile {
        /// Those that exist, if the agent said.
        profiles: Vec<String>,
        /// The agent's words.
        text: String,
    },
    /// More than one profile is allowed: name one.
    #[error("{text}")]
    NameRequired {
        /// Those that this caller may use, if the agent said.
        profiles: Vec<String>,
        /// The agent's words.
        text: String,
    },
    /// No token right now: wait, or ask again later.
    #[error("no token right now: {text}")]
    Unavailable {
        /// Why.
        reason: Reason,
        /// When asking again makes sense.
        retry_after: Option<Duration>,
        /// The agent's words.
        text: String,
    },
    /// Too many calls, watches or reports: slow down.
    #[error("over a limit of the agent: {text}")]
    Limit {
        /// When asking again makes sense.
        retry_after: Option<Duration>,
        /// The agent's words.
        text: String,
    },
    /// The agent refuses what was asked, whoever asks.
    #[error("the agent refuses the request: {}", lines.join("; "))]
    InvalidRequest {
        /// The agent's words.
        lines: Vec<String>,
    },
    /// The configuration cannot be taken over; the agent keeps the one that it has.
    #[error("the configuration has faults: {}", faults.join("; "))]
    ConfigFaults {
        /// One line for each.
        faults: Vec<String>,
    },
    /// The agent failed.
    #[error("the agent failed: {text}")]
    Internal {
        /// Its words.
        text: String,
    },
    /// The answer makes no sense: another program listens there, or the versions do not fit.
    #[error("the agent's answer makes no sense: {0}")]
    BadAnswer(&'static str),
}

/// What keeps a caller out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wall {
    /// The socket's mode, owner and group, or those of a directory above it.
    Socket(PathBuf),
    /// The agent's rules.
    Agent,
}

impl std::fmt::Display for Wall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "the mode of {}", path.display()),
            Self::Agent => f.write_str("the agent's rules"),
        }
    }
}

/// Why there is no token right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The first one is being fetched.
    TokenPending,
    /// Network, TLS or time-out between agent and provider.
    ProviderUnreachable,
    /// A passing fault of the provider.
    ProviderError,
    /// The provider refuses the client: the operator's work.
    ProviderRefused,
    /// The agent cannot read the secret: the operator's work.
    SecretUnreadable,
    /// The agent cannot find out which systemd unit this process is in.
    UnitUnknown,
    /// The agent restarts.
    ShuttingDown,
    /// No answer before the deadline.
    Deadline,
    /// The agent did not say, or says it in words that are newer than this library.
    Unknown,
}

impl Error {
    /// Whether the same call may succeed later without anybody's work on the caller's side.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::NotRunning { .. }
            | Self::Unavailable { .. }
            | Self::Limit { .. }
            | Self::Internal { .. } => true,
            Self::NotAllowed { .. }
            | Self::UnknownProfile { .. }
            | Self::NameRequired { .. }
            | Self::InvalidRequest { .. }
            | Self::ConfigFaults { .. }
            | Self::BadAnswer(_) => false,
        }
    }

    /// How long the agent asks to wait, if it does.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } | Self::Limit { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    pub(super) fn deadline() -> Self {
        Self::Unavailable {
            reason: Reason::Deadline,
            retry_after: None,
            text: "no answer before the deadline".to_owned(),
        }
    }

    pub(super) fn from_connect(socket: &Path, error: &(dyn StdError + 'static)) -> Self {
        let source = find::<io::Error>(error).map_or_else(|| broken(error), copy);
        if source.kind() == io::ErrorKind::PermissionDenied {
            return Self::NotAllowed { wall: Wall::Socket(socket.to_owned()), text: source.to_string() };
        }
        Self::NotRunning { sockets: vec![socket.to_owned()], source }
    }

    pub(super) fn from_status(socket: &Path, status: &Status) -> Self {
        // Only what happened on this side has a source; a status of the agent's comes as two headers.
        if let Some(source) = status.source() {
            if find::<TimeoutExpired>(source).is_some() {
                return Self::deadline();
            }
            return Self::from_connect(socket, source);
        }
        let text = printable(status.message());
        let (info, retry) = (status.get_details_error_info(), status.get_details_retry_info());
        let info = info.filter(|info| info.domain == DOMAIN);
        let retry_after = retry.and_then(|retry| retry.retry_delay);
        let reason = info.as_ref().map_or("", |info| info.reason.as_str());
        let profiles = || {
            let listed = info.as_ref().and_then(|info| info.metadata.get(PROFILES));
            let names = listed.map_or("", String::as_str).split(',').map(str::trim);
            names.filter(|name| !name.is_empty()).map(printable).collect()
        };
        match status.code() {
            Code::PermissionDenied => Self::NotAllowed { wall: Wall::Agent, text },
            Code::NotFound => Self::UnknownProfile { profiles: profiles(), text },
            Code::InvalidArgument if reason == "NAME_REQUIRED" => {
                Self::NameRequired { profiles: profiles(), text }
            }
            Code::InvalidArgument => Self::InvalidRequest { lines: printable_lines(status.message()) },
            Code::ResourceExhausted => Self::Limit { retry_after, text },
            Code::DeadlineExceeded => Self::deadline(),
            Code::Unavailable => {
                let reason = match reason {
                    "TOKEN_PENDING" => Reason::TokenPending,
                    "UNIT_UNKNOWN" => Reason::UnitUnknown,
                    "PROVIDER_UNREACHABLE" => Reason::ProviderUnreachable,
                    "PROVIDER_ERROR" => Reason::ProviderError,
                    "PROVIDER_REFUSED" => Reason::ProviderRefused,
                    "SECRET_UNREADABLE" => Reason::SecretUnreadable,
                    "SHUTTING_DOWN" => Reason::ShuttingDown,
                    _ => Reason::Unknown,
                };
                Self::Unavailable { reason, retry_after, text }
            }
            Code::Unimplemented => Self::BadAnswer("it does not know this call (an older version?)"),
            code => Self::Internal { text: if text.is_empty() { code.to_string() } else { text } },
        }
    }
}

/// `text` in visible ASCII and spaces, on one line and cut: what anything that came over a socket must be before it
/// reaches a terminal or a log.
pub fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(MAX_LINE));
    for char in text.chars() {
        if line.len() >= MAX_LINE {
            line.push_str("...");
            break;
        }
        match char {
            ' '..='~' => line.push(char),
            other => line.extend(other.escape_default()),
        }
    }
    line
}

fn printable_lines(text: &str) -> Vec<String> {
    text.lines().filter(|line| !line.trim().is_empty()).take(MAX_LINES).map(printable).collect()
}

fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// An `io::Error` has no Clone.
fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), printable(&error.to_string())),
    }
}

/// A connection that broke without a word from the system: the innermost error says the most.
fn broken(error: &(dyn StdError + 'static)) -> io::Error {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    io::Error::new(io::ErrorKind::ConnectionAborted, printable(&innermost.to_string()))
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    fn read(status: &Status) -> Error {
        Error::from_status(Path::new("/a"), status)
    }

    fn status(code: Code, reason: &str, metadata: &[(&str, &str)]) -> Status {
        let metadata: std::collections::HashMap<String, String> =
            metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
        details.set_retry_info(Some(Duration::from_secs(12)));
        Status::with_error_details(code, "words", details)
    }

    #[test]
    fn every_reason_of_the_api_has_its_own_error() {
        for (code, reason, expected) in [
            (Code::PermissionDenied, "NOT_ALLOWED", "NotAllowed { wall: Agent, text: \"words\" }"),
            (
                Code::NotFound,
                "UNKNOWN_PROFILE",
                "UnknownProfile { profiles: [\"a\", \"b\"], text: \"words\" }",
            ),
            (
                Code::InvalidArgument,
                "NAME_REQUIRED",
                "NameRequired { profiles: [\"a\", \"b\"], text: \"words\" }",
            ),
            (Code::InvalidArgument, "", "InvalidRequest { lines: [\"words\"] }"),
            (Code::ResourceExhausted, "LIMIT", "Limit { retry_after: Some(12s), text: \"words\" }"),
            (Code::Internal, "", "Internal { text: \"words\" }"),
            (Code::Unimplemented, "", "BadAnswer(\"it does not know this call (an older version?)\")"),
        ] {
            assert_eq!(format!("{:?}", read(&status(code, reason, &[(PROFILES, "a, b")]))), expected);
        }
        for (word, expected) in [
            ("TOKEN_PENDING", Reason::TokenPending),
            ("UNIT_UNKNOWN", Reason::UnitUnknown),
            ("PROVIDER_UNREACHABLE", Reason::ProviderUnreachable),
            ("PROVIDER_ERROR", Reason::ProviderError),
            ("PROVIDER_REFUSED", Reason::ProviderRefused),
            ("SECRET_UNREADABLE", Reason::SecretUnreadable),
            ("SHUTTING_DOWN", Reason::ShuttingDown),
            ("NEWER_WORD", Reason::Unknown),
        ] {
            let error = read(&status(Code::Unavailable, word, &[]));
            let Error::Unavailable { reason, retry_after, .. } = error else { panic!("{word}: {error}") };
            assert_eq!((reason, retry_after), (expected, Some(Duration::from_secs(12))), "{word}");
        }
    }

    #[test]
    fn another_domain_s_reason_is_not_ours() {
        let details =
            ErrorDetails::with_error_info("TOKEN_PENDING", "example.com", std::collections::HashMap::new());
        let error = read(&Status::with_error_details(Code::Unavailable, "words", details));
        assert!(
            matches!(error, Error::Unavailable { reason: Reason::Unknown, retry_after: None, .. }),
            "{error}"
        );
    }

    #[test]
    fn the_agent_s_words_cannot_steer_a_terminal() {
        let error = read(&Status::permission_denied("no\n\u{1b}[2Jgo\u{2028}é"));
        assert_eq!(error.to_string(), "not allowed by the agent's rules: no\\n\\u{1b}[2Jgo\\u{2028}\\u{e9}");
        let Error::InvalidRequest { lines } = read(&Status::invalid_argument("one\n\ntwo\r\n\u{1b}")) else {
            panic!()
        };
        assert_eq!(lines, ["one", "two", "\\u{1b}"]);
        assert!(printable(&"\u{1b}".repeat(10_000)).len() < MAX_LINE + 16);
    }

    #[test]
    fn a_closed_door_is_told_from_an_empty_house() {
        let connect = |number| Error::from_connect(Path::new("/a"), &io::Error::from_raw_os_error(number));
        assert!(matches!(connect(13), Error::NotAllowed { wall: Wall::Socket(_), .. }));
        assert!(matches!(connect(2), Error::NotRunning { .. }));
        assert!(matches!(connect(111), Error::NotRunning { .. }));
    }
}
