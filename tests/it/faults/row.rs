//! A fault, what the server does for it, and what the agent must do: data, and the words for it in `docs/faults.md`.

use std::{future::Future, net::IpAddr, pin::Pin, time::Duration};

use bloom_agent::failure::{FailureKind, Schedule};

use super::{names::Names, script::Move};

/// Where a fault lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Section {
    Network,
    Tls,
    Http,
    Payload,
    Behaviour,
}

impl Section {
    pub(crate) const ALL: [Self; 5] = [Self::Network, Self::Tls, Self::Http, Self::Payload, Self::Behaviour];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Network => "Network",
            Self::Tls => "TLS",
            Self::Http => "HTTP",
            Self::Payload => "The answer's content",
            Self::Behaviour => "How a provider behaves",
        }
    }
}

/// One fault.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// What the server does.
    pub(crate) server: &'static str,
    pub(crate) made: Made,
}

/// How it is made.
pub(crate) enum Made {
    /// Each case is a refresh that meets the fault while a token is valid, and all that comes after.
    Cases(Vec<Case>),
    /// A course of events of its own.
    Story {
        /// What the agent does.
        agent: &'static str,
        tell: fn() -> Telling,
    },
    /// It cannot be made here, for this reason.
    Not(&'static str),
}

/// A story that is being told.
pub(crate) type Telling = Pin<Box<dyn Future<Output = ()>>>;

/// One form of a fault.
pub(crate) struct Case {
    pub(crate) what: String,
    pub(crate) fault: Fault,
    pub(crate) expect: Expect,
}

/// Where the fault sits.
#[derive(Default)]
pub(crate) struct Fault {
    pub(crate) names: Names,
    /// Addresses where every SYN is dropped, and how much time goes by for who waits there.
    pub(crate) black_holes: Vec<(IpAddr, Duration)>,
    /// The script of each connection; none: a good answer.
    pub(crate) moves: Option<Vec<Move>>,
}

/// What the agent must do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Expect {
    /// Take the token.
    Token {
        /// How long it lives; as the good answer says where there is none.
        life: Option<Duration>,
        /// Which deviation is counted.
        counts: Option<&'static str>,
    },
    /// Keep the old one.
    Failure(Fails),
}

/// A failed attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Fails {
    pub(crate) kind: FailureKind,
    pub(crate) schedule: Schedule,
    /// What the provider asked for, as it is honoured.
    pub(crate) retry_after: Option<Duration>,
    /// In the text for the operator.
    pub(crate) says: &'static str,
    /// Requests that the agent counts for the attempt.
    pub(crate) counted: u64,
    /// Connections that it makes to the server.
    pub(crate) connections: u64,
    /// Requests that come whole.
    pub(crate) whole: usize,
}

impl Fails {
    const fn new(kind: FailureKind, schedule: Schedule, says: &'static str) -> Self {
        Self { kind, schedule, retry_after: None, says, counted: 1, connections: 1, whole: 1 }
    }

    /// There was a connection, and no whole request was read by the server.
    pub(crate) const fn unheard(self) -> Self {
        Self { whole: 0, ..self }
    }

    /// So many connections for the attempt.
    pub(crate) const fn connecting(self, connections: u64) -> Self {
        Self { connections, ..self }
    }

    /// The provider asked for silence, and gets it.
    pub(crate) const fn after(self, seconds: u64) -> Self {
        Self { retry_after: Some(Duration::from_secs(seconds)), ..self }
    }

    /// The other secret is tried at once.
    pub(crate) const fn twice(self) -> Self {
        Self { counted: 2, connections: 2, whole: 2, ..self }
    }

    pub(crate) const fn expected(self) -> Expect {
        Expect::Failure(self)
    }
}

/// No connection came about: nothing was sent, so nothing counts as a request.
pub(crate) const fn unreached(says: &'static str) -> Fails {
    let fails = Fails::new(FailureKind::Unreachable, Schedule::Transient, says);
    Fails { counted: 0, connections: 0, whole: 0, ..fails }
}

/// The server was reached and refused before anything was sent.
pub(crate) const fn no_tls(says: &'static str) -> Fails {
    unreached(says).connecting(1)
}

/// The request was sent, and the answer did not come whole.
pub(crate) const fn broken_off(says: &'static str) -> Fails {
    Fails::new(FailureKind::Unreachable, Schedule::Transient, says)
}

/// What came is no answer, or one that says "later".
pub(crate) const fn provider_error(says: &'static str) -> Fails {
    Fails::new(FailureKind::ProviderError, Schedule::Transient, says)
}

/// Too many requests.
pub(crate) const fn limited() -> Fails {
    Fails::new(FailureKind::ProviderError, Schedule::RateLimited, "429")
}

/// The provider does not want this client, or this request.
pub(crate) const fn refused(says: &'static str) -> Fails {
    Fails::new(FailureKind::Refused, Schedule::Refusal, says)
}

/// The token is taken as it is.
pub(crate) const TAKEN: Expect = Expect::Token { life: None, counts: None };

/// The token is taken, and a deviation counted.
pub(crate) const fn counted(deviation: &'static str) -> Expect {
    Expect::Token { life: None, counts: Some(deviation) }
}

/// The token is taken, and lives so long.
pub(crate) const fn lives(seconds: u64, deviation: Option<&'static str>) -> Expect {
    Expect::Token { life: Some(Duration::from_secs(seconds)), counts: deviation }
}

/// A case in which the server does this on each connection.
pub(crate) fn case(what: impl Into<String>, moves: Vec<Move>, expect: Expect) -> Case {
    let fault = Fault { moves: Some(moves), ..Fault::default() };
    Case { what: what.into(), fault, expect }
}

/// A row of cases.
pub(crate) fn row(name: &'static str, server: &'static str, cases: Vec<Case>) -> Row {
    assert!(!cases.is_empty(), "{name}");
    Row { name, server, made: Made::Cases(cases) }
}

impl Expect {
    /// What the agent does, for people.
    pub(crate) fn words(&self) -> String {
        let fails = match self {
            Self::Token { life, counts } => {
                let life = match life.map(|life| life.as_secs()) {
                    None => String::new(),
                    Some(seconds) => format!(" for {seconds} s"),
                };
                let counts = counts.map_or(String::new(), |label| format!(", and counts `{label}`"));
                return format!("takes the token{life}{counts}");
            }
            Self::Failure(fails) => fails,
        };
        let reason = match fails.kind {
            FailureKind::Unreachable => "PROVIDER_UNREACHABLE",
            FailureKind::ProviderError => "PROVIDER_ERROR",
            FailureKind::Refused => "PROVIDER_REFUSED",
            FailureKind::SecretUnreadable => "SECRET_UNREADABLE",
        };
        let asked = fails.retry_after.map(|asked| asked.as_secs());
        let again = match (fails.schedule, asked) {
            (Schedule::Refusal, _) => "again after 30 s, doubling to 15 min".to_owned(),
            (_, Some(asked)) => format!("again after {asked} s and at most 1 s more"),
            (Schedule::RateLimited, None) => "again after 33 to 60 s, doubling".to_owned(),
            (Schedule::Transient, None) => "again within 1 s, doubling to 30 s".to_owned(),
        };
        let requests = match fails.counted {
            0 => "no request",
            1 => "one request",
            _ => "one request with each secret",
        };
        format!("{reason}, {requests}, {again}")
    }
}
