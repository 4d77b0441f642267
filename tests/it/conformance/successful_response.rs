//! Answers that bring a token, and answers that look as if they did.

use std::time::Duration;

use bloom_agent::{
    clock::Clock as _,
    dev_issuer::{Ending, Fault, Reply},
    pb,
};
use bytes::Bytes;
use http::{StatusCode, header};

use super::{
    bench::{
        Bench, DAY, HOUR, LEAST, MINUTE, PASSING, REFUSED, SECOND, UNREACHABLE, answer, body, error, form,
        http_date, with_header, without_header,
    },
    rows,
    tls_server::{TlsServer, http as over_the_wire},
};
use crate::support::{BLOOM, Setting, refusal};

rows! {
    the_rfcs_answer => "200 with JSON, `access_token` and `token_type` is a token", "RFC 6749 §5.1";
    any_case_of_bearer => "`token_type` is `Bearer` in any case of its letters", "RFC 6749 §5.1";
    no_other_type => "A `token_type` that is not understood, missing, null, empty or no string is refused", "RFC 6749 §7.1";
    life_from_the_start_of_the_request => "The life is counted from the start of the request, on the clock that runs in suspend", "RFC 6749 §5.1";
    a_life_in_a_string => "`expires_in` as a string is read as a number, and counted as a deviation", "policy";
    a_life_with_a_fraction => "`expires_in` with a fraction is rounded down; an exponent is read", "policy";
    a_life_that_is_not_told => "A missing or null `expires_in` is `assumed_lifetime`, shown as assumed, and never endless", "RFC 6749 §5.1";
    a_life_that_is_over => "`expires_in` of zero or less is refused, without a tight loop", "policy";
    a_short_life => "A life below a minute is served and refreshed no faster than the floor, and warned of once", "policy";
    a_huge_life => "A huge `expires_in` is cut to 30 days, and nothing overflows", "policy";
    a_life_of_another_type => "An `expires_in` that is no number is refused; null counts as absent", "policy";
    a_clock_set_meanwhile => "A wall clock that is set during the request changes no life", "policy";
    a_jwt_is_opaque => "An access token is opaque: what a JWT says of itself decides nothing", "RFC 6749 §1.4";
    unknown_members => "Members that are not known are ignored, at any depth up to 16", "RFC 6749 §5.1";
    names_have_a_case => "The names of members are case-sensitive", "RFC 6749 §5.1";
    a_member_twice => "A member that means something and is there twice is refused", "RFC 6749 §3.2";
    a_refresh_token => "A `refresh_token` is ignored: never used, never shown", "RFC 6749 §4.4.3";
    other_tokens => "`id_token` and `issued_token_type` are ignored", "RFC 6749 §5.1";
    another_scope => "A narrower scope is taken, shown and warned of once, or refused with `require_scope`; an absent one is the one asked for", "RFC 6749 §5.1";
    the_size_of_a_token => "A token of 1 byte to 32 KiB is taken, a longer one is refused", "policy";
    the_characters_of_a_token => "A token that is not visible ASCII, or no `b64token`, is refused", "RFC 6750 §2.1";
    an_empty_token => "An empty token, or one of spaces, is refused", "RFC 6749 Appendix A.12";
    the_content_type => "`application/json` with any parameters and in any case is taken, none at all is counted, another is refused", "RFC 6749 §5.1";
    the_encoding_of_the_text => "A byte order mark is skipped; UTF-16, broken UTF-8 and anything after the JSON are refused", "RFC 8259 §8.1";
    a_body_that_is_not_whole => "A body that is no object, empty, cut off, or not of its Content-Length is refused", "RFC 9112 §8";
    nothing_is_cached => "An answer without `Cache-Control: no-store` is taken and counted; the client has no cache", "RFC 6749 §5.1";
    no_compression => "A content coding is not offered, and refused where it comes all the same", "policy";
    an_error_with_200 => "200 with an `error` member is an error answer, whatever is beside it", "policy";
    another_2xx => "201, 202, 203, 204 and 206 bring no token", "RFC 6749 §5.1";
    no_cookies => "A cookie is neither kept nor sent", "policy";
}

