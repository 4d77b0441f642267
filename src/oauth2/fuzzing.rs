//! Properties of what a provider answers, and of the URL that it is asked at.
//!
//! An input is an answer as text: the status, headers, an empty line, the body.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a property panics where it does not hold"
)]

use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::Value;
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::{
    Answer, AuthMethod, BodyEnd, BodyFormat, Client, Credentials, Deviation, Endpoint, Grant, Rejection,
    Rules, ScopeRule, read, retry_after as header,
};
use crate::{
    clock::WallTime,
    failure::{KNOWN_CODES, Schedule},
    secret::Secret,
    token::{LifeSource, MAX_LIFE, MAX_TOKEN_BYTES, Scope},
};

/// Sun, 22 Nov 2026 14:05:00 GMT.
const WALL: WallTime = WallTime::from_unix_millis(1_795_356_300_000);
const SECRET: &str = "c4n4ry/S3CR3T+with \"odd\" ones%";
const ASSUMED: Duration = Duration::from_secs(3600);
/// The longest line of a failure.
const MAX_LINE: usize = 1000;

struct Input<'a> {
    status: Option<u16>,
    headers: HeaderMap,
    body: &'a [u8],
}

impl<'a> Input<'a> {
    fn of(data: &'a [u8]) -> Self {
        let end = data.windows(2).position(|two| two == b"\n\n");
        let (head, body) = end.map_or((data, &b""[..]), |at| (&data[..at], &data[at + 2..]));
        let mut lines = head.split(|byte| *byte == b'\n');
        let status = lines.next().and_then(|line| std::str::from_utf8(line).ok()?.trim().parse().ok());
        let mut headers = HeaderMap::new();
        for line in lines.take(32) {
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let name = HeaderName::from_bytes(line[..colon].trim_ascii());
            let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
            if let (Ok(name), Ok(value)) = (name, value) {
                headers.append(name, value);
            }
        }
        Self { status: status.filter(|status| (100..1000).contains(status)), headers, body }
    }

    fn read(&self, status: u16, scope: ScopeRule) -> Result<Grant, Rejection> {
        let answer = Answer { status, headers: &self.headers, body: self.body, end: &BodyEnd::Whole };
        read(&answer, &client(), &Rules { assumed_lifetime: ASSUMED, scope }, WALL, &Bytes::copy_from_slice)
    }

    /// The body as somebody else reads it; the last of two members counts, and large numbers are none.
    fn tree(&self) -> Option<Value> {
        let body = self.body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(self.body);
        serde_json::from_slice::<Value>(body).ok().filter(Value::is_object)
    }
}

fn client() -> Client {
    Client {
        endpoint: Endpoint::parse("https://id.example.com/oauth2/token").unwrap(),
        client_id: "id".into(),
        auth_method: AuthMethod::ClientSecretPost,
        body: BodyFormat::Form,
        audience: None,
        resource: Vec::new(),
        scopes: ["a", "b"].map(|scope| Scope::parse(scope).unwrap()).into(),
        extra: Vec::new(),
    }
}

fn secret() -> Secret {
    Secret::parse(Zeroizing::new(SECRET.as_bytes().to_vec())).unwrap()
}

/// Status 200: what is taken is a token that may be served, and what plainly is one is taken.
pub(crate) fn token_response(data: &[u8]) {
    let input = Input::of(data);
    let tree = input.tree();
    let plain = tree.as_ref().is_some_and(|tree| is_plainly_granted(&input, tree));
    match input.read(200, ScopeRule::Report) {
        Ok(grant) => {
            judge_grant(&grant, tree.as_ref());
            let narrower = grant.deviations.contains(Deviation::NarrowerScope);
            assert_eq!(
                narrower,
                input.read(200, ScopeRule::Require).is_err(),
                "require_scope is about the scopes"
            );
            assert!(!format!("{grant:?}").contains(grant.access_token.expose_secret()) || is_short(&grant));
        }
        Err(rejection) => {
            assert!(!plain, "a token was refused: {rejection:?}");
            judge_rejection(rejection, 200, &input);
        }
    }
    for end in [BodyEnd::TooLong, BodyEnd::Broken("it was cut".into())] {
        let answer = Answer { status: 200, headers: &input.headers, body: input.body, end: &end };
        let rules = Rules { assumed_lifetime: ASSUMED, scope: ScopeRule::Report };
        let taken = read(&answer, &client(), &rules, WALL, &Bytes::copy_from_slice);
        assert!(taken.is_err(), "a part of an answer is none");
    }
}

