//! What an answer to a token request means (RFC 6749 §5): a token, or a [`Rejection`].
//!
//! Liberal where providers are known to differ, and then it says so ([`Deviations`]); strict where two readings are
//! possible. The answer's bytes are borrowed; of all of them only the token leaves, through the function that chooses
//! the memory it lies in. A refresh_token or id_token in the answer is never looked at.

use std::time::{Duration, UNIX_EPOCH};

use ::http::{HeaderMap, header};
use bytes::Bytes;

use super::{
    Client, Deviation, Deviations, Rejection,
    expires_in::{ExpiresIn, Unusable, Written},
    json::{self, Members},
    retry_after,
};
use crate::{
    clock::WallTime,
    token::{AccessToken, LifeSource, MAX_LIFE, Scope},
};

/// A provider's Date further away than this is worth a word.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(300);
/// A life shorter than this is worth a word.
const SHORT_LIFE: Duration = Duration::from_secs(60);

/// An answer, as it came.
#[derive(Clone, Copy)]
pub struct Answer<'a> {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its body, or as much of it as there was.
    pub body: &'a [u8],
    /// Whether that is all.
    pub end: &'a BodyEnd,
}

/// How a body ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyEnd {
    /// As its framing said.
    Whole,
    /// It was longer than is read.
    TooLong,
    /// The connection or the deadline cut it off; in our words, why.
    Broken(Box<str>),
}

/// What is made of an answer that gives less than was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScopeRule {
    /// `require_scope = false`: it is taken, and reported.
    #[default]
    Report,
    /// `require_scope = true`: it is a refusal.
    Require,
}

/// A profile's own rules for reading an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The life of a token whose answer does not say it.
    pub assumed_lifetime: Duration,
    /// What narrower scopes mean.
    pub scope: ScopeRule,
}

/// A token, as the answer gives it.
#[derive(Debug)]
pub struct Grant {
    /// The token, in the memory that `keep` chose.
    pub access_token: AccessToken,
    /// The scopes granted, in the provider's order; those asked for, where it does not say (RFC 6749 §5.1).
    pub scopes: Vec<Scope>,
    /// How long it lives, from the moment that the request started; at most [`MAX_LIFE`].
    pub length: Duration,
    /// Who says so.
    pub source: LifeSource,
    /// What was unusual.
    pub deviations: Deviations,
}

/// Reads an answer to a request of `client`. `wall` is now; `keep` copies the token to where it stays.
pub fn read(
    answer: &Answer<'_>,
    client: &Client,
    rules: &Rules,
    wall: WallTime,
    keep: &dyn Fn(&[u8]) -> Bytes,
) -> Result<Grant, Rejection> {
    let wait = retry_after::retry_after(answer.status, answer.headers, wall);
    if answer.status != 200 {
        // A body that is no error object, or not all of it, leaves the status to speak for itself.
        let readable = *answer.end == BodyEnd::Whole && coding(answer.headers).is_none();
        let members = if readable { json::members(answer.body).ok() } else { None };
        return Err(Rejection::error(answer.status, members.as_ref().map(|(members, _)| members), wait));
    }
    let mut deviations = Deviations::default();
    let unreadable = |why: &str| Rejection::unreadable(answer.status, why);
    match answer.end {
        BodyEnd::Whole => {}
        BodyEnd::TooLong => return Err(unreadable("the body is longer than 64 KiB")),
        BodyEnd::Broken(why) => return Err(Rejection::broken_off(answer.status, why)),
    }
    if coding(answer.headers).is_some() {
        return Err(unreadable("the body has a Content-Encoding, which was not offered"));
    }
    if !is_json(answer.headers).ok_or_else(|| unreadable("the Content-Type is not application/json"))? {
        deviations.insert(Deviation::MissingContentType);
    }
    let (members, marked) = json::members(answer.body).map_err(|fault| unreadable(&fault.to_string()))?;
    if marked {
        deviations.insert(Deviation::ByteOrderMark);
    }
    // GitHub says so with 200. A token beside it is not trusted.
    if members.error.is_some_and(|raw| raw.get() != "\"\"") {
        return Err(Rejection::error(answer.status, Some(&members), wait));
    }
    token_type(&members).map_err(unreadable)?;
    let (length, source) = life(&members, rules, &mut deviations).map_err(unreadable)?;
    let scopes = scopes(&members, client, &mut deviations).map_err(unreadable)?;
    if deviations.contains(Deviation::NarrowerScope) && rules.scope == ScopeRule::Require {
        return Err(Rejection::narrower_scope(answer.status));
    }
    head(answer.headers, wall, &mut deviations);
    let access_token = access_token(&members, keep).map_err(|why| unreadable(&why))?;
    Ok(Grant { access_token, scopes, length, source, deviations })
}