async fn the_rfcs_answer() {
    let bench = Bench::new().await;
    let reply =
        answer(&[("access_token", "\"2YotnFZFEjr1zCsicMWpAA\""), ("example_parameter", "\"example_value\"")]);
    let token = bench.accepts("the RFC's own", reply).await;
    assert_eq!((&*token.access_token, &*token.token_type), ("2YotnFZFEjr1zCsicMWpAA", "Bearer"));
    assert_eq!(token.scopes, ["data-access:all"]);
    // Only the two are needed.
    let least = answer(&[("expires_in", ""), ("scope", "")]);
    bench.accepts("the least", least).await;
    bench.hide(&token.access_token);
    bench.end().await;
}

async fn any_case_of_bearer() {
    let bench = Bench::new().await;
    for good in ["\"bearer\"", "\"Bearer\"", "\"BEARER\"", "\"bEaReR\"", "\"\\u0042earer\""] {
        let token = bench.accepts(good, answer(&[("token_type", good)])).await;
        assert_eq!(token.token_type, "Bearer");
    }
    bench.end().await;
}

async fn no_other_type() {
    let bench = Bench::new().await;
    for bad in [
        "\"mac\"",
        "\"N_A\"",
        "\"DPoP\"",
        "",
        "null",
        "1",
        "\"\"",
        "[\"bearer\"]",
        "\"bearer \"",
        "\"bearer,mac\"",
        "true",
    ] {
        bench.rejects_reply(bad, answer(&[("token_type", bad)]), PASSING).await;
    }
    bench.end().await;
}

async fn life_from_the_start_of_the_request() {
    let bench = Bench::new().await;
    bench.agent.issuer.push_fault(Fault::reply(answer(&[("expires_in", "86400")])).held());
    let count = bench.agent.issuer.request_count();
    bench.agent.time.advance_to(bench.agent.next_attempt(BLOOM).await);
    let started = bench.agent.time.now();
    bench.agent.issuer.wait_for_request(count + 1).await;
    bench.agent.time.advance(7 * SECOND);
    let settled = bench.agent.attempts(BLOOM).settled;
    bench.agent.issuer.release();
    bench.agent.attempts_until(BLOOM, |attempts| attempts.settled > settled).await;
    assert_eq!(bench.agent.served_until(BLOOM), started.boot + DAY - 5 * SECOND, "less the skew");
    let token = bench.token().await;
    let millis = |at: prost_types::Timestamp| at.seconds * 1000 + i64::from(at.nanos) / 1_000_000;
    assert_eq!(millis(token.obtained_at.unwrap()), started.wall.unix_millis());
    assert_eq!(millis(token.expires_at.unwrap()), (started.wall + DAY).unix_millis());
    bench.end().await;
}

/// The life that a token of this `expires_in` has, and whether it is assumed.
async fn life(bench: &Bench, expires_in: &str) -> (Duration, bool) {
    let token = bench.accepts(expires_in, answer(&[("expires_in", expires_in)])).await;
    let (from, to) = (token.obtained_at.unwrap(), token.expires_at.unwrap());
    let status = bench.client.status().await.unwrap().profiles.remove(0);
    (Duration::from_secs(u64::try_from(to.seconds - from.seconds).unwrap()), status.assumed_lifetime)
}

async fn a_life_in_a_string() {
    let bench = Bench::new().await;
    assert_eq!(life(&bench, "\"86400\"").await, (DAY, false));
    assert_eq!(bench.deviations("textual_lifetime").await, 1);
    assert_eq!(life(&bench, "\"3599.9\"").await, (3599 * SECOND, false));
    assert_eq!(bench.deviations("textual_lifetime").await, 2);
    assert_eq!(life(&bench, "86400").await, (DAY, false));
    assert_eq!(bench.deviations("textual_lifetime").await, 2);
    bench.end().await;
}

async fn a_life_with_a_fraction() {
    let bench = Bench::new().await;
    for (written, seconds) in [
        ("86400.0", 86_400),
        ("86400.5", 86_400),
        ("86400.999999999999999999999", 86_400),
        ("8.64e4", 86_400),
        ("8.64E+4", 86_400),
        ("864000000e-4", 86_400),
        ("3599.5e0", 3_599),
    ] {
        assert_eq!(life(&bench, written).await, (seconds * SECOND, false), "{written}");
    }
    bench.end().await;
}