/// A word that stands in the type's own name says nothing.
fn is_short(grant: &Grant) -> bool {
    grant.access_token.expose_secret().len() < 16
}

fn judge_grant(grant: &Grant, tree: Option<&Value>) {
    let token = grant.access_token.expose_secret();
    assert!(!token.is_empty() && token.len() <= MAX_TOKEN_BYTES);
    assert!(token.bytes().all(|byte| byte.is_ascii_graphic()), "a token is one word of visible ASCII");
    assert!(!grant.length.is_zero() && grant.length <= MAX_LIFE);
    assert!(grant.source == LifeSource::Provider || grant.length == ASSUMED);
    // A number that no double holds is none to the other reader.
    let Some(tree) = tree else { return };
    assert_eq!(tree["access_token"].as_str(), Some(token));
    assert!(tree["token_type"].as_str().is_some_and(|text| text.eq_ignore_ascii_case("bearer")));
    assert!(tree["error"].is_null() || tree["error"] == "", "an error beside a token is an error");
    let said = match &tree["expires_in"] {
        Value::Null => {
            assert_eq!(grant.source, LifeSource::Assumed);
            return;
        }
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        other => panic!("a life of {other}"),
    };
    assert_eq!(grant.source, LifeSource::Provider);
    let most = MAX_LIFE.as_secs_f64();
    let said: f64 = said.expect("a number in a text is one to everybody");
    assert!(
        (grant.length.as_secs_f64() - said.min(most).floor()).abs() <= 1.0,
        "{said} became {:?}",
        grant.length
    );
    assert!(grant.length.as_secs_f64() <= said + 1e-6, "no life is longer than the provider says");
}

