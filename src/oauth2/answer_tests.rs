//! Answers as providers give them, and as they should not.

use ::http::{HeaderName, HeaderValue};
use zeroize::Zeroizing;

use super::*;
use crate::{
    failure::{Failure, FailureKind, Schedule},
    oauth2::{AuthMethod, BodyFormat, Credentials, Endpoint},
    secret::Secret,
};

// Sun, 22 Nov 2026 14:05:00 GMT
const WALL: WallTime = WallTime::from_unix_millis(1_795_356_300_000);
const JSON: (&str, &str) = ("content-type", "application/json");
const NO_STORE: (&str, &str) = ("cache-control", "no-store");
const GOOD: &str = r#"{"access_token":"tok-1","token_type":"bearer","expires_in":3599,"scope":"a b"}"#;

fn client() -> Client {
    Client {
        endpoint: Endpoint::parse("https://id.example.com/oauth2/token?tenant=x").unwrap(),
        client_id: "id".into(),
        auth_method: AuthMethod::ClientSecretPost,
        body: BodyFormat::Form,
        audience: None,
        resource: Vec::new(),
        scopes: scopes_of(&["a", "b"]),
        extra: Vec::new(),
    }
}

fn scopes_of(texts: &[&str]) -> Vec<Scope> {
    texts.iter().map(|text| Scope::parse(text).unwrap()).collect()
}

fn rules(scope: ScopeRule) -> Rules {
    Rules { assumed_lifetime: Duration::from_secs(3600), scope }
}

fn secret(text: &str) -> Secret {
    Secret::parse(Zeroizing::new(text.as_bytes().to_vec())).unwrap()
}