async fn a_life_that_is_not_told() {
    let bench = Bench::new().await;
    for absent in ["", "null"] {
        assert_eq!(life(&bench, absent).await, (HOUR, true), "{absent:?}");
    }
    assert_eq!(bench.deviations("assumed_lifetime").await, 2);
    assert_eq!(life(&bench, "7200").await, (2 * HOUR, false));
    bench.end().await;
    let bench = Bench::with("assumed_lifetime = '10m'").await;
    assert_eq!(life(&bench, "").await, (10 * MINUTE, true));
    bench.agent.time.advance_to(bench.agent.served_until(BLOOM) - Duration::from_nanos(1));
    bench.end().await;
}

async fn a_life_that_is_over() {
    let bench = Bench::new().await;
    for bad in ["0", "-1", "-86400", "0.0", "0.9", "-0", "1e-9", "\"0\"", "\"-1\""] {
        bench.rejects_reply(bad, answer(&[("expires_in", bad)]), PASSING).await;
    }
    bench.end().await;

    // From the beginning, for an hour: nobody gets such a token, and the provider is asked now and then.
    let dead = |issuer: &bloom_agent::dev_issuer::Control| {
        issuer.set_rule(Some(Fault::reply(answer(&[("expires_in", "0")]))));
    };
    let bench = Bench::begin(Setting { before: dead, ..Setting::default() }).await;
    bench.agent.attempts_until(BLOOM, |attempts| attempts.settled > 0).await;
    let end = bench.agent.time.now().boot + HOUR;
    while bench.agent.next_attempt(BLOOM).await < end {
        bench.agent.pass_an_attempt(BLOOM).await;
    }
    let call = bench.client.begin_get(BLOOM).await;
    bench.agent.pass_an_attempt(BLOOM).await;
    let status = call.await.unwrap().expect_err("there is no token");
    assert_eq!(refusal(&status).1, "PROVIDER_ERROR");
    // Windows of 30 s, of which a tenth to the whole is waited.
    let asked = bench.agent.issuer.request_count();
    assert!((100..400).contains(&asked), "{asked} requests in an hour");
    bench.end().await;
}

async fn a_short_life() {
    let mut setting = Setting::default();
    setting.issuer.lifetime = 20 * SECOND;
    let bench = Bench::start(setting).await;
    let begin = bench.agent.time.now().boot;
    for _ in 0..30 {
        bench.agent.pass_an_attempt(BLOOM).await;
        bench.token().await;
    }
    let took = bench.agent.time.now().boot.since(begin);
    assert!(took >= 30 * LEAST && took <= 30 * 20 * SECOND, "{took:?}");
    // A token is there all the time: each comes before the one before it ends.
    assert_eq!(bench.agent.log().matches("the token has expired").count(), 0);
    // Below the floor it cannot be: there is a gap, and no request more.
    bench.agent.issuer.set_lifetime(SECOND);
    for _ in 0..3 {
        bench.agent.pass_an_attempt(BLOOM).await;
        bench.token().await;
        bench.agent.time.advance_to(bench.agent.served_until(BLOOM));
        assert!(bench.agent.next_attempt(BLOOM).await.since(bench.agent.time.now().boot) >= LEAST - SECOND);
    }
    let log = bench.agent.log();
    assert_eq!(log.matches("expires_in is below a minute").count(), 1, "said once");
    assert!(bench.deviations("short_lifetime").await >= 33, "and counted each time");
    bench.end().await;

    for seconds in [1, 2, 9, 30, 59] {
        let mut setting = Setting::default();
        setting.issuer.lifetime = seconds * SECOND;
        let bench = Bench::start(setting).await;
        let token = bench.token().await;
        let skew = (5 * SECOND).min(seconds * SECOND / 20);
        let until = token.obtained_at.unwrap().seconds - bench.agent.time.now().wall.unix_millis() / 1000;
        assert_eq!(until, 0);
        let served = bench.agent.served_until(BLOOM).since(bench.agent.time.now().boot);
        assert_eq!(served, seconds * SECOND - skew);
        bench.end().await;
    }
}

