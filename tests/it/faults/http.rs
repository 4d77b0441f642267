//! Faults of HTTP: statuses, framing, and floods.

use super::{
    names::OTHER,
    pki,
    row::{Case, Expect, Row, TAKEN, broken_off, case, limited, provider_error, refused, row},
    script::{Answer, Framing, Http2, Move, answered, request_then},
};

const REDIRECTS: [u16; 7] = [300, 301, 302, 303, 304, 307, 308];

fn says(what: impl Into<String>, answer: Answer, expect: Expect) -> Case {
    case(what, answered(answer), expect)
}

fn http_2(what: &str, move_: Http2, expect: Expect) -> Case {
    case(format!("HTTP/2: {what}"), vec![Move::Http2(move_)], expect)
}

/// A redirect to each of these.
fn redirected(targets: &[(&str, &str)]) -> Vec<Case> {
    let to = |(what, target): &(&str, &str)| {
        let (what, target) = ((*what).to_owned(), (*target).to_owned());
        REDIRECTS.map(move |status| {
            let answer = Answer::empty(status).with("location", &target);
            says(format!("{status} to {what}"), answer, refused("never followed").expected())
        })
    };
    targets.iter().flat_map(to).collect()
}

/// `429` with these headers.
fn too_many(headers: &[(&str, &str)], expect: Expect) -> Case {
    let with = |answer: Answer, (name, value): &(&str, &str)| answer.with(name, value);
    says(format!("{headers:?}"), headers.iter().fold(Answer::error(429, "slow_down_please"), with), expect)
}

/// Statuses without a word about why.
fn bare(statuses: impl IntoIterator<Item = u16>, expect: Expect) -> Vec<Case> {
    statuses.into_iter().map(|status| says(status.to_string(), Answer::empty(status), expect)).collect()
}