/// Without a doubt, by RFC 6749 §5.1 alone: one object of simple members, each once.
fn is_plainly_granted(input: &Input<'_>, tree: &Value) -> bool {
    let once = |name: &str| {
        let quoted = format!("\"{name}\"");
        input.body.windows(quoted.len()).filter(|part| *part == quoted.as_bytes()).count() == 1
    };
    let types: Vec<_> = input.headers.get_all("content-type").iter().collect();
    let is_simple = tree.as_object().is_some_and(|object| {
        object.len() == 3 && object.values().all(|value| value.is_string() || value.is_u64())
    });
    let is_word = |text: &str| {
        (1..=MAX_TOKEN_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    is_simple
        && ["access_token", "token_type", "expires_in"].into_iter().all(once)
        && !input.body.contains(&b'\\')
        && types == ["application/json"]
        && !input.headers.contains_key("content-encoding")
        && tree["access_token"].as_str().is_some_and(is_word)
        && tree["token_type"] == "bearer"
        && tree["expires_in"].as_u64().is_some_and(|seconds| (1..1 << 50).contains(&seconds))
}

/// Any other status, and a provider that reflects the secret in every form that it has seen it in.
pub(crate) fn error_response(data: &[u8]) {
    let mut input = Input::of(data);
    let reflected = reflected(input.body);
    input.body = &reflected;
    let status = input.status.filter(|status| *status != 200).unwrap_or(400);
    let rejection =
        input.read(status, ScopeRule::Report).expect_err("a token comes with 200 and no other status");
    judge_rejection(rejection, status, &input);
}

/// The secret as it is, in a form, in JSON, in Base64 and beside the client's id in Base64.
fn forms() -> [String; 5] {
    let form: String = form_urlencoded::byte_serialize(SECRET.as_bytes()).collect();
    let json = serde_json::to_string(SECRET).unwrap().trim_matches('"').to_owned();
    let pair = STANDARD.encode(format!("id:{form}"));
    [SECRET.to_owned(), form, json, STANDARD.encode(SECRET), pair]
}

/// `{0}` to `{4}` in a body stand for the forms, escaped for JSON.
fn reflected(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len());
    let mut rest = body;
    while let Some((first, after)) = rest.split_first() {
        match rest {
            [b'{', digit @ b'0'..=b'4', b'}', after @ ..] => {
                let escaped = serde_json::to_string(&forms()[usize::from(digit - b'0')]).unwrap();
                out.extend_from_slice(&escaped.as_bytes()[1..escaped.len() - 1]);
                rest = after;
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

fn judge_rejection(rejection: Rejection, status: u16, input: &Input<'_>) {
    let printed = format!("{rejection:?}");
    let credentials = rejection.credentials;
    let failure = rejection.into_failure(&client(), &secret());
    assert!(failure.text.len() <= MAX_LINE && failure.text.bytes().all(|byte| matches!(byte, b' '..=b'~')));
    assert_eq!(failure.text.matches(" / ").count().min(2), 2, "what, why and what to do: {}", failure.text);
    for form in forms() {
        assert!(!failure.text.contains(&form) && !printed.contains(&form), "a secret: {}", failure.text);
    }
    // 32 letters and digits, not all of them small letters: what a token, a hash or a key looks like.
    let runs = failure.text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|run| run.len() >= 32);
    for run in runs {
        assert!(run.bytes().all(|byte| byte.is_ascii_lowercase()), "this may be a token: {run}");
    }
    assert!(failure.code.is_none_or(|code| KNOWN_CODES.contains(&code)));
    assert!(failure.retry_after.is_none_or(|wait| !wait.is_zero() && wait <= header::MAX));
    match status {
        429 => assert_eq!(failure.schedule, Schedule::RateLimited),
        500.. => assert_eq!(failure.schedule, Schedule::Transient, "a server's fault passes"),
        401 => assert_eq!(credentials, Credentials::Refused),
        _ => {}
    }
    let code = input.tree().and_then(|tree| Some(tree.get("error")?.as_str()?.to_owned()));
    if let (400..=499, Some("invalid_client"), Some("invalid_client")) =
        (status, code.as_deref(), failure.code)
    {
        assert_eq!(credentials, Credentials::Refused);
    }
}

/// A wait is honoured, and never for longer than an hour.
pub(crate) fn retry_after(data: &[u8]) {
    let Input { status, headers, .. } = Input::of(data);
    let status = status.unwrap_or(429);
    let wait = header::retry_after(status, &headers, WALL);
    assert!(wait.is_none_or(|wait| !wait.is_zero() && wait <= header::MAX));
    let values: Vec<_> =
        headers.get_all("retry-after").iter().filter_map(|value| value.to_str().ok()).collect();
    let reset = status == 429 && headers.contains_key("x-ratelimit-reset");
    if wait.is_some() {
        assert!(reset || !values.is_empty(), "nobody has asked for it");
    }
    let [value] = values[..] else { return };
    let number = value.len() <= 40 && !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    let date =
        (!headers.contains_key("date") && value.len() == 29).then(|| jiff::fmt::rfc2822::parse(value).ok());
    if number {
        let seconds = value.trim_start_matches('0').parse().unwrap_or(if value.contains(|c| c != '0') {
            u64::MAX
        } else {
            0
        });
        let asked = Some(Duration::from_secs(seconds).min(header::MAX)).filter(|wait| !wait.is_zero());
        assert!(wait == asked || (asked.is_none() && reset), "{value} became {wait:?}");
    } else if let (Some(Some(date)), Some(wait), false) = (date, wait, reset) {
        let millis = date.timestamp().as_millisecond() - WALL.unix_millis();
        assert_eq!(i64::try_from(wait.as_millis()).unwrap(), millis.min(3_600_000), "{value}");
    }
}

/// A URL that a secret is sent to: https, nothing of a user, and nothing of it in a fault.
pub(crate) fn endpoint(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(proxy) = super::ProxyUrl::parse(text) {
        assert!(!proxy.as_str().contains('@') && proxy.as_str().starts_with("http://"));
    }
    match Endpoint::parse(text) {
        Ok(endpoint) => {
            let url = endpoint.as_str();
            assert!(url.starts_with("https://") && !url.contains('#') && url.is_ascii());
            let authority = url["https://".len()..].split(['/', '?']).next().unwrap();
            assert!(!authority.is_empty() && !authority.contains('@'));
            assert!(endpoint.port() != 0 && !endpoint.host().is_empty() && !endpoint.is_plaintext());
            assert_eq!(Endpoint::parse(url).as_ref(), Ok(&endpoint), "what is printed is read as the same");
            let shown = format!("{endpoint} {endpoint:?} {}", endpoint.without_query());
            let Some((before, query)) = url.split_once('?') else { return };
            for credential in ["client_secret=", "password=", "access_token="] {
                assert!(!query.to_ascii_lowercase().starts_with(credential), "{url}");
            }
            let is_told = shown.contains(query) && !before.contains(query);
            assert!(query.len() < 16 || !is_told, "a query may hold a credential: {shown}");
        }
        Err(fault) => {
            let shown = format!("{fault} {fault:?}");
            assert!(shown.len() <= 300 && !shown.contains("c4n4ry"), "{shown}");
        }
    }
}