async fn a_huge_life() {
    let bench = Bench::new().await;
    for huge in [
        "2592001",
        "2147483648",
        "9007199254740992",
        "9223372036854775808",
        "18446744073709551616",
        "1e400",
        "\"1e400\"",
        "1e99999999999999999999999",
    ] {
        assert_eq!(life(&bench, huge).await, (30 * DAY, false), "{huge}");
    }
    assert_eq!(bench.deviations("cut_lifetime").await, 8);
    assert_eq!(life(&bench, "2592000").await, (30 * DAY, false));
    assert_eq!(bench.deviations("cut_lifetime").await, 8);
    bench.end().await;
}

async fn a_life_of_another_type() {
    let bench = Bench::new().await;
    for bad in ["\"\"", "\"abc\"", "true", "false", "[86400]", "{}", "\"0x10\"", "\" 86400\"", "\"Infinity\""]
    {
        bench.rejects_reply(bad, answer(&[("expires_in", bad)]), PASSING).await;
    }
    assert_eq!(life(&bench, "null").await, (HOUR, true));
    bench.end().await;
}

async fn a_clock_set_meanwhile() {
    for (step, name) in [(HOUR, "ahead"), (3650 * DAY, "ten years ahead")] {
        for forward in [true, false] {
            let bench = Bench::new().await;
            bench.agent.issuer.push_fault(Fault::reply(answer(&[("expires_in", "86400")])).held());
            let count = bench.agent.issuer.request_count();
            bench.agent.time.advance_to(bench.agent.next_attempt(BLOOM).await);
            let started = bench.agent.time.now();
            bench.agent.issuer.wait_for_request(count + 1).await;
            bench.agent.time.set_wall(if forward { started.wall + step } else { started.wall - step });
            let settled = bench.agent.attempts(BLOOM).settled;
            bench.agent.issuer.set_rule(Some(Fault::status(StatusCode::BAD_GATEWAY)));
            bench.agent.issuer.release();
            bench.agent.attempts_until(BLOOM, |attempts| attempts.settled > settled).await;
            let token = bench.token().await;
            assert_eq!(bench.agent.served_until(BLOOM), started.boot + DAY - 5 * SECOND, "{name} {forward}");
            assert_eq!(
                token.expires_at.unwrap().seconds,
                (started.wall + DAY).unix_millis() / 1000,
                "{name} {forward}: of the clock as the request began"
            );
            bench.end().await;
        }
    }
}

/// A JWT without a signature that lives from 1970 to 1970, or to 2286.
fn jwt(expires: u64) -> String {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.", part(r#"{"alg":"none"}"#), part(&format!(r#"{{"exp":{expires},"aud":"another"}}"#)))
}

async fn a_jwt_is_opaque() {
    let bench = Bench::new().await;
    for (expires, expires_in) in [(1, 7200), (9_999_999_999, 60)] {
        let (token, seconds) = (format!("\"{}\"", jwt(expires)), expires_in.to_string());
        let token =
            bench.accepts("a JWT", answer(&[("access_token", &token), ("expires_in", &seconds)])).await;
        assert_eq!(token.access_token, jwt(expires));
        let until = bench.agent.served_until(BLOOM).since(bench.agent.time.now().boot);
        let skew = (5 * SECOND).min(Duration::from_secs(expires_in) / 20);
        assert_eq!(until, Duration::from_secs(expires_in) - skew);
        bench.hide(&token.access_token);
    }
    // What is no JWT, and only looks like one, is as good.
    for odd in ["a.b.c", "a..b", "...", "eyJ.eyJ.sig"] {
        bench.accepts(odd, answer(&[("access_token", &format!("\"{odd}\""))])).await;
    }
    bench.end().await;
}

