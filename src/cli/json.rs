//! The API's messages as JSON, by the proto3 mapping (protobuf.dev, "ProtoJSON Format"): camelCase names, 64-bit numbers
//! as strings, RFC 3339 times in UTC, enums by name. Fields with their default value are printed too, so that a script
//! finds what it looks for; only an unset message is left out. Pure ASCII: what is not is escaped.

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::{client, pb};

/// One line.
pub(super) fn line(value: &impl Serialize) -> String {
    // Our own structs have string keys and no failing serializer: the error branch cannot be taken.
    let json = serde_json::to_string(value).unwrap_or_default();
    let mut ascii = String::with_capacity(json.len());
    for char in json.chars() {
        match char {
            ' '..='~' => ascii.push(char),
            // Inside a string, since serde_json puts nothing else between the tokens.
            other => {
                let mut units = [0; 2];
                for unit in other.encode_utf16(&mut units) {
                    ascii.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    ascii
}

/// `Token`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Token<'a> {
    name: &'a str,
    access_token: &'a str,
    token_type: &'a str,
    scopes: &'a [String],
    audience: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    obtained_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Time>,
    generation: Uint64,
}

impl<'a> Token<'a> {
    /// With the token in it.
    pub(super) fn new(token: &'a client::Token) -> Self {
        let message = token.as_message();
        Self {
            name: &message.name,
            access_token: &message.access_token,
            token_type: &message.token_type,
            scopes: &message.scopes,
            audience: &message.audience,
            obtained_at: Time::of(message.obtained_at),
            expires_at: Time::of(message.expires_at),
            generation: Uint64(message.generation),
        }
    }
}

/// What `watch --json` tells of a rotation: fields of `Token`, without the token.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rotation<'a> {
    name: &'a str,
    generation: Uint64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Time>,
}

impl<'a> Rotation<'a> {
    /// Of this token.
    pub(super) fn new(token: &'a client::Token) -> Self {
        let message = token.as_message();
        Self {
            name: &message.name,
            generation: Uint64(message.generation),
            expires_at: Time::of(message.expires_at),
        }
    }
}

/// `ListTokensResponse`.
#[derive(Serialize)]
pub(super) struct List<'a> {
    tokens: Vec<TokenStatus<'a>>,
}

impl<'a> List<'a> {
    /// Of these profiles.
    pub(super) fn new(tokens: &'a [pb::TokenStatus]) -> Self {
        Self { tokens: tokens.iter().map(TokenStatus::new).collect() }
    }
}

/// `TokenStatus`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TokenStatus<'a> {
    name: &'a str,
    state: &'static str,
    scopes: &'a [String],
    audience: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_refresh_at: Option<Time>,
    last_failure: &'static str,
    generation: Uint64,
}

impl<'a> TokenStatus<'a> {
    /// Of this profile.
    pub(super) fn new(status: &'a pb::TokenStatus) -> Self {
        Self {
            name: &status.name,
            state: status.state().as_str_name(),
            scopes: &status.scopes,
            audience: &status.audience,
            expires_at: Time::of(status.expires_at),
            next_refresh_at: Time::of(status.next_refresh_at),
            last_failure: status.last_failure().as_str_name(),
            generation: Uint64(status.generation),
        }
    }
}

/// `GetStatusResponse`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status<'a> {
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    configured_at: Option<Time>,
    profiles: Vec<ProfileStatus<'a>>,
    connections: u32,
    watches: u32,
    degraded: &'a [String],
    pid: i32,
    unit_lookup: &'a str,
    confinement: &'a str,
}

impl<'a> Status<'a> {
    /// Of this agent.
    pub(super) fn new(status: &'a pb::GetStatusResponse) -> Self {
        Self {
            version: &status.version,
            started_at: Time::of(status.started_at),
            configured_at: Time::of(status.configured_at),
            profiles: status.profiles.iter().map(ProfileStatus::new).collect(),
            connections: status.connections,
            watches: status.watches,
            degraded: &status.degraded,
            pid: status.pid,
            unit_lookup: &status.unit_lookup,
            confinement: &status.confinement,
        }
    }
}

/// `ProfileStatus`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProfileStatus<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<TokenStatus<'a>>,
    token_url: &'a str,
    secret_source: &'a str,
    last_failure_text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_failure_at: Option<Time>,
    requests: Uint64,
    consecutive_failures: u32,
    assumed_lifetime: bool,
    allow: &'a [String],
}

