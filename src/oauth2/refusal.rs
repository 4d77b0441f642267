//! Answers that bring no token: whose fault it is, when to ask again, and the line that says so.
//!
//! The words of the provider are kept apart until the secret is known: [`Rejection::into_failure`] takes the secret, and
//! what may be a token, out of them, then escapes and cuts them.

use std::{fmt, time::Duration};

use zeroize::Zeroizing;

use super::{
    Client,
    json::{self, Members},
    retry_after,
    words::{line, quoted, scrubbed, without_tokens},
};
use crate::{
    failure::{Failure, FailureKind, Schedule, known_code},
    secret::Secret,
};

/// The longest of a provider's words that are shown: its description, and its code.
const MAX_DESCRIPTION: usize = 200;
const MAX_CODE: usize = 64;

/// Whether an answer says that the client's credentials are wrong: if so, the other secret may be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// 401 with any code or none (Auth0 says `access_denied`), or `invalid_client` under any status.
    Refused,
    /// Anything else.
    NotJudged,
}

/// An answer that brings no token.
pub struct Rejection {
    /// Whether the secret was wrong.
    pub credentials: Credentials,
    kind: FailureKind,
    schedule: Schedule,
    retry_after: Option<Duration>,
    status: u16,
    why: Why,
    remedy: &'static str,
}

enum Why {
    /// In our words.
    Ours(String),
    /// In the provider's; each may hold anything.
    Theirs { code: Zeroizing<String>, description: Zeroizing<String> },
}

impl Rejection {
    /// The failure, with a line that does not hold `secret`, in whatever form the provider reflected it.
    pub fn into_failure(self, client: &Client, secret: &Secret) -> Failure {
        let what = match self.retry_after {
            None => format!("{} answered {}", client.endpoint, self.status),
            Some(wait) => {
                let most = if wait == retry_after::MAX { ", the most that is honoured" } else { "" };
                let seconds = wait.as_secs();
                format!("{} answered {}, Retry-After {seconds} s{most}", client.endpoint, self.status)
            }
        };
        let clean =
            |text: &str, max| quoted(&without_tokens(&scrubbed(text, &client.client_id, secret)), max);
        let why = match &self.why {
            Why::Ours(text) => text.clone(),
            Why::Theirs { code, description } if description.is_empty() => clean(code, MAX_CODE),
            Why::Theirs { code, description } => {
                format!("{}: {}", clean(code, MAX_CODE), clean(description, MAX_DESCRIPTION))
            }
        };
        let code = match &self.why {
            Why::Ours(_) => None,
            Why::Theirs { code, .. } => known_code(code),
        };
        Failure {
            kind: self.kind,
            schedule: self.schedule,
            retry_after: self.retry_after,
            code,
            text: line(&what, &why, self.remedy),
        }
    }

    /// An answer that cannot be read as one: it may be better the next time.
    pub(super) fn unreadable(status: u16, why: impl Into<String>) -> Self {
        Self {
            credentials: Credentials::NotJudged,
            kind: FailureKind::ProviderError,
            schedule: Schedule::Transient,
            retry_after: None,
            status,
            why: Why::Ours(why.into()),
            remedy: "check that token_url is the token endpoint, and that no proxy answers in its place",
        }
    }

    /// The connection ended before the answer did.
    pub(super) fn broken_off(status: u16, why: &str) -> Self {
        Self {
            kind: FailureKind::Unreachable,
            remedy: "nothing, the agent tries again; if it stays, check the network between here and there",
            ..Self::unreadable(status, why)
        }
    }

    /// A token with fewer scopes than were asked for, where all of them are required.
    pub(super) fn narrower_scope(status: u16) -> Self {
        Self {
            kind: FailureKind::Refused,
            schedule: Schedule::Refusal,
            remedy: "let this client have the scopes at the provider, ask for fewer, or drop require_scope",
            ..Self::unreadable(
                status,
                "not every scope that was asked for was granted, and require_scope is set",
            )
        }
    }