pub(crate) fn rows() -> Vec<Row> {
    let date = ("date", "Sun, 22 Nov 2026 14:05:00 GMT");
    let credentials = refused("").twice().expected();
    let other = format!("https://{OTHER}/token");
    vec![
        row(
            "redirect to the same host",
            "answers with each 3xx, to itself",
            redirected(&[("itself", "/token"), ("its own name", &format!("https://{}/token", pki::NAME))]),
        ),
        row(
            "redirect to another host",
            "answers with each 3xx, to another host, with TLS and without",
            redirected(&[("another host", &other), ("another host in clear", "http://127.0.0.2/token")]),
        ),
        row(
            "400",
            "answers 400 with one of the codes of RFC 6749, or with one that nobody knows",
            ["invalid_request", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope"]
                .into_iter()
                .chain(["invalid_target", "access_denied", "no_such_code"])
                .map(|code| says(code, Answer::error(400, code), refused(code).expected()))
                .collect(),
        ),
        row(
            "invalid_client",
            "answers 400, 403 or 401 with invalid_client",
            [400, 403, 401]
                .map(|status| {
                    let answer = Answer::error(status, "invalid_client");
                    says(status.to_string(), answer, refused("invalid_client").twice().expected())
                })
                .into(),
        ),
        row(
            "401",
            "answers 401, with any code, or with none, and asks for another method of authentication",
            vec![
                says("access_denied", Answer::error(401, "access_denied"), credentials),
                says("no code", Answer::empty(401), credentials),
                says("HTML", Answer::empty(401).with("content-type", "text/html").body("<h1>No</h1>"), credentials),
                says("Basic", Answer::empty(401).with("www-authenticate", "Basic realm=\"x\""), credentials),
                says("DPoP", Answer::empty(401).with("www-authenticate", "DPoP algs=\"ES256\""), credentials),
                says(
                    "with a Retry-After",
                    Answer::error(401, "invalid_client").with("retry-after", "120"),
                    // Quiet first; the other secret has its turn then.
                    refused("invalid_client").after(120).expected(),
                ),
            ],
        ),
        row(
            "403",
            "answers 403",
            vec![
                says("no code", Answer::empty(403), refused("not allowed").expected()),
                says("access_denied", Answer::error(403, "access_denied"), refused("access_denied").expected()),
            ],
        ),
        row("404", "answers 404", bare([404], refused("no token endpoint").expected())),
        row("405", "answers 405", bare([405], refused("no token endpoint").expected())),
        row("413", "answers 413", bare([413], refused("413").expected())),
        row("421", "answers 421", bare([421], refused("421").expected())),
        row(
            "any other 4xx",
            "answers with any other status from 400 to 499",
            bare([402, 406, 407, 409, 410, 411, 412, 414, 415, 417, 418, 422, 423, 424, 426, 428, 431, 451, 499], refused("").expected()),
        ),
        row(
            "408 and 425",
            "answers 408 or 425",
            bare([408, 425], provider_error("").expected()),
        ),
        row("429", "answers 429 without a Retry-After", vec![too_many(&[], limited().expected())]),
        row(
            "429 with seconds",
            "answers 429 with a Retry-After of 120 s, or Auth0's X-RateLimit-Reset",
            vec![
                too_many(&[("retry-after", "120")], limited().after(120).expected()),
                too_many(&[("retry-after", " 120 ")], limited().after(120).expected()),
                too_many(&[("x-ratelimit-reset", "1795356420"), date], limited().after(120).expected()),
                too_many(&[("retry-after", "60"), ("retry-after", "120")], limited().after(120).expected()),
            ],
        ),
        row(
            "429 with a date",
            "answers 429 with a Retry-After that is a date, 120 s after its own Date, or past",
            vec![
                too_many(&[date, ("retry-after", "Sun, 22 Nov 2026 14:07:00 GMT")], limited().after(120).expected()),
                too_many(&[date, ("retry-after", "Sun Nov 22 14:07:00 2026")], limited().after(120).expected()),
                too_many(&[date, ("retry-after", "Sun, 22 Nov 2026 14:00:00 GMT")], limited().expected()),
                too_many(&[date, ("retry-after", "Thu, 01 Jan 1970 00:00:00 GMT")], limited().expected()),
            ],
        ),
        row(
            "429 for ages",
            "answers 429 with a Retry-After of an hour and a second, of 10^18 s, of the year 9999",
            ["3601", "1000000000000000000", "99999999999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"]
                .map(|value| too_many(&[("retry-after", value)], limited().after(3600).expected()))
                .into(),
        ),
        row(
            "429 with nonsense",
            "answers 429 with a Retry-After that is negative, zero, or no number",
            ["-120", "0", "1.5", "1e3", "soon", "", "120, 60", "Sun, 99 Nov 2026 14:07:00 GMT"]
                .map(|value| too_many(&[("retry-after", value)], limited().expected()))
                .into(),
        ),
        row(
            "500",
            "answers 500, with server_error, or with anything else",
            vec![
                says("no code", Answer::empty(500), provider_error("has a fault").expected()),
                says("server_error", Answer::error(500, "server_error"), provider_error("server_error").expected()),
                says("invalid_client", Answer::error(500, "invalid_client"), provider_error("invalid_client").expected()),
            ],
        ),
        row(
            "502 with HTML",
            "answers 502 with a page of HTML",
            vec![says(
                "HTML",
                Answer::empty(502).with("content-type", "text/html").body("<html><h1>502 Bad Gateway</h1></html>"),
                provider_error("has a fault").expected(),
            )],
        ),
        row(
            "503 with Retry-After",
            "answers 503 with a Retry-After of 120 s",
            vec![says(
                "120",
                Answer::empty(503).with("retry-after", "120"),
                provider_error("Retry-After 120 s").after(120).expected(),
            )],
        ),
        row("503", "answers 503 without a Retry-After, or temporarily_unavailable under another status", vec![
            says("no code", Answer::empty(503), provider_error("has a fault").expected()),
            says("400", Answer::error(400, "temporarily_unavailable"), provider_error("temporarily_unavailable").expected()),
            says("400 slow_down", Answer::error(400, "slow_down"), provider_error("slow_down").expected()),
        ]),
        row("504", "answers 504", bare([504], provider_error("has a fault").expected())),
        row("599", "answers 520, 599, 600 or 999", bare([520, 599, 600, 999], provider_error("has a fault").expected())),
        row(
            "a success that is none",
            "answers with a token, but with the status 201, 202, 203, 204 or 206",
            [201, 202, 203, 204, 206]
                .map(|status| {
                    let answer = Answer { status, ..Answer::good() };
                    says(status.to_string(), answer, provider_error("status 200 only").expected())
                })
                .into(),
        ),
        row(
            "interim answers",
            "sends 100, 102 and 103 before the answer; switches protocols with 101",
            vec![
                case(
                    "skipped",
                    request_then([
                        Move::Bytes(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n".to_vec()),
                        Move::Bytes(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".to_vec()),
                        Move::Answer(Answer::good()),
                    ]),
                    TAKEN,
                ),
                case(
                    "101",
                    request_then([Move::Bytes(
                        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n".to_vec(),
                    )]),
                    provider_error("interim").expected(),
                ),
            ],
        ),
        row(
            "10,000 headers",
            "sends 10,000 headers, over HTTP/1.1 and over HTTP/2",
            vec![
                says(
                    "HTTP/1.1",
                    (0..10_000).fold(Answer::good(), |answer, n| answer.with(&format!("x-{n}"), "y")),
                    provider_error("too long").expected(),
                ),
                http_2("10,000", Http2::ManyHeaders(10_000), provider_error("too long").expected()),
            ],
        ),
        row(
            "a header of 1 MiB",
            "sends a header of 1 MiB, over HTTP/1.1 and over HTTP/2",
            vec![
                says("HTTP/1.1", Answer::good().with("x", &"y".repeat(1 << 20)), provider_error("too long").expected()),
                http_2("1 MiB", Http2::LongHeader(1 << 20), provider_error("too long").expected()),
            ],
        ),
        row(
            "no HTTP",
            "answers in something else than HTTP",
            ["SSH-2.0-OpenSSH_9.9\r\n\r\n", "HTTP/1.1 200 OK\r\nno header\r\n\r\n", "HTTP/1.1 2000 OK\r\n\r\n", "HTTP/9.9 200 OK\r\n\r\n"]
                .map(|text| {
                    case(text.trim(), request_then([Move::Bytes(text.into())]), provider_error("not HTTP").expected())
                })
                .into(),
        ),
        row(
            "every framing",
            "delimits the body by its length, in chunks, by the end of the connection; speaks HTTP/2",
            vec![
                says("Content-Length", Answer::good(), TAKEN),
                says("chunked", Answer::good().framed(Framing::Chunked), TAKEN),
                says("HTTP/1.0", Answer::good().framed(Framing::Close), TAKEN),
                http_2("an answer", Http2::Answer(Answer::good()), TAKEN),
            ],
        ),
        row(
            "wrong length",
            "announces a Content-Length that is too long, too short, or none",
            vec![
                says("too long", Answer::good().framed(Framing::Says(10_000)), broken_off("").expected()),
                says("too short", Answer::good().framed(Framing::Says(20)), provider_error("not JSON").expected()),
                says("zero", Answer::good().framed(Framing::Says(0)), provider_error("empty").expected()),
            ],
        ),
        row(
            "bad chunk size",
            "sends a chunk whose size is no number, is too large, or is missing",
            ["zz", "ffffffffffffffffffff", "-1", ""]
                .map(|size| {
                    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
                    let bytes = format!("{head}3\r\n{{\"a\r\n{size}\r\n\":1}}\r\n0\r\n\r\n");
                    case(format!("{size:?}"), request_then([Move::Bytes(bytes.into())]), broken_off("").expected())
                })
                .into(),
        ),
        row(
            "Content-Length and chunks",
            "announces both a Content-Length and chunks",
            vec![says("both", Answer::good().framed(Framing::Both), TAKEN)],
        ),
        row(
            "GOAWAY",
            "ends an HTTP/2 connection with GOAWAY, before the request or after it",
            vec![
                http_2("at once", Http2::GoAwayAtOnce, broken_off("").unheard().expected()),
                http_2("after the request", Http2::GoAway(h2::Reason::NO_ERROR), broken_off("").expected()),
                http_2("calm down", Http2::GoAway(h2::Reason::ENHANCE_YOUR_CALM), broken_off("").expected()),
            ],
        ),
        row(
            "REFUSED_STREAM",
            "resets the HTTP/2 stream",
            [h2::Reason::REFUSED_STREAM, h2::Reason::CANCEL, h2::Reason::INTERNAL_ERROR, h2::Reason::HTTP_1_1_REQUIRED]
                .map(|reason| http_2(&format!("{reason:?}"), Http2::Reset(reason), broken_off("").expected()))
                .into(),
        ),
        row(
            "no HTTP/2",
            "agrees to speak HTTP/2, and then sends frames that are too long, or out of place, or none",
            [
                ("too long", vec![0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]),
                ("DATA of no stream", vec![0, 0, 1, 0, 0, 0, 0, 0, 0, b'x']),
                ("CONTINUATION of nothing", vec![0, 0, 1, 9, 4, 0, 0, 0, 1, b'x']),
                ("SETTINGS of odd length", vec![0, 0, 5, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5]),
                ("HTTP/1.1", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_vec()),
            ]
            .map(|(what, frames)| http_2(what, Http2::Raw(frames), provider_error("not HTTP").unheard().expected()))
            .into(),
        ),
        row(
            "100-continue flood",
            "sends 1,000 interim answers a second, and never an answer",
            vec![case(
                "endless",
                request_then([Move::Flood(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(), 1_000)]),
                broken_off("time-out").expected(),
            )],
        ),
        row(
            "gzip bomb",
            "compresses the body, which nobody asked for: 8 MiB of zeros in 52 kB; an honest token",
            vec![
                says("a bomb", Answer::json(200, "").with("content-encoding", "gzip").body(bomb()), provider_error("Content-Encoding").expected()),
                says("deflate", Answer::good().with("content-encoding", "deflate"), provider_error("Content-Encoding").expected()),
                says("identity", Answer::good().with("content-encoding", "identity"), TAKEN),
            ],
        ),
        row(
            "endless body",
            "sends a body without end: with a token, with an error, in chunks",
            vec![
                case("200", request_then([Move::Bytes(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()), Move::Pour(vec![b' '; 8192])]), provider_error("longer than 64 KiB").expected()),
                case("500", request_then([Move::Bytes(b"HTTP/1.1 500 No\r\n\r\n".to_vec()), Move::Pour(vec![b' '; 8192])]), provider_error("has a fault").expected()),
                case(
                    "chunks",
                    request_then([
                        Move::Bytes(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec()),
                        Move::Pour(b"10\r\n                \r\n".repeat(500)),
                    ]),
                    provider_error("longer than 64 KiB").expected(),
                ),
            ],
        ),
    ]
}

/// 8 MiB of zeros as gzip (RFC 1952) of one block with fixed codes (RFC 1951 §3.2.6): a zero, and then over and over "the
/// last byte, 258 times more". The checksum is wrong, which nobody learns who has not inflated it.
fn bomb() -> Vec<u8> {
    let mut bits = Vec::new();
    let mut put = |value: u32, length: u32| bits.extend((0..length).map(|n| value >> n & 1 == 1));
    let code = |value: u32, length: u32| value.reverse_bits() >> (32 - length);
    put(0b011, 3);
    put(code(0b0011_0000, 8), 8);
    for _ in 0..(8 << 20) / 258 {
        put(code(0b1100_0101, 8), 8);
        put(0, 5);
    }
    put(0, 7);
    let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    gzip.extend(
        bits.chunks(8).map(|byte| byte.iter().enumerate().fold(0, |sum, (n, bit)| sum | u8::from(*bit) << n)),
    );
    gzip.extend([0; 8]);
    gzip
}
