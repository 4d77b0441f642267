//! The words for tokens: names, generations, scopes, lives and the token itself.
//!
//! Parsed once, at the edge; from there on the types say what is known. An [`AccessToken`] never prints.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::clock::{Now, Timestamp, WallTime};

/// The longest access token, in bytes.
pub const MAX_TOKEN_BYTES: usize = 32 * 1024;
/// The longest life that is believed.
pub const MAX_LIFE: Duration = Duration::from_secs(30 * 86_400);

/// A profile's name: `[a-z][a-z0-9-]{0,62}`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProfileName(Arc<str>);

/// A text that is not a profile's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a profile's name (a small letter, then at most 62 small letters, digits and '-')")]
pub struct NotAName;

impl ProfileName {
    /// Checks `text` against the grammar.
    pub fn parse(text: &str) -> Result<Self, NotAName> {
        let bytes = text.as_bytes();
        let tail = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        match bytes.split_first() {
            Some((first, rest))
                if first.is_ascii_lowercase() && rest.len() <= 62 && rest.iter().all(tail) =>
            {
                Ok(Self(text.into()))
            }
            _ => Err(NotAName),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProfileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for ProfileName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Which token a profile has: max(previous + 1, Unix time in ms at the grant). 0 is no token's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(u64);

impl Generation {
    /// A generation as it was written in a message.
    pub const fn from_u64(value: u64) -> Self {
        Self(value)
    }

    /// The generation of a token granted at `wall`, after `previous`.
    pub fn next(previous: Option<Self>, wall: WallTime) -> Self {
        let after = previous.map_or(1, |previous| previous.0.saturating_add(1));
        Self(after.max(u64::try_from(wall.unix_millis()).unwrap_or(0)))
    }

    /// As it is written in a message.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One scope token: `1*( %x21 / %x23-5B / %x5D-7E )` (RFC 6749 §3.3).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(Box<str>);

/// A text that is not one scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a scope (visible ASCII without space, '\"' and '\\', RFC 6749 §3.3)")]
pub struct NotAScope;

impl Scope {
    /// Checks `text` against the grammar.
    pub fn parse(text: &str) -> Result<Self, NotAScope> {
        let fits = |b: u8| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
        if !text.is_empty() && text.bytes().all(fits) { Ok(Self(text.into())) } else { Err(NotAScope) }
    }

    /// The scope.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An access token of type Bearer: `b64token` (RFC 6750 §2.1), at most [`MAX_TOKEN_BYTES`]. It never prints; whoever
/// makes it chooses the memory that it lies in ([`crate::locked`] has pages for it).
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken(Bytes);

/// Why some bytes are not an access token. It never holds any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenProblem {
    /// No byte at all.
    #[error("the access token is empty")]
    Empty,
    /// More than [`MAX_TOKEN_BYTES`].
    #[error("the access token is longer than 32 KiB")]
    TooLong,
    /// Not `1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"="`.
    #[error("the access token holds a character that no bearer token may hold (RFC 6750 §2.1)")]
    NotB64Token,
}

impl AccessToken {
    /// Checks `bytes` against the grammar.
    pub fn parse(bytes: Bytes) -> Result<Self, TokenProblem> {
        if bytes.is_empty() {
            return Err(TokenProblem::Empty);
        }
        if bytes.len() > MAX_TOKEN_BYTES {
            return Err(TokenProblem::TooLong);
        }
        let body = bytes.trim_ascii_end_matches(b'=');
        let fits = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b'+' | b'/');
        if body.is_empty() || !body.iter().all(fits) {
            return Err(TokenProblem::NotB64Token);
        }
        Ok(Self(bytes))
    }

    /// The token itself, for the reply that is being encoded.
    pub fn expose_secret(&self) -> &str {
        // The grammar is ASCII, so this never takes the other branch.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

trait TrimEnd {
    fn trim_ascii_end_matches(&self, byte: u8) -> &[u8];
}

impl TrimEnd for [u8] {
    fn trim_ascii_end_matches(&self, byte: u8) -> &[u8] {
        let end = self.iter().rposition(|b| *b != byte).map_or(0, |last| last + 1);
        self.get(..end).unwrap_or_default()
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(…)")
    }
}

/// How long a token lives, counted from the moment its request *started*: the provider counts from some later moment,
/// so this errs to the safe side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// When the request for it started.
    pub requested: Now,
    /// `expires_in`, at most [`MAX_LIFE`].
    pub length: Duration,
    /// Where `length` comes from.
    pub source: LifeSource,
}

/// Who says how long a token lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifeSource {
    /// The provider's `expires_in`.
    Provider,
    /// The profile's `assumed_lifetime`, since the provider did not say it (RFC 6749 §5.1 only recommends it).
    Assumed,
}

impl Life {
    /// When it expires.
    pub fn expires(&self) -> Timestamp {
        self.requested.boot + self.length
    }

    /// When it expires, by the wall clock of the moment the request started.
    pub fn expires_wall(&self) -> WallTime {
        self.requested.wall + self.length
    }

    /// Until when it is served: its expiry less the smaller of 5 s and 5 % of its life, so that it does not expire on
    /// the way to the API.
    pub fn served_until(&self) -> Timestamp {
        self.expires() - Duration::from_secs(5).min(self.length / 20)
    }
}

/// A token as it is served.
#[derive(Clone, Debug)]
pub struct Token {
    /// The profile it belongs to.
    pub name: ProfileName,
    /// Which one it is.
    pub generation: Generation,
    /// The token itself.
    pub access_token: AccessToken,
    /// The scopes that were granted, in the provider's order; those asked for, where it did not say.
    pub scopes: Vec<Scope>,
    /// The audience that was asked for.
    pub audience: Option<Box<str>>,
    /// From when to when.
    pub life: Life,
    /// What callers are sent, whole ([`crate::reply`]); empty before that is made.
    pub reply: Reply,
}

/// The bytes of a reply. They hold a token, and do not print.
#[derive(Clone, Default)]
pub struct Reply(Bytes);

impl Reply {
    /// What is to be sent.
    pub const fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// Whether there is anything to send.
    pub fn is_made(&self) -> bool {
        !self.0.is_empty()
    }

    /// The bytes, shared; with the token among them.
    pub fn expose_secret(&self) -> Bytes {
        self.0.clone()
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply(…)")
    }
}
