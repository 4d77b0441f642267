//! Faults of what an answer holds.

use super::{
    row::{Case, Expect, Made, Row, TAKEN, case, counted, lives, provider_error, refused, row},
    script::{Answer, Framing, LIFE, Move, answered, request_then},
    server::Plan,
    story::World,
};
use crate::support::BLOOM;

fn says(what: impl Into<String>, answer: Answer, expect: Expect) -> Case {
    case(what, answered(answer), expect)
}

/// A body of JSON text under 200.
fn body(text: &str, expect: Expect) -> Case {
    says(text.chars().take(80).collect::<String>(), Answer::json(200, text), expect)
}

/// The good answer with one member written otherwise.
fn with(member: &str, value: &str, expect: Expect) -> Case {
    let life = LIFE.as_secs().to_string();
    let mut members =
        vec![("access_token", "\"{TOKEN}\""), ("token_type", "\"bearer\""), ("expires_in", &life)];
    members.retain(|(name, _)| *name != member);
    if !value.is_empty() {
        members.push((member, value));
    }
    let members: Vec<_> = members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    let text = format!("{{{}}}", members.join(","));
    says(format!("{member}: {value:.60}"), Answer::json(200, &text), expect)
}

fn each(member: &str, values: &[&str], expect: Expect) -> Vec<Case> {
    values.iter().map(|value| with(member, value, expect)).collect()
}