async fn unknown_members() {
    let bench = Bench::new().await;
    let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    for value in ["null", "1e999", "\"x\"", "{\"access_token\":\"c4n4ry\",\"access_token\":2}", &nested(15)] {
        let token = bench.accepts(value, answer(&[("x", value), ("\u{e9}", value), ("Error", value)])).await;
        assert!(token.access_token.starts_with("conformance."));
    }
    for depth in [16, 17, 5_000, 30_000] {
        bench.rejects_reply(&depth.to_string(), answer(&[("x", &nested(depth))]), PASSING).await;
    }
    bench.hide("c4n4ry");
    bench.end().await;
}

async fn names_have_a_case() {
    let bench = Bench::new().await;
    for (name, wrong) in [
        ("access_token", "Access_Token"),
        ("access_token", "ACCESS_TOKEN"),
        ("access_token", "accessToken"),
        ("token_type", "Token_Type"),
    ] {
        let text = body(&[]).replace(&format!("\"{name}\""), &format!("\"{wrong}\""));
        bench.rejects_reply(wrong, Reply::json(StatusCode::OK, text), PASSING).await;
    }
    // The life of one is not the life of the other.
    let text = body(&[("expires_in", "7200"), ("Expires_In", "60")]);
    let token = bench.accepts("Expires_In", Reply::json(StatusCode::OK, text)).await;
    assert_eq!(token.expires_at.unwrap().seconds - token.obtained_at.unwrap().seconds, 7200);
    bench.end().await;
}

async fn a_member_twice() {
    let bench = Bench::new().await;
    for (name, value) in [
        ("access_token", "\"c4n4ry\""),
        ("token_type", "\"bearer\""),
        ("expires_in", "60"),
        ("scope", "\"data-access:all\""),
        ("access\\u005ftoken", "\"c4n4ry\""),
    ] {
        let good = body(&[]);
        let first = format!("{{\"{name}\":{value},{}", &good[1..]);
        let last = format!("{},\"{name}\":{value}}}", &good[..good.len() - 1]);
        for text in [first, last] {
            bench.rejects_reply(name, Reply::json(StatusCode::OK, text), PASSING).await;
        }
    }
    let twice = "{\"error\":\"invalid_scope\",\"error\":\"invalid_client\"}";
    bench.rejects_reply("error", Reply::json(StatusCode::OK, twice), PASSING).await;
    bench.hide("c4n4ry");
    bench.end().await;
}

async fn a_refresh_token() {
    let bench = Bench::new().await;
    bench.hide("c4n4ry-refresh");
    let token =
        bench.accepts("with a refresh_token", answer(&[("refresh_token", "\"c4n4ry-refresh\"")])).await;
    assert!(!format!("{token:?}").contains("refresh_token"));
    bench.recovers("the next").await;
    let request = bench.last_request();
    let parameters = form(&request);
    assert!(parameters.contains(&("grant_type".to_owned(), "client_credentials".to_owned())));
    assert!(!format!("{parameters:?}{:?}", request.headers).contains("c4n4ry"));
    // Whatever stands there.
    for odd in ["7", "null", "{}", "\"\""] {
        bench.accepts(odd, answer(&[("refresh_token", odd)])).await;
    }
    bench.end().await;
}

async fn other_tokens() {
    let bench = Bench::new().await;
    bench.hide("c4n4ry-id");
    for (name, value) in [
        ("id_token", "\"c4n4ry-id.x.y\""),
        ("id_token", "7"),
        ("issued_token_type", "\"urn:ietf:params:oauth:token-type:jwt\""),
        ("issued_token_type", "[]"),
        ("not_before_policy", "0"),
    ] {
        let token = bench.accepts(name, answer(&[(name, value)])).await;
        assert!(token.access_token.starts_with("conformance."));
    }
    bench.end().await;
}