fn map(headers: &[(&str, &str)]) -> HeaderMap {
    let parse = |(name, value): &(&str, &str)| {
        (name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    let mut map = HeaderMap::new();
    for (name, value) in headers.iter().map(parse) {
        map.append(name, value);
    }
    map
}

fn read_with(
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
    end: &BodyEnd,
    scope: ScopeRule,
) -> Result<Grant, Rejection> {
    let headers = map(headers);
    let answer = Answer { status, headers: &headers, body, end };
    read(&answer, &client(), &rules(scope), WALL, &|bytes| Bytes::copy_from_slice(bytes))
}

fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Result<Grant, Rejection> {
    read_with(status, headers, body.as_bytes(), &BodyEnd::Whole, ScopeRule::Report)
}

fn granted(body: &str) -> Grant {
    answer(200, &[JSON, NO_STORE], body).unwrap_or_else(|rejection| panic!("{body}: {}", text(rejection)))
}

fn failure(rejection: Rejection) -> Failure {
    rejection.into_failure(&client(), &secret("canary-secret"))
}

fn text(rejection: Rejection) -> String {
    failure(rejection).text.into()
}

/// The answer is one that cannot be read: the provider's fault, and worth another try.
fn assert_unreadable(name: &str, result: Result<Grant, Rejection>, why: &str) {
    let rejection = result.expect_err(name);
    assert_eq!(rejection.credentials, Credentials::NotJudged, "{name}");
    let failure = failure(rejection);
    assert_eq!((failure.kind, failure.schedule), (FailureKind::ProviderError, Schedule::Transient), "{name}");
    assert!(failure.text.contains(why), "{name}: {}", failure.text);
}

#[test]
fn an_answer_of_the_rfc_is_a_token() {
    let grant = granted(GOOD);
    assert_eq!(grant.access_token.expose_secret(), "tok-1");
    assert_eq!(grant.scopes, scopes_of(&["a", "b"]));
    assert_eq!((grant.length, grant.source), (Duration::from_secs(3599), LifeSource::Provider));
    assert_eq!(grant.deviations, Deviations::default());
}

#[test]
fn members_without_a_meaning_here_are_ignored() {
    let grant = granted(
        r#"{"x":{"access_token":[[1e999]]},"refresh_token":"r","id_token":"i","issued_token_type":1,
            "access_token":"t","token_type":"BEARER","expires_in":60,"scope":"b a c","error":null}"#,
    );
    assert_eq!(grant.scopes, scopes_of(&["b", "a", "c"]));
    assert_eq!(grant.deviations, Deviations::default());
    assert_eq!(granted(&GOOD.replace('}', r#","error":""}"#)).access_token.expose_secret(), "tok-1");
}

#[test]
fn any_case_of_bearer_is_the_type_and_no_other_type_is() {
    for good in ["bearer", "Bearer", "BEARER", "\\u0062earer"] {
        granted(&GOOD.replace("bearer", good));
    }
    for bad in ["mac", "N_A", "DPoP", "", "bearer ", "bearer,mac"] {
        let body = GOOD.replace("bearer", bad);
        assert_unreadable(bad, answer(200, &[JSON], &body), "token_type is not Bearer");
    }
    for (bad, why) in [("null", "missing"), ("1", "not a string"), ("[\"bearer\"]", "not a string")] {
        assert_unreadable(bad, answer(200, &[JSON], &GOOD.replace("\"bearer\"", bad)), why);
    }
    assert_unreadable("none", answer(200, &[JSON], r#"{"access_token":"t","expires_in":60}"#), "missing");
}

#[test]
fn a_life_is_what_expires_in_says_within_bounds() {
    use Deviation::{AssumedLifetime, CutLifetime, ShortLifetime, TextualLifetime};
    for (raw, seconds, source, deviations) in [
        ("86400", 86_400, LifeSource::Provider, &[][..]),
        ("86400.5", 86_400, LifeSource::Provider, &[]),
        ("8.64e4", 86_400, LifeSource::Provider, &[]),
        ("\"86400\"", 86_400, LifeSource::Provider, &[TextualLifetime]),
        ("null", 3_600, LifeSource::Assumed, &[AssumedLifetime]),
        ("59", 59, LifeSource::Provider, &[ShortLifetime]),
        ("60", 60, LifeSource::Provider, &[]),
        ("2592000", 2_592_000, LifeSource::Provider, &[]),
        ("2592001", 2_592_000, LifeSource::Provider, &[CutLifetime]),
        ("9223372036854775808", 2_592_000, LifeSource::Provider, &[CutLifetime]),
        ("1e400", 2_592_000, LifeSource::Provider, &[CutLifetime]),
    ] {
        let grant = granted(&GOOD.replace("3599", raw));
        assert_eq!((grant.length, grant.source), (Duration::from_secs(seconds), source), "{raw}");
        assert_eq!(grant.deviations.iter().collect::<Vec<_>>(), deviations, "{raw}");
    }
    let absent = granted(r#"{"access_token":"t","token_type":"bearer"}"#);
    assert_eq!((absent.length.as_secs(), absent.source), (3_600, LifeSource::Assumed));
    for (raw, why) in [
        ("0", "expired already"),
        ("-1", "expired already"),
        ("true", "not a number"),
        ("\"\"", "not a number"),
        ("\"abc\"", "not a number"),
        ("[60]", "not a number"),
        ("{}", "not a number"),
    ] {
        assert_unreadable(raw, answer(200, &[JSON], &GOOD.replace("3599", raw)), why);
    }
}

#[test]
fn a_token_is_one_line_of_b64token() {
    for good in ["x", "a.b-c_d~e+f/g==", "a\\/b", &"x".repeat(4096), &"x".repeat(32 * 1024)] {
        let grant = granted(&GOOD.replace("tok-1", good));
        assert_eq!(grant.access_token.expose_secret(), good.replace("\\/", "/"));
    }
    for (bad, why) in [
        ("\"\"", "is empty"),
        ("\" \"", "no bearer token may hold"),
        ("\"a b\"", "no bearer token may hold"),
        ("\"a\\r\\nb\"", "no bearer token may hold"),
        ("\"a\\u0000\"", "no bearer token may hold"),
        ("\"a\\u001b[1m\"", "no bearer token may hold"),
        ("\"caf\u{e9}\"", "no bearer token may hold"),
        ("\"a=b\"", "no bearer token may hold"),
        ("\"\\ud800\"", "not a string"),
        ("null", "missing"),
        ("7", "not a string"),
        ("[\"t\"]", "not a string"),
        (&format!("\"{}\"", "x".repeat(32 * 1024 + 1)), "longer than 32 KiB"),
    ] {
        assert_unreadable(bad, answer(200, &[JSON], &GOOD.replace("\"tok-1\"", bad)), why);
    }
    let other_case = GOOD.replace("access_token", "Access_Token");
    assert_unreadable(
        "member names are case-sensitive",
        answer(200, &[JSON], &other_case),
        "access_token is missing",
    );
}

#[test]
fn scopes_are_the_granted_ones_or_those_asked_for() {
    for (raw, wanted, deviations) in [
        ("\"a b\"", &["a", "b"][..], &[][..]),
        ("\"b  a\"", &["b", "a"], &[]),
        ("null", &["a", "b"], &[]),
        ("\"a\"", &["a"], &[Deviation::NarrowerScope]),
        ("\"c\"", &["c"], &[Deviation::NarrowerScope]),
        ("\"\"", &[], &[Deviation::NarrowerScope]),
        ("[\"a\",\"b\"]", &["a", "b"], &[Deviation::ScopeArray]),
        ("[]", &[], &[Deviation::NarrowerScope, Deviation::ScopeArray]),
    ] {
        let body = GOOD.replace("\"a b\"", raw);
        let grant = granted(&body);
        assert_eq!(grant.scopes, scopes_of(wanted), "{raw}");
        assert_eq!(grant.deviations.iter().collect::<Vec<_>>(), deviations, "{raw}");

        let required = read_with(200, &[JSON], body.as_bytes(), &BodyEnd::Whole, ScopeRule::Require);
        assert_eq!(required.is_err(), deviations.contains(&Deviation::NarrowerScope), "{raw}");
        if let Err(rejection) = required {
            let failure = failure(rejection);
            assert_eq!((failure.kind, failure.schedule), (FailureKind::Refused, Schedule::Refusal), "{raw}");
            assert!(failure.text.contains("require_scope is set / let this client have"), "{}", failure.text);
        }
    }
    for raw in ["7", "{}", "true", "\"a\\nb\"", "\"\\\"\"", "[1]", "[\"a b\"]", "[[\"a\"]]"] {
        assert_unreadable(raw, answer(200, &[JSON], &GOOD.replace("\"a b\"", raw)), "not a list of scopes");
    }
}

#[test]
fn the_head_must_say_json_and_nothing_coded() {
    for good in ["application/json", "application/json;charset=UTF-8", "Application/JSON ; a=b; c=d"] {
        assert!(answer(200, &[("content-type", good)], GOOD).is_ok(), "{good}");
    }
    let missing = answer(200, &[NO_STORE], GOOD).unwrap();
    assert_eq!(missing.deviations.iter().collect::<Vec<_>>(), [Deviation::MissingContentType]);
    for bad in
        ["text/html", "application/x-www-form-urlencoded", "text/json", "", "application/jsonx", "\u{e9}"]
    {
        assert_unreadable(bad, answer(200, &[("content-type", bad)], GOOD), "Content-Type");
    }
    assert_unreadable("two types", answer(200, &[JSON, ("content-type", "text/html")], GOOD), "Content-Type");
    for coding in ["gzip", "br", "GZIP", "identity, gzip"] {
        let headers = [JSON, ("content-encoding", coding)];
        assert_unreadable(coding, answer(200, &headers, GOOD), "Content-Encoding");
    }
    assert!(answer(200, &[JSON, ("content-encoding", "identity")], GOOD).is_ok());
}

#[test]
fn a_server_that_allows_caching_or_has_another_time_is_noted() {
    for (headers, wanted) in [
        (&[JSON][..], Some(Deviation::Cacheable)),
        (&[JSON, ("cache-control", "no-cache")], Some(Deviation::Cacheable)),
        (&[JSON, ("cache-control", "private, No-Store, max-age=0")], None),
        (&[JSON, ("cache-control", "private"), NO_STORE], None),
        (&[JSON, NO_STORE, ("date", "Sun, 22 Nov 2026 14:05:09 GMT")], None),
        (&[JSON, NO_STORE, ("date", "Sun, 22 Nov 2026 14:10:00 GMT")], None),
        (&[JSON, NO_STORE, ("date", "Sun, 22 Nov 2026 14:10:01 GMT")], Some(Deviation::ClockSkew)),
        (&[JSON, NO_STORE, ("date", "Sun, 22 Nov 2026 13:55:00 GMT")], Some(Deviation::ClockSkew)),
        (&[JSON, NO_STORE, ("date", "yesterday")], None),
    ] {
        let grant = answer(200, headers, GOOD).unwrap();
        assert_eq!(grant.deviations.iter().next(), wanted, "{headers:?}");
        assert_eq!(grant.length, Duration::from_secs(3599));
    }
    let marked = answer(200, &[JSON, NO_STORE], &format!("\u{feff}{GOOD}")).unwrap();
    assert_eq!(marked.deviations.iter().collect::<Vec<_>>(), [Deviation::ByteOrderMark]);
}

#[test]
fn a_body_that_is_not_all_json_is_unreadable() {
    for (body, why) in [
        ("", "is empty"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("access_token=t&token_type=bearer", "not a JSON object"),
        (&GOOD[..40], "not JSON (line 1"),
        (&format!("{GOOD} x"), "not JSON (line 1"),
        (&GOOD.replace('}', r#","access_token":"tok-2"}"#), "twice"),
        (&GOOD.replace('}', &format!(r#","x":{}{}}}"#, "[".repeat(16), "]".repeat(16))), "deeper"),
    ] {
        assert_unreadable(body, answer(200, &[JSON], body), why);
    }
    let utf16: Vec<u8> = GOOD.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for body in [&utf16[..], b"\xff\xfe{\0}\0", b"{\"access_token\":\"\xff\"}"] {
        let result = read_with(200, &[JSON], body, &BodyEnd::Whole, ScopeRule::Report);
        assert_unreadable("not UTF-8 or no object", result, "the body is not");
    }
    let long = read_with(200, &[JSON], GOOD.as_bytes(), &BodyEnd::TooLong, ScopeRule::Report);
    assert_unreadable("too long", long, "longer than 64 KiB");
}

#[test]
fn a_body_that_was_cut_off_is_the_networks_fault() {
    let end = BodyEnd::Broken("connection reset".into());
    let failure = failure(read_with(200, &[JSON], GOOD.as_bytes(), &end, ScopeRule::Report).unwrap_err());
    assert_eq!((failure.kind, failure.schedule), (FailureKind::Unreachable, Schedule::Transient));
    assert!(failure.text.contains("connection reset / nothing, the agent tries again"), "{}", failure.text);
    assert!(failure.text.ends_with("check the network between here and there"), "{}", failure.text);
}

#[test]
fn only_200_brings_a_token() {
    for status in [101, 201, 202, 203, 204, 205, 206, 226] {
        assert_unreadable("2xx", answer(status, &[JSON], GOOD), &format!("answered {status} / "));
    }
}

#[test]
fn every_refusal_has_its_kind_and_its_schedule() {
    use Credentials::{NotJudged, Refused as WrongSecret};
    use FailureKind::{ProviderError, Refused};
    use Schedule::{RateLimited, Refusal, Transient};
    let code = |code: &str| format!(r#"{{"error":"{code}"}}"#);
    let mut cases = vec![
        (401, String::new(), Refused, Refusal, WrongSecret),
        (401, "<html>".into(), Refused, Refusal, WrongSecret),
        (401, code("invalid_client"), Refused, Refusal, WrongSecret),
        (401, code("access_denied"), Refused, Refusal, WrongSecret),
        (401, code("who_knows"), Refused, Refusal, WrongSecret),
        (401, code("temporarily_unavailable"), ProviderError, Transient, WrongSecret),
        (400, code("invalid_client"), Refused, Refusal, WrongSecret),
        (200, code("invalid_client"), Refused, Refusal, WrongSecret),
        (202, code("invalid_client"), Refused, Refusal, WrongSecret),
        (500, code("invalid_client"), ProviderError, Transient, NotJudged),
        (429, code("invalid_client"), ProviderError, RateLimited, WrongSecret),
        (400, code("who_knows"), Refused, Refusal, NotJudged),
        (400, String::new(), Refused, Refusal, NotJudged),
        (400, "<html>".into(), Refused, Refusal, NotJudged),
        (400, r#"{"error":7}"#.into(), Refused, Refusal, NotJudged),
        (403, code("access_denied"), Refused, Refusal, NotJudged),
        (200, code("incorrect_client_credentials"), Refused, Refusal, NotJudged),
        (200, r#"{"error":{"code":1}}"#.into(), Refused, Refusal, NotJudged),
        (200, GOOD.replace('}', r#","error":"slow_down"}"#), ProviderError, Transient, NotJudged),
        (429, String::new(), ProviderError, RateLimited, NotJudged),
        (500, code("invalid_scope"), ProviderError, Transient, NotJudged),
        (777, String::new(), ProviderError, Transient, NotJudged),
    ];
    for name in [
        "invalid_request",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
        "invalid_target",
    ] {
        cases.push((400, code(name), Refused, Refusal, NotJudged));
    }
    for name in ["temporarily_unavailable", "server_error", "slow_down"] {
        cases.extend(
            [200, 400, 403, 503].map(|status| (status, code(name), ProviderError, Transient, NotJudged)),
        );
    }
    for status in
        [300, 301, 302, 303, 304, 307, 308, 402, 403, 404, 405, 406, 410, 411, 413, 415, 418, 421, 431, 451]
    {
        cases.push((status, String::new(), Refused, Refusal, NotJudged));
    }
    for status in [408, 425, 500, 501, 502, 503, 504, 520, 599] {
        cases.push((status, "<html>".into(), ProviderError, Transient, NotJudged));
    }
    for (status, body, kind, schedule, credentials) in cases {
        let rejection = answer(status, &[JSON], &body).expect_err(&body);
        assert_eq!(rejection.credentials, credentials, "{status} {body}");
        let failure = failure(rejection);
        assert_eq!((failure.kind, failure.schedule), (kind, schedule), "{status} {body}");
        assert!(
            failure.text.starts_with(&format!("id.example.com:443 answered {status} / ")),
            "{}",
            failure.text
        );
        assert_eq!(failure.text.matches(" / ").count(), 2, "{}", failure.text);
    }
}

#[test]
fn every_refusal_says_why_and_what_to_do() {
    let paused = "nothing, the agent tries again; if it stays, ask the provider";
    let credentials = "check client_id, client_secret and auth_method";
    let grant = "allow the client_credentials grant";
    let rights = "check audience and scopes, and this client's rights";
    let others = "check audience, resource, scopes, extra, body and auth_method";
    for (status, code, why, remedy) in [
        (101, "", "is not answered with an interim status", paused),
        (204, "", "with status 200 only", paused),
        (302, "", "a redirect of a token request is never followed", "set token_url to the address"),
        (400, "", "refuses this request and does not say why", others),
        (401, "", "the client's credentials were refused", credentials),
        (403, "", "not allowed to do this", rights),
        (404, "", "no token endpoint at this address", "check token_url"),
        (405, "", "no token endpoint at this address", "check token_url"),
        (410, "", "no token endpoint at this address", "check token_url"),
        (408, "", "waited too long for the request", paused),
        (415, "", "a body of this type", "set body to the other of form and json"),
        (429, "", "too many requests", "nothing, the agent waits"),
        (503, "", "has a fault", paused),
        (400, "invalid_client", "invalid_client", credentials),
        (400, "unauthorized_client", "unauthorized_client", grant),
        (400, "unsupported_grant_type", "unsupported_grant_type", grant),
        (400, "invalid_scope", "invalid_scope", "check scopes against"),
        (400, "invalid_target", "invalid_target", "check audience and resource"),
        (400, "access_denied", "access_denied", rights),
        (400, "who_knows", "who_knows", others),
        (404, "who_knows", "who_knows", others),
        (503, "invalid_scope", "invalid_scope", paused),
    ] {
        let body = if code.is_empty() { "{}".to_owned() } else { format!(r#"{{"error":"{code}"}}"#) };
        let text = text(answer(status, &[JSON], &body).unwrap_err());
        let [_, said_why, said_remedy] = *text.split(" / ").collect::<Vec<_>>() else { panic!("{text}") };
        assert!(said_why.contains(why) && said_remedy.starts_with(remedy), "{status} {code}: {text}");
    }
}

#[test]
fn a_status_speaks_for_itself_where_the_body_cannot() {
    let body = br#"{"error":"temporarily_unavailable"}"#;
    let broken = BodyEnd::Broken("connection reset".into());
    for (headers, end) in
        [(&[][..], &BodyEnd::TooLong), (&[], &broken), (&[("content-encoding", "gzip")], &BodyEnd::Whole)]
    {
        let rejection = read_with(401, headers, body, end, ScopeRule::Report).unwrap_err();
        assert_eq!(rejection.credentials, Credentials::Refused);
        assert_eq!(failure(rejection).schedule, Schedule::Refusal, "{end:?}");
    }
}

#[test]
fn a_wait_that_the_provider_asks_for_is_passed_on() {
    for (status, value, seconds) in [
        (429, "120", Some(120)),
        (503, "7200", Some(3600)),
        (503, "Sun, 22 Nov 2026 14:06:00 GMT", Some(60)),
        (401, "30", Some(30)),
        (429, "soon", None),
    ] {
        let failure = failure(answer(status, &[("retry-after", value)], "").unwrap_err());
        assert_eq!(failure.retry_after.map(|wait| wait.as_secs()), seconds, "{status} {value}");
        let said = seconds.map(|seconds| format!("Retry-After {seconds} s"));
        assert!(failure.text.contains(said.as_deref().unwrap_or("answered 429 / ")), "{}", failure.text);
        assert_eq!(
            failure.text.contains("the most that is honoured"),
            seconds == Some(3600),
            "{}",
            failure.text
        );
    }
}

#[test]
fn the_providers_words_are_shown_cut_and_escaped() {
    let hydra = r#"{"error":"invalid_client","error_description":"Client authentication failed.",
        "error_hint":"The \"id\" is unknown\n","error_uri":"https://never.example/"}"#;
    assert_eq!(
        text(answer(401, &[JSON], hydra).unwrap_err()),
        "id.example.com:443 answered 401 / invalid_client: Client authentication failed. The \\\"id\\\" is unknown / \
         check client_id, client_secret and auth_method (a new secret may take 30 s to work)"
    );
    let auth0 = r#"{"error":"access_denied","error_description":"Unauthorized"}"#;
    assert!(text(answer(401, &[], auth0).unwrap_err()).contains("access_denied: Unauthorized / "));
    let no_token = r#"{"error":"x","access_token":"","error_description":"why"}"#;
    assert!(text(answer(400, &[], no_token).unwrap_err()).contains("x: why / "));
    let apostrophe = r#"{"error":"x","error_description":"it's"}"#;
    assert!(text(answer(400, &[], apostrophe).unwrap_err()).contains("x: it's / "));
    let long =
        format!(r#"{{"error":"{}","error_description":"{}"}}"#, "e".repeat(900), "\\u001b".repeat(9000));
    let line = text(answer(400, &[], &long).unwrap_err());
    assert!(line.len() < 600 && line.bytes().all(|b| matches!(b, b' '..=b'~')), "{line}");
    let no_text = text(answer(400, &[], r#"{"error":[],"error_description":{}}"#).unwrap_err());
    assert!(no_text.contains("an error that is no text / "), "{no_text}");
}

#[test]
fn no_line_holds_the_secret_or_the_token_that_a_provider_reflects() {
    let padding = "p".repeat(190);
    for body in [
        r#"{"error":"canary-secret","error_description":"canary-secret: unknown"}"#.to_owned(),
        r#"{"error":"x","error_description":"got id:canary-secret","error_hint":"canary-secret"}"#.to_owned(),
        r#"{"error":"x","error_description":"Basic aWQ6Y2FuYXJ5LXNlY3JldA=="}"#.to_owned(),
        r#"{"error":"x","error_description":"canary\u002dsecret"}"#.to_owned(),
        // The cut must not fall into the middle of it.
        format!(r#"{{"error":"x","error_description":"{padding}canary-secret"}}"#),
        r#"{"error":"x","access_token":"canary-token","error_description":"canary-token"}"#.to_owned(),
        r#"{"access_token":"canary-token","token_type":"canary-token","expires_in":60}"#.to_owned(),
        r#"{"access_token":"canary token","token_type":"bearer","expires_in":60}"#.to_owned(),
        r#"{"access_token":"canary-token","token_type":"bearer","expires_in":"canary-token"}"#.to_owned(),
        r#"{"access_token":"canary-token","token_type":"bearer","scope":"canary\ttoken"}"#.to_owned(),
        r#"{"access_token":"canary-token",canary-token"#.to_owned(),
    ] {
        for status in [200, 400, 401, 500] {
            let rejection = answer(status, &[JSON], &body).expect_err(&body);
            let printed = format!("{rejection:?}");
            assert!(
                printed.contains(&status.to_string()) && !printed.contains("canary"),
                "{body}: {printed}"
            );
            let failure = failure(rejection);
            let line = format!("{}{failure:?}", failure.text);
            assert!(!line.contains("canary") && !line.contains("Y2FuYXJ5"), "{status} {body}: {line}");
            assert!(!line.contains("aWQ6"), "{status} {body}: {line}");
        }
    }
}

#[test]
fn the_token_is_copied_once_to_where_it_stays() {
    let copies = std::cell::Cell::new(0);
    let headers = map(&[JSON]);
    let answer = Answer { status: 200, headers: &headers, body: GOOD.as_bytes(), end: &BodyEnd::Whole };
    let keep = |bytes: &[u8]| {
        copies.set(copies.get() + 1);
        Bytes::copy_from_slice(bytes)
    };
    read(&answer, &client(), &rules(ScopeRule::Report), WALL, &keep).unwrap();
    assert_eq!(copies.get(), 1);
}