pub(crate) fn rows() -> Vec<Row> {
    const GOOD: &str = r#"{"access_token":"{TOKEN}","token_type":"bearer","expires_in":200}"#;
    const MONTH: u64 = 30 * 86_400;
    let unreadable = |why| provider_error(why).expected();
    let utf_16 = |write: fn(u16) -> [u8; 2]| {
        "\u{feff}{\"access_token\":\"a\"}".encode_utf16().flat_map(write).collect::<Vec<_>>()
    };
    vec![
        row(
            "truncated JSON",
            "sends an answer whose JSON ends too early, and whose length says that it is whole; or more than one JSON",
            vec![
                body(&GOOD[..GOOD.len() - 1], unreadable("not JSON")),
                body(r#"{"access_token":"{TOKEN}","token_type":"bea"#, unreadable("not JSON")),
                body("", unreadable("empty")),
                body("[]", unreadable("not a JSON object")),
                body("null", unreadable("not a JSON object")),
                body("\"{TOKEN}\"", unreadable("not a JSON object")),
                body(&format!("{GOOD}{GOOD}"), unreadable("not JSON")),
                body(&format!("{GOOD} x"), unreadable("not JSON")),
            ],
        ),
        row(
            "wrong types",
            "gives each member a value of a wrong type, or leaves it out",
            [
                each("access_token", &["", "null", "1", "true", "[\"{TOKEN}\"]", "{\"a\":\"{TOKEN}\"}"], unreadable("access_token")),
                each("token_type", &["1", "true", "[\"bearer\"]", "{}"], unreadable("token_type")),
                each("expires_in", &["true", "[200]", "{}", "\"abc\"", "\"\""], unreadable("expires_in")),
                each("scope", &["1", "true", "{}", "[1]"], unreadable("scope")),
                each("Access_Token", &["\"{TOKEN}\""], TAKEN),
            ]
            .into_iter()
            .flatten()
            .collect(),
        ),
        row(
            "duplicate members",
            "gives a member twice",
            ["access_token", "token_type", "expires_in", "scope", "error"]
                .map(|name| {
                    let twice = format!(r#"{{"{name}":"a","access_token":"{{TOKEN}}","token_type":"bearer","{name}":"b"}}"#);
                    body(&twice, unreadable("twice"))
                })
                .into(),
        ),
        row(
            "deep nesting",
            "nests a member 100,000 levels deep; 30,000; 17",
            [(100_000, "longer than 64 KiB"), (30_000, "deeper than 16"), (16, "deeper than 16")]
                .map(|(depth, why)| {
                    let deep = format!(r#"{{"access_token":"{{TOKEN}}","token_type":"bearer","x":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
                    says(format!("{depth}"), Answer::json(200, &deep), unreadable(why))
                })
                .into(),
        ),
        row(
            "64 MiB body",
            "sends a body of 64 MiB, the token first; of a byte more than 64 KiB",
            vec![
                case(
                    "64 MiB",
                    request_then([
                        Move::Bytes(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 67108864\r\n\r\n".to_vec()),
                        Move::Bytes(GOOD.into()),
                        Move::Pour(vec![b' '; 64 * 1024]),
                    ]),
                    unreadable("longer than 64 KiB"),
                ),
                says("64 KiB and a byte", Answer::json(200, &" ".repeat(64 * 1024 + 1)), unreadable("longer than 64 KiB")),
            ],
        ),
        row(
            "control characters in the token",
            "gives a token with NUL, CR, LF, ESC, DEL, a space or a letter that is not ASCII; an empty one; one of 33 KiB",
            ["\\u0000", "\\r", "\\n", "\\u001b", "\\u007f", " ", "\\u00e9", "\u{e9}", "\\ud800", "\\\"", ","]
                .map(|text| with("access_token", &format!("\"tok{text}en\""), unreadable("access")))
                .into_iter()
                .chain([
                    with("access_token", "\"\"", unreadable("empty")),
                    with("access_token", "\"   \"", unreadable("access token")),
                    with("access_token", &format!("\"{}\"", "x".repeat(33 * 1024)), unreadable("longer than 32 KiB")),
                    // Not even JSON.
                    with("access_token", "\"to\nken\"", unreadable("not JSON")),
                ])
                .collect(),
        ),
        row(
            "invalid UTF-8",
            "sends bytes that are no UTF-8",
            vec![says("in a member", Answer::json(200, "").body(b"{\"x\":\"\xff\xfe\",\"access_token\":\"a\"}"), unreadable("UTF-8"))],
        ),
        row(
            "byte order mark",
            "begins with a byte order mark",
            vec![body(&format!("\u{feff}{GOOD}"), counted("byte_order_mark"))],
        ),
        row(
            "UTF-16",
            "sends JSON in UTF-16",
            vec![
                says("little", Answer::json(200, "").body(utf_16(u16::to_le_bytes)), unreadable("UTF-8")),
                says("big", Answer::json(200, "").body(utf_16(u16::to_be_bytes)), unreadable("UTF-8")),
            ],
        ),
        row(
            "expires_in",
            "says how long the token lives: as a number, as text, not at all, for ever, for no time",
            vec![
                with("expires_in", "3600", lives(3600, None)),
                with("expires_in", "\"3600\"", lives(3600, Some("textual_lifetime"))),
                with("expires_in", "3600.0", lives(3600, None)),
                with("expires_in", "3600.9", lives(3600, None)),
                with("expires_in", "3.6e3", lives(3600, None)),
                with("expires_in", "null", lives(3600, Some("assumed_lifetime"))),
                with("expires_in", "", lives(3600, Some("assumed_lifetime"))),
                with("expires_in", "40", lives(40, Some("short_lifetime"))),
                with("expires_in", "2592001", lives(MONTH, Some("cut_lifetime"))),
                with("expires_in", "4294967296", lives(MONTH, Some("cut_lifetime"))),
                with("expires_in", "9007199254740993", lives(MONTH, Some("cut_lifetime"))),
                with("expires_in", "9223372036854775808", lives(MONTH, Some("cut_lifetime"))),
                with("expires_in", "1e400", lives(MONTH, Some("cut_lifetime"))),
            ],
        ),
        row(
            "already expired",
            "gives a token whose life is over: 0 s, less, a share of a second",
            each("expires_in", &["0", "-1", "-3600", "\"0\"", "0.9", "-1e400"], unreadable("not positive")),
        ),
        row(
            "token_type",
            "says what type the token is of, in any case; says another one, or none",
            [
                each("token_type", &["\"bearer\"", "\"Bearer\"", "\"BEARER\""], TAKEN),
                each("token_type", &["\"mac\"", "\"N_A\"", "\"DPoP\"", "\"\"", "null", "", "0"], unreadable("token_type")),
            ]
            .concat_all(),
        ),
        row(
            "refresh_token",
            "gives a refresh_token and an id_token too, which nobody asked for",
            vec![
                with("refresh_token", "\"refresh-token-that-nobody-keeps\"", TAKEN),
                with("id_token", "\"a.b.c\"", TAKEN),
            ],
        ),
        row(
            "200 with an error",
            "answers 200 with an error",
            vec![
                says("unknown code", Answer::error(200, "bad_verification_code"), refused("bad_verification_code").expected()),
                says("invalid_client", Answer::error(200, "invalid_client"), refused("invalid_client").twice().expected()),
                says("an error that is no text", Answer::json(200, r#"{"error":1}"#), refused("an error that is no text").expected()),
            ],
        ),
        row(
            "an error with a token",
            "gives an error and a token in one answer, under 200 and under 400",
            [200, 400]
                .map(|status| {
                    let text = format!(r#"{{"error":"no_such_code",{}"#, &GOOD[1..]);
                    says(status.to_string(), Answer::json(status, &text), refused("no_such_code").expected())
                })
                .into(),
        ),
        Row {
            name: "the same token again",
            server: "answers each request with the token that it gave last, as a server that caches",
            made: Made::Story {
                agent: "goes on with the token under its new life: no rotation, no hurry",
                tell: || Box::pin(same_again()),
            },
        },
        row(
            "a token of another client",
            "gives a token that says of itself that it is another client's, and that it has expired",
            vec![with("access_token", "\"{JWT}\"", TAKEN)],
        ),
        row(
            "reflected secret",
            "puts the secret into its error_description: as it is, form-encoded, in Base64",
            ["{SECRET}", "{FORM}", "{BASE64}", "aaa {SECRET} bbb {FORM}"]
                .map(|reflected| {
                    let text = format!(r#"{{"error":"invalid_request","error_description":"no: {reflected}"}}"#);
                    says(reflected, Answer::json(400, &text), refused("***").expected())
                })
                .into(),
        ),
        row(
            "reflected token",
            "puts the token that it gave last into its error_description",
            vec![
                says("LAST", Answer::json(400, r#"{"error":"invalid_request","error_description":"you have {LAST}"}"#), refused("***").expected()),
                says("terminal", Answer::json(400, r#"{"error":"invalid_request","error_description":"\u001b[2J\r\nroot: \u0007"}"#), refused("\\u{1b}").expected()),
            ],
        ),
        row(
            "Content-Type",
            "says that the answer is something else than JSON; says it in odd ways; says nothing",
            vec![
                says("odd case", Answer::good().without("content-type").with("content-type", "Application/JSON ; charset=\"utf-8\"; x=y"), TAKEN),
                says("none", Answer::good().without("content-type"), counted("missing_content_type")),
                says("HTML", Answer::good().without("content-type").with("content-type", "text/html"), unreadable("Content-Type")),
                says("form", Answer::empty(200).with("content-type", "application/x-www-form-urlencoded").body("access_token={TOKEN}&token_type=bearer"), unreadable("Content-Type")),
                says("cacheable", Answer::good().without("cache-control"), counted("cacheable")),
                says("cookie", Answer::good().with("set-cookie", "a=b"), TAKEN),
                says("length", Answer::good().framed(Framing::Length), TAKEN),
            ],
        ),
    ]
}

/// Lists of cases, one after the other.
trait ConcatAll {
    fn concat_all(self) -> Vec<Case>;
}

impl<const N: usize> ConcatAll for [Vec<Case>; N] {
    fn concat_all(self) -> Vec<Case> {
        self.into_iter().flatten().collect()
    }
}

async fn same_again() {
    let mut world = World::start("the same token again").await;
    let first = world.get().await;
    let same =
        format!(r#"{{"access_token":"{{LAST}}","token_type":"bearer","expires_in":{}}}"#, LIFE.as_secs());
    world.server.set(Plan::Each(answered(Answer::json(200, &same))));
    let mut watch = world.client.watch(BLOOM).await.unwrap();
    let shown = crate::support::Next::next_message(&mut watch).await.unwrap().unwrap().token.unwrap();
    assert_eq!(shown, first);
    for _ in 0..5 {
        let until = world.agent.served_until(BLOOM);
        let before = world.now();
        let after = world.attempt().await;
        assert!(after.last_failure.is_none());
        let token = world.get().await;
        assert_eq!((&token.access_token, token.generation), (&first.access_token, first.generation));
        assert!(world.agent.served_until(BLOOM) > until, "its new life counts");
        assert!(world.now().since(before) >= LIFE / 2, "no tight loop");
    }
    world.server.set(Plan::good());
    world.attempt().await;
    let rotated = crate::support::Next::next_message(&mut watch).await.unwrap().unwrap().token.unwrap();
    assert!(rotated.generation > first.generation, "the first that watchers hear of");
    drop(watch);
    world.end().await;
}