/// The first coding that the body has.
fn coding(headers: &HeaderMap) -> Option<&[u8]> {
    let mut codings =
        headers.get_all(header::CONTENT_ENCODING).iter().map(|value| value.as_bytes().trim_ascii());
    codings.find(|value| !value.is_empty() && !value.eq_ignore_ascii_case(b"identity"))
}

/// Whether the answer says that it is JSON; none if it says that it is something else.
fn is_json(headers: &HeaderMap) -> Option<bool> {
    let mut said = false;
    for value in headers.get_all(header::CONTENT_TYPE) {
        let media_type = value.as_bytes().split(|b| *b == b';').next().unwrap_or_default();
        if !media_type.trim_ascii().eq_ignore_ascii_case(b"application/json") {
            return None;
        }
        said = true;
    }
    Some(said)
}

/// RFC 6749 §7.1: a token of a type that the client does not understand must not be used. Upper and lower case are the
/// same (§5.1). What was there instead is not shown: it may be anything.
fn token_type(members: &Members<'_>) -> Result<(), &'static str> {
    let raw = members.token_type.ok_or("token_type is missing (RFC 6749 s. 5.1 requires it)")?;
    let text = json::text(raw.get()).ok_or("token_type is not a string")?;
    if text.eq_ignore_ascii_case("bearer") { Ok(()) } else { Err("token_type is not Bearer") }
}

fn life(
    members: &Members<'_>,
    rules: &Rules,
    deviations: &mut Deviations,
) -> Result<(Duration, LifeSource), &'static str> {
    let said = members.expires_in.map_or(Ok(ExpiresIn::Absent), |raw| ExpiresIn::parse(raw.get()));
    let length = match said {
        Ok(ExpiresIn::Absent) => {
            deviations.insert(Deviation::AssumedLifetime);
            return Ok((rules.assumed_lifetime.min(MAX_LIFE), LifeSource::Assumed));
        }
        Ok(ExpiresIn::Seconds(seconds, written)) => {
            if written == Written::Text {
                deviations.insert(Deviation::TextualLifetime);
            }
            Duration::from_secs(seconds)
        }
        Err(Unusable::NotPositive) => {
            return Err("expires_in is not positive: the token has expired already");
        }
        Err(Unusable::NotANumber) => return Err("expires_in is not a number"),
    };
    if length < SHORT_LIFE {
        deviations.insert(Deviation::ShortLifetime);
    }
    if length > MAX_LIFE {
        deviations.insert(Deviation::CutLifetime);
    }
    Ok((length.min(MAX_LIFE), LifeSource::Provider))
}

fn scopes(
    members: &Members<'_>,
    client: &Client,
    deviations: &mut Deviations,
) -> Result<Vec<Scope>, &'static str> {
    const UNREADABLE: &str = "scope is not a list of scopes (RFC 6749 s. 3.3)";
    let Some(raw) = members.scope else { return Ok(client.scopes.clone()) };
    let parse = |text: &str| Scope::parse(text).map_err(|_| UNREADABLE);
    let granted: Vec<Scope> = if let Some(text) = json::text(raw.get()) {
        text.split(' ').filter(|part| !part.is_empty()).map(parse).collect::<Result<_, _>>()?
    } else {
        deviations.insert(Deviation::ScopeArray);
        let texts = json::texts(raw.get()).ok_or(UNREADABLE)?;
        texts.iter().map(|text| parse(text)).collect::<Result<_, _>>()?
    };
    if client.scopes.iter().any(|asked| !granted.contains(asked)) {
        deviations.insert(Deviation::NarrowerScope);
    }
    Ok(granted)
}

fn head(headers: &HeaderMap, wall: WallTime, deviations: &mut Deviations) {
    let directives = headers.get_all(header::CACHE_CONTROL).iter().flat_map(|value| {
        value.as_bytes().split(|b| *b == b',').map(|directive| directive.trim_ascii().to_ascii_lowercase())
    });
    if !directives.into_iter().any(|directive| directive == b"no-store") {
        deviations.insert(Deviation::Cacheable);
    }
    let theirs = retry_after::date(headers).and_then(|date| date.duration_since(UNIX_EPOCH).ok());
    if let Some(theirs) = theirs {
        let ours = Duration::from_millis(u64::try_from(wall.unix_millis()).unwrap_or(0));
        if theirs.abs_diff(ours) > MAX_CLOCK_SKEW {
            deviations.insert(Deviation::ClockSkew);
        }
    }
}

fn access_token(members: &Members<'_>, keep: &dyn Fn(&[u8]) -> Bytes) -> Result<AccessToken, String> {
    let raw = members.access_token.ok_or("access_token is missing")?;
    let text = json::text(raw.get()).ok_or("access_token is not a string")?;
    AccessToken::parse(keep(text.as_bytes())).map_err(|problem| problem.to_string())
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
