//! Why there is no new token: the one word for it between the part that asks the provider, the part that decides when
//! to ask again, and the part that tells callers.

use std::{fmt, time::Duration};

/// Why an attempt failed, by who can mend it. Callers see this and no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// Network, name look-up, TLS or time-out.
    Unreachable,
    /// The provider answered with a passing fault or with something unreadable.
    ProviderError,
    /// The provider refuses this client or this request.
    Refused,
    /// The secret could not be read from its source.
    SecretUnreadable,
}

/// When to try again: the three schedules of the refresh rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// Network faults, time-outs, 408, 425, 5xx, unreadable answers.
    Transient,
    /// 429 (RFC 6585 §4).
    RateLimited,
    /// Everything else: it will be refused again until somebody mends something. An unreadable secret too, unless its
    /// fault passes by itself.
    Refusal,
}

/// The error codes of token endpoints that are known: those of RFC 6749 §5.2, `invalid_target` (RFC 8707 §2), and what
/// Auth0 and servers in trouble say.
pub const KNOWN_CODES: [&str; 11] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "invalid_target",
    "access_denied",
    "temporarily_unavailable",
    "server_error",
    "slow_down",
];

/// The known code that `text` is.
pub fn known_code(text: &str) -> Option<&'static str> {
    KNOWN_CODES.into_iter().find(|code| *code == text)
}

/// One failed attempt.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure {
    /// Who can mend it.
    pub kind: FailureKind,
    /// When to try again.
    pub schedule: Schedule,
    /// What the provider asked for (RFC 9110 §10.2.3), already cut to 1 h.
    pub retry_after: Option<Duration>,
    /// The provider's error code, where it is one of [`KNOWN_CODES`]: so a word of ours, that anybody may see.
    pub code: Option<&'static str>,
    /// One line for the log and for admins, never for callers: visible ASCII, cut, without secret or token. It says what
    /// happened, why, and what to do about it.
    pub text: Box<str>,
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure")
            .field("kind", &self.kind)
            .field("schedule", &self.schedule)
            .field("retry_after", &self.retry_after)
            .field("code", &self.code)
            .finish_non_exhaustive()
    }
}
