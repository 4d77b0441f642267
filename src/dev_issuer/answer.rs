//! What the two dialects answer, word for word where their servers are known to say it. Pure.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use rand::distr::{Alphanumeric, SampleString as _};
use serde_json::json;

use super::{
    Dialect, Options,
    request::{AuthMethod, TokenRequest, Unreadable},
};
use crate::clock::WallTime;

/// What every token begins with, so that it is known for a toy wherever it turns up.
pub const TOKEN_PREFIX: &str = "bloom-dev.";

/// An answer. It may hold a token and does not print.
#[derive(Clone)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The headers, without Content-Length and Date.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Reply {
    /// No body, no headers.
    pub fn empty(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), body: Bytes::new() }
    }

    /// A JSON text, which nobody checks, with the headers that RFC 6749 §5.1 demands.
    pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self { body, ..Self::empty(status) }
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json;charset=UTF-8"))
            .header(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))
            .header(header::PRAGMA, HeaderValue::from_static("no-cache"))
    }

    /// With one more header line.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }
}

/// Why there is no token.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Unreadable(Unreadable),
    GrantMissing,
    Grant(String),
    Client(AuthMethod),
    AudienceMissing,
    Audience(String),
    Scope(String),
}

/// The scopes to be granted, or why none are.
pub(super) fn judge(options: &Options, request: &TokenRequest) -> Result<Vec<String>, Refusal> {
    match request.get("grant_type") {
        None => return Err(Refusal::GrantMissing),
        Some("client_credentials") => {}
        Some(other) => return Err(Refusal::Grant(other.to_owned())),
    }
    let known = request
        .client
        .as_ref()
        .is_some_and(|client| client.id == options.client_id && options.secrets.contains(&client.secret));
    if !known {
        return Err(Refusal::Client(request.method));
    }
    match (request.get("audience"), options.dialect) {
        (None, Dialect::Auth0) => return Err(Refusal::AudienceMissing),
        (Some(asked), _)
            if !options.audiences.is_empty() && options.audiences.iter().all(|allowed| allowed != asked) =>
        {
            return Err(Refusal::Audience(asked.to_owned()));
        }
        _ => {}
    }
    let asked = request.get("scope").unwrap_or("").split(' ').filter(|scope| !scope.is_empty());
    let (allowed, others): (Vec<_>, Vec<_>) =
        asked.map(str::to_owned).partition(|scope| options.scopes.contains(scope));
    match others.into_iter().next() {
        // Auth0 leaves out what the client may not have, and says so by the scope of its answer.
        Some(scope) if options.dialect == Dialect::Hydra => Err(Refusal::Scope(scope)),
        _ => Ok(allowed),
    }
}

/// A new token: unique, and a `b64token` (RFC 6750 §2.1).
pub(super) fn new_token() -> String {
    TOKEN_PREFIX.to_owned() + &Alphanumeric.sample_string(&mut rand::rng(), 40)
}

/// RFC 6749 §5.1.
pub(super) fn granted(dialect: Dialect, token: &str, scopes: &[String], expires_in: u64) -> Reply {
    let scope = scopes.join(" ");
    let body = match dialect {
        Dialect::Hydra => {
            json!({"access_token": token, "expires_in": expires_in, "scope": scope, "token_type": "bearer"})
        }
        Dialect::Auth0 if scopes.is_empty() => {
            json!({"access_token": token, "expires_in": expires_in, "token_type": "Bearer"})
        }
        Dialect::Auth0 => {
            json!({"access_token": token, "scope": scope, "expires_in": expires_in, "token_type": "Bearer"})
        }
    };
    Reply::json(StatusCode::OK, body.to_string())
}

/// RFC 6749 §5.2, as the dialect has it.
pub(super) fn refused(dialect: Dialect, refusal: &Refusal) -> Reply {
    let reply = match dialect {
        Dialect::Hydra => hydra(refusal),
        Dialect::Auth0 => auth0(refusal),
    };
    match refusal {
        // RFC 6749 §5.2: a client that tried the header is told by the header.
        Refusal::Client(AuthMethod::Basic) | Refusal::Unreadable(Unreadable::Authorization) => reply
            .header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"bloom-agent dev\"")),
        _ => reply,
    }
}