impl<'a> ProfileStatus<'a> {
    fn new(profile: &'a pb::ProfileStatus) -> Self {
        Self {
            token: profile.token.as_ref().map(TokenStatus::new),
            token_url: &profile.token_url,
            secret_source: &profile.secret_source,
            last_failure_text: &profile.last_failure_text,
            last_failure_at: Time::of(profile.last_failure_at),
            requests: Uint64(profile.requests),
            consecutive_failures: profile.consecutive_failures,
            assumed_lifetime: profile.assumed_lifetime,
            allow: &profile.allow,
        }
    }
}

/// `RefreshTokenResponse`.
#[derive(Serialize)]
pub(super) struct Refreshed<'a> {
    token: TokenStatus<'a>,
}

impl<'a> Refreshed<'a> {
    /// To this state.
    pub(super) fn new(status: &'a pb::TokenStatus) -> Self {
        Self { token: TokenStatus::new(status) }
    }
}

/// `ReloadResponse`.
#[derive(Serialize)]
pub(super) struct Reloaded<'a> {
    added: &'a [String],
    replaced: &'a [String],
    removed: &'a [String],
    warnings: &'a [String],
}

impl<'a> Reloaded<'a> {
    /// With this outcome.
    pub(super) fn new(outcome: &'a pb::ReloadResponse) -> Self {
        Self {
            added: &outcome.added,
            replaced: &outcome.replaced,
            removed: &outcome.removed,
            warnings: &outcome.warnings,
        }
    }
}

/// `ReportRejectedResponse`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reported {
    generation: Uint64,
    is_new: bool,
}

impl Reported {
    /// With this outcome.
    pub(super) fn new(outcome: pb::ReportRejectedResponse) -> Self {
        Self { generation: Uint64(outcome.generation), is_new: outcome.is_new }
    }
}

/// A JSON number loses what is beyond 2^53.
struct Uint64(u64);

impl Serialize for Uint64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

struct Time(Timestamp);

impl Time {
    /// Nothing if it is outside of what RFC 3339 can write.
    fn of(time: Option<prost_types::Timestamp>) -> Option<Self> {
        time.and_then(|time| Timestamp::new(time.seconds, time.nanos).ok()).map(Self)
    }
}

/// 0, 3, 6 or 9 digits after the point, as the mapping asks for.
impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits = match self.0.subsec_nanosecond() {
            0 => 0,
            nanos if nanos % 1_000_000 == 0 => 3,
            nanos if nanos % 1_000 == 0 => 6,
            _ => 9,
        };
        serializer.collect_str(&format_args!("{:.digits$}", self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_0_3_6_or_9_digits() {
        for (nanos, text) in [
            (0, "2026-11-22T14:05:00Z"),
            (5_000_000, "2026-11-22T14:05:00.005Z"),
            (5_000, "2026-11-22T14:05:00.000005Z"),
            (120_000_000, "2026-11-22T14:05:00.120Z"),
            (5, "2026-11-22T14:05:00.000000005Z"),
        ] {
            let time = Time::of(Some(prost_types::Timestamp { seconds: 1_795_356_300, nanos }));
            assert_eq!(line(&time), format!("\"{text}\""));
        }
        assert!(Time::of(Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 })).is_none());
    }

    #[test]
    fn a_message_keeps_its_order_its_defaults_and_its_large_numbers() {
        let status = pb::TokenStatus { name: "bloom".to_owned(), generation: u64::MAX, ..Default::default() };
        assert_eq!(
            line(&TokenStatus::new(&status)),
            "{\"name\":\"bloom\",\"state\":\"TOKEN_STATE_UNSPECIFIED\",\"scopes\":[],\"audience\":\"\",\
             \"lastFailure\":\"FAILURE_KIND_UNSPECIFIED\",\"generation\":\"18446744073709551615\"}"
        );
    }

    #[test]
    fn nothing_but_visible_ascii_is_printed_and_it_reads_back() {
        let text = "a\n\u{1b}\u{7f}\u{2028}é😀\"\\";
        let printed = line(&text);
        assert!(printed.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{printed}");
        assert_eq!(serde_json::from_str::<String>(&printed).unwrap(), text);
    }
}