async fn another_scope() {
    const TWO: &str = "scopes = ['data-access:all', 'furnishment:all']";
    let bench = Bench::with(TWO).await;
    for (scope, granted) in [
        ("", &["data-access:all", "furnishment:all"][..]),
        ("null", &["data-access:all", "furnishment:all"]),
        ("\"furnishment:all data-access:all\"", &["furnishment:all", "data-access:all"]),
        ("\"data-access:all furnishment:all more\"", &["data-access:all", "furnishment:all", "more"]),
        ("\"data-access:all\"", &["data-access:all"]),
        ("\"other\"", &["other"]),
        ("\"\"", &[]),
    ] {
        let token = bench.accepts(scope, answer(&[("scope", scope)])).await;
        assert_eq!(token.scopes, granted, "{scope}");
        assert_eq!(bench.client.list().await[0].scopes, granted, "{scope}");
    }
    assert_eq!(bench.deviations("narrower_scope").await, 3);
    let log = bench.agent.log();
    let told = log.lines().filter(|line| line.contains("fewer scopes are granted")).collect::<Vec<_>>();
    assert!(told.len() == 1 && told[0].contains(" WARN "), "{told:?}");
    for bad in ["7", "{}", "\"a\\nb\"", "\"\\\"\""] {
        bench.rejects_reply(bad, answer(&[("scope", bad)]), PASSING).await;
    }
    bench.end().await;

    let bench = Bench::with(&format!("{TWO}\nrequire_scope = true")).await;
    for narrower in ["\"data-access:all\"", "\"\"", "\"other\"", "\"DATA-ACCESS:ALL furnishment:all\""] {
        bench.rejects_reply(narrower, answer(&[("scope", narrower)]), REFUSED).await;
    }
    for enough in ["", "\"furnishment:all data-access:all\""] {
        bench.accepts(enough, answer(&[("scope", enough)])).await;
    }
    bench.end().await;
}

async fn the_size_of_a_token() {
    let bench = Bench::new().await;
    for length in [1, 4 * 1024, 16 * 1024, 32 * 1024] {
        let text = "t".repeat(length);
        let token =
            bench.accepts(&length.to_string(), answer(&[("access_token", &format!("\"{text}\""))])).await;
        assert_eq!(token.access_token, text);
    }
    for length in [32 * 1024 + 1, 60 * 1024, 70 * 1024] {
        let text = format!("\"{}\"", "t".repeat(length));
        bench.rejects_reply(&length.to_string(), answer(&[("access_token", &text)]), PASSING).await;
    }
    bench.end().await;
}

async fn the_characters_of_a_token() {
    let bench = Bench::new().await;
    for good in ["a.b-c_d~e+f/g==", "A9", "a\\/b", "\\u0061"] {
        bench.accepts(good, answer(&[("access_token", &format!("\"{good}\""))])).await;
    }
    for bad in [
        "c4n4ry\\r\\nX: y",
        "c4n4ry\\n",
        "c4n4ry\\u0000",
        "c4n4ry\\u001b[1m",
        "c4n4ry\\u007f",
        "c4n4ry\u{e9}",
        "c4n4ry\\u00e9",
        "c4n4ry x",
        "c4n4ry\\\"",
        "c4n4ry=x",
        "=",
        "c4n4ry,x",
        "c4n4ry:x",
        "\\ud800",
    ] {
        bench.rejects_reply(bad, answer(&[("access_token", &format!("\"{bad}\""))]), PASSING).await;
    }
    bench.hide("c4n4ry");
    bench.end().await;
}

async fn an_empty_token() {
    let bench = Bench::new().await;
    for bad in ["", "null", "\"\"", "\" \"", "\"   \"", "7", "[\"t\"]", "{}", "true"] {
        bench.rejects_reply(bad, answer(&[("access_token", bad)]), PASSING).await;
    }
    bench.end().await;
}

async fn the_content_type() {
    let bench = Bench::new().await;
    for good in [
        "application/json",
        "application/json;charset=UTF-8",
        "Application/JSON",
        "APPLICATION/json ; charset=\"utf-8\"; x=y",
    ] {
        bench.accepts(good, with_header(answer(&[]), "content-type", good.as_bytes())).await;
    }
    assert_eq!(bench.deviations("missing_content_type").await, 0);
    bench.accepts("none", without_header(answer(&[]), header::CONTENT_TYPE)).await;
    assert_eq!(bench.deviations("missing_content_type").await, 1);
    for bad in [
        &b"text/html"[..],
        b"text/plain",
        b"application/x-www-form-urlencoded",
        b"application/jsonx",
        b"application/problem+json",
        b"",
        b"\xff",
    ] {
        let name = String::from_utf8_lossy(bad).into_owned();
        bench.rejects_reply(&name, with_header(answer(&[]), "content-type", bad), PASSING).await;
    }
    let a_form = Reply { body: "access_token=t&token_type=bearer&expires_in=3600".into(), ..answer(&[]) };
    bench.rejects_reply("a form that says JSON", a_form.clone(), PASSING).await;
    let honest = with_header(a_form, "content-type", b"application/x-www-form-urlencoded");
    bench.rejects_reply("a form", honest, PASSING).await;
    bench.end().await;
}