/// The texts are those of ory/fosite, Hydra's OAuth2 half (errors.go).
fn hydra(refusal: &Refusal) -> Reply {
    const INVALID_REQUEST: (u16, &str, &str) = (
        400,
        "invalid_request",
        "The request is missing a required parameter, includes an invalid parameter value, includes a parameter more \
         than once, or is otherwise malformed.",
    );
    const INVALID_CLIENT: (u16, &str, &str) = (
        401,
        "invalid_client",
        "Client authentication failed (e.g., unknown client, no client authentication included, or unsupported \
         authentication method).",
    );
    let ((status, error, description), hint): (_, Cow<'_, str>) = match refusal {
        Refusal::Unreadable(Unreadable::Authorization) => {
            (INVALID_CLIENT, Unreadable::Authorization.to_string().into())
        }
        Refusal::Unreadable(why) => (INVALID_REQUEST, why.to_string().into()),
        Refusal::GrantMissing => (INVALID_REQUEST, "Request parameter 'grant_type' is missing".into()),
        Refusal::Grant(_) => (
            (
                400,
                "unsupported_grant_type",
                "The authorization grant type is not supported by the authorization server.",
            ),
            "Only 'client_credentials' is known here.".into(),
        ),
        Refusal::Client(_) => (INVALID_CLIENT, "The requested OAuth 2.0 Client does not exist.".into()),
        Refusal::AudienceMissing => (INVALID_REQUEST, "Request parameter 'audience' is missing".into()),
        Refusal::Audience(asked) => (
            INVALID_REQUEST,
            format!("Requested audience '{asked}' has not been whitelisted by the OAuth 2.0 Client.").into(),
        ),
        Refusal::Scope(asked) => (
            (400, "invalid_scope", "The requested scope is invalid, unknown, or malformed."),
            format!("The OAuth 2.0 Client is not allowed to request scope '{asked}'.").into(),
        ),
    };
    let body = json!({
        "error": error, "error_description": description, "error_hint": hint, "status_code": status,
    });
    Reply::json(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST), body.to_string())
}

fn auth0(refusal: &Refusal) -> Reply {
    let (status, error, description): (_, _, Cow<'_, str>) = match refusal {
        Refusal::Unreadable(Unreadable::Authorization) | Refusal::Client(_) => {
            (StatusCode::UNAUTHORIZED, "access_denied", "Unauthorized".into())
        }
        Refusal::Unreadable(why) => (StatusCode::BAD_REQUEST, "invalid_request", why.to_string().into()),
        Refusal::GrantMissing => {
            (StatusCode::BAD_REQUEST, "invalid_request", "Missing required parameter: grant_type".into())
        }
        Refusal::Grant(asked) => (
            StatusCode::FORBIDDEN,
            "unsupported_grant_type",
            format!("Unsupported grant type: {asked}").into(),
        ),
        Refusal::AudienceMissing => (
            StatusCode::FORBIDDEN,
            "access_denied",
            "No audience parameter was provided, and no default audience has been configured".into(),
        ),
        Refusal::Audience(asked) => (
            StatusCode::FORBIDDEN,
            "access_denied",
            format!("Service not enabled within domain: {asked}").into(),
        ),
        Refusal::Scope(asked) => {
            (StatusCode::FORBIDDEN, "invalid_scope", format!("Scope is not allowed: {asked}").into())
        }
    };
    Reply::json(status, json!({"error": error, "error_description": description}).to_string())
}

/// 429 (RFC 6585 §4). Auth0 adds its own headers; `reset` is the moment at which its bucket is full again.
pub(super) fn rate_limited(dialect: Dialect, retry_after: Option<Duration>, reset: WallTime) -> Reply {
    let text = "Global limit has been reached";
    let body = json!({"error": "too_many_requests", "error_description": text}).to_string();
    let mut reply = Reply::json(StatusCode::TOO_MANY_REQUESTS, body);
    if let Some(retry_after) = retry_after {
        reply = reply.header(header::RETRY_AFTER, retry_after.as_secs().into());
    }
    if dialect == Dialect::Auth0 {
        let numbers = [
            ("x-ratelimit-limit", 10),
            ("x-ratelimit-remaining", 0),
            ("x-ratelimit-reset", reset.unix_millis().div_euclid(1000)),
        ];
        for (name, value) in numbers {
            reply = reply.header(HeaderName::from_static(name), value.into());
        }
    }
    reply
}