    /// An error answer (RFC 6749 §5.2), or a status that says as much without one.
    pub(super) fn error(status: u16, members: Option<&Members<'_>>, retry_after: Option<Duration>) -> Self {
        let code = members.and_then(|members| json::text_of(members.error));
        let code = code.as_deref().unwrap_or_default();
        let credentials = match (status, code) {
            (401, _) | (..=499, "invalid_client") => Credentials::Refused,
            _ => Credentials::NotJudged,
        };
        let (kind, schedule) = classify(status, code);
        Self {
            credentials,
            kind,
            schedule,
            retry_after,
            status,
            why: match members {
                Some(members) if members.error.is_some() => Why::Theirs {
                    code: owned(if code.is_empty() { "an error that is no text" } else { code }),
                    description: description(members),
                },
                _ => Why::Ours(meaning(status).to_owned()),
            },
            remedy: remedy(status, code, schedule),
        }
    }
}

/// Neither the words nor what they may hold.
impl fmt::Debug for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejection")
            .field("status", &self.status)
            .field("kind", &self.kind)
            .field("schedule", &self.schedule)
            .field("retry_after", &self.retry_after)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

/// The schedules of the refresh rules. What passes by itself goes first, then what nobody but a person can mend.
///
/// A 5xx passes whatever its body says: a provider in trouble says many things. A status beyond 599 is read as 5xx
/// (RFC 9110 §15).
fn classify(status: u16, code: &str) -> (FailureKind, Schedule) {
    match (status, code) {
        (429, _) => (FailureKind::ProviderError, Schedule::RateLimited),
        (_, "temporarily_unavailable" | "server_error" | "slow_down") => {
            (FailureKind::ProviderError, Schedule::Transient)
        }
        (408 | 425 | 500.., _) => (FailureKind::ProviderError, Schedule::Transient),
        (_, "invalid_client") => (FailureKind::Refused, Schedule::Refusal),
        // No refusal, and no token either.
        (..=199 | 201..=299, _) => (FailureKind::ProviderError, Schedule::Transient),
        _ => (FailureKind::Refused, Schedule::Refusal),
    }
}

/// What a status says where the body says nothing.
fn meaning(status: u16) -> &'static str {
    match status {
        ..=199 => "a token request is not answered with an interim status",
        200..=299 => "a token is given with status 200 only (RFC 6749 s. 5.1)",
        300..=399 => "a redirect of a token request is never followed: it would carry the secret elsewhere",
        401 => "the client's credentials were refused",
        403 => "this client is not allowed to do this",
        404 | 405 | 410 => "there is no token endpoint at this address",
        408 => "the provider waited too long for the request",
        415 => "the provider does not take a body of this type",
        429 => "too many requests",
        500.. => "the provider, or something before it, has a fault",
        _ => "the provider refuses this request and does not say why",
    }
}

fn remedy(status: u16, code: &str, schedule: Schedule) -> &'static str {
    match (status, code) {
        (429, _) => "nothing, the agent waits; if it stays, look for others that use this client_id",
        _ if schedule == Schedule::Transient => {
            "nothing, the agent tries again; if it stays, ask the provider"
        }
        (401, _) | (_, "invalid_client") => {
            "check client_id, client_secret and auth_method (a new secret may take 30 s to work)"
        }
        (_, "unauthorized_client" | "unsupported_grant_type") => {
            "allow the client_credentials grant for this client at the provider"
        }
        (_, "invalid_scope") => "check scopes against what the provider lets this client have",
        (_, "invalid_target") => "check audience and resource against what the provider knows",
        (300..=399, _) => "set token_url to the address that answers itself",
        (404 | 405 | 410, "") => "check token_url",
        (403, _) | (_, "access_denied") => {
            "check audience and scopes, and this client's rights at the provider"
        }
        (415, _) => "set body to the other of form and json",
        _ => "check audience, resource, scopes, extra, body and auth_method of the profile",
    }
}

/// `error_description`, and Hydra's `error_hint` after it, without the token that a provider may have reflected.
fn description(members: &Members<'_>) -> Zeroizing<String> {
    let mut words = Zeroizing::new(String::new());
    let parts = [members.error_description, members.error_hint];
    for part in parts.into_iter().filter_map(json::text_of) {
        if !words.is_empty() {
            words.push(' ');
        }
        words.push_str(&part);
    }
    match json::text_of(members.access_token) {
        Some(token) if !token.is_empty() => Zeroizing::new(words.replace(&*token, "***")),
        _ => words,
    }
}

fn owned(text: &str) -> Zeroizing<String> {
    Zeroizing::new(text.to_owned())
}