async fn the_encoding_of_the_text() {
    let bench = Bench::new().await;
    let of = |bytes: Vec<u8>| Reply { body: bytes.into(), ..answer(&[]) };
    bench.accepts("a byte order mark", of(["\u{feff}".as_bytes(), body(&[]).as_bytes()].concat())).await;
    assert_eq!(bench.deviations("byte_order_mark").await, 1);
    bench.accepts("white space after it", of((body(&[]) + " \r\n\t").into_bytes())).await;
    let good = body(&[]);
    let wide = |order: fn(u16) -> [u8; 2]| good.encode_utf16().flat_map(order).collect::<Vec<u8>>();
    for (what, bytes) in [
        ("UTF-16, little", wide(u16::to_le_bytes)),
        ("UTF-16, big, marked", [b"\xfe\xff".to_vec(), wide(u16::to_be_bytes)].concat()),
        ("two marks", ["\u{feff}\u{feff}".as_bytes(), good.as_bytes()].concat()),
        (
            "broken UTF-8 in the token",
            good.replace("conformance", "\u{0}")
                .into_bytes()
                .iter()
                .map(|b| if *b == 0 { 0xff } else { *b })
                .collect(),
        ),
        (
            "broken UTF-8 in a member that is not read",
            [&good.as_bytes()[..good.len() - 1], b",\"x\":\"\xc3\"}"].concat(),
        ),
        ("text after it", (good.clone() + " x").into_bytes()),
        ("another object after it", good.repeat(2).into_bytes()),
        ("a NUL after it", (good.clone() + "\0").into_bytes()),
    ] {
        bench.rejects_reply(what, of(bytes), PASSING).await;
    }
    bench.end().await;
}

async fn a_body_that_is_not_whole() {
    let bench = Bench::new().await;
    let good = body(&[]);
    for text in [
        "",
        "[]",
        "null",
        "\"text\"",
        "7",
        "{",
        "{}",
        &good[..good.len() - 1],
        &good[..10],
        &format!("[{good}]"),
    ] {
        let reply = Reply { body: Bytes::from(text.to_owned()), ..answer(&[]) };
        bench.rejects_reply(text, reply, PASSING).await;
    }
    for sent in [0, 10, good.len() - 1] {
        let cut = Fault::part(answer(&[]), sent, Ending::Close);
        bench.rejects("cut off", cut, UNREACHABLE).await;
    }
    bench.end().await;

    let server = TlsServer::new().await;
    let bench = server.bench().await;
    let declared = |length: usize| {
        let text = String::from_utf8(over_the_wire("200 OK", &good)).unwrap();
        text.replace(&format!("content-length: {}", good.len()), &format!("content-length: {length}"))
    };
    for (length, verdict) in [(good.len() + 1, UNREACHABLE), (good.len() - 1, PASSING), (0, PASSING)] {
        let text = declared(length);
        bench.fails("another Content-Length", verdict, server.answer(text.as_bytes())).await;
        tokio::join!(bench.recovers("well again"), server.answer_well());
    }
    bench.end().await;
}

async fn nothing_is_cached() {
    let bench = Bench::new().await;
    bench.accepts("no Cache-Control", without_header(answer(&[]), header::CACHE_CONTROL)).await;
    bench
        .accepts("no-store among others", with_header(answer(&[]), "cache-control", b"private, No-Store"))
        .await;
    assert_eq!(bench.deviations("cacheable").await, 1);
    let cacheable = with_header(answer(&[]), "cache-control", b"public, max-age=86400, immutable");
    let cacheable = with_header(cacheable, "etag", b"\"1\"");
    let cacheable = with_header(cacheable, "last-modified", http_date(1_600_000_000).as_bytes());
    let count = bench.agent.issuer.request_count();
    bench.accepts("cacheable", cacheable).await;
    bench.recovers("the next").await;
    assert_eq!(bench.agent.issuer.request_count(), count + 2, "each is a request");
    let headers = bench.last_request().headers;
    for name in ["if-none-match", "if-modified-since", "if-match", "cache-control", "range"] {
        assert!(!headers.contains_key(name), "{name}");
    }
    assert_eq!(bench.deviations("cacheable").await, 2);
    bench.end().await;
}

async fn no_compression() {
    let bench = Bench::new().await;
    assert_eq!(bench.last_request().headers[header::ACCEPT_ENCODING], "identity");
    for coding in ["gzip", "GZIP", "br", "deflate", "zstd", "x-gzip", "identity, gzip"] {
        let reply = with_header(answer(&[]), "content-encoding", coding.as_bytes());
        bench.rejects_reply(coding, reply, PASSING).await;
    }
    // As gzip writes ten nothings: it is not unpacked to be looked at.
    let packed =
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\x33\x30\x80\x01\x00\x29\xc8\x96\x16\x0a\x00\x00\x00";
    let reply = Reply { body: Bytes::from_static(packed), ..answer(&[]) };
    bench.rejects_reply("packed", with_header(reply.clone(), "content-encoding", b"gzip"), PASSING).await;
    bench.rejects_reply("packed and not told", reply, PASSING).await;
    bench.accepts("identity", with_header(answer(&[]), "content-encoding", b"identity")).await;
    bench.end().await;
}

async fn an_error_with_200() {
    let bench = Bench::new().await;
    for (code, verdict) in
        [("incorrect_client_credentials", REFUSED), ("invalid_scope", REFUSED), ("slow_down", PASSING)]
    {
        let alone = Reply { status: StatusCode::OK, ..error(400, code) };
        let text = bench.rejects_reply(code, alone, verdict.clone()).await;
        assert!(text.contains(code), "{text}");
        let code = format!("\"{code}\"");
        bench.rejects_reply("with a token", answer(&[("error", &code)]), verdict).await;
    }
    for (value, verdict) in [("{\"code\":1}", REFUSED), ("7", REFUSED)] {
        bench.rejects_reply(value, answer(&[("error", value)]), verdict).await;
    }
    for nothing in ["null", "\"\""] {
        bench.accepts("no error at all", answer(&[("error", nothing)])).await;
    }
    bench.end().await;
}

async fn another_2xx() {
    let server = TlsServer::new().await;
    let bench = server.bench().await;
    for status in
        ["201 Created", "202 Accepted", "203 Non-Authoritative", "206 Partial", "226 IM Used", "299 x"]
    {
        let bytes = over_the_wire(status, &body(&[]));
        bench.fails(status, PASSING, server.answer(&bytes)).await;
        tokio::join!(bench.recovers("well again"), server.answer_well());
    }
    for status in ["204 No Content", "205 Reset Content"] {
        let bytes = over_the_wire(status, "");
        bench.fails(status, PASSING, server.answer(&bytes)).await;
        tokio::join!(bench.recovers("well again"), server.answer_well());
    }
    bench.end().await;
}

async fn no_cookies() {
    let bench = Bench::new().await;
    bench.hide("c4n4ry-session");
    let reply =
        with_header(answer(&[]), "set-cookie", b"session=c4n4ry-session; Max-Age=99999; Secure; Path=/");
    bench.accepts("a cookie", reply.clone()).await;
    let refused = Reply { status: StatusCode::SERVICE_UNAVAILABLE, ..reply };
    bench.rejects_reply("a cookie with an error", refused, PASSING).await;
    for request in bench.agent.issuer.requests() {
        assert!(!request.headers.contains_key(header::COOKIE));
    }
    let state: pb::TokenStatus = bench.client.list().await.remove(0);
    assert_eq!(state.state(), pb::TokenState::Valid);
    bench.end().await;
}
