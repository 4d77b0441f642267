//! Answers that bring no token: what each means, when the agent asks again, and what is told to whom.

use std::time::Duration;

use bloom_agent::{
    clock::Clock as _,
    dev_issuer::{Fault, Reply},
};
use http::{StatusCode, header};
use tokio::io::AsyncReadExt as _;
use tonic::Code;

use super::{
    bench::{
        Bench, HOUR, LIMITED, PASSING, REFUSED, SECOND, UNREACHABLE, Verdict, answer, basic, body, error,
        form, http_date, status, with_header,
    },
    rows,
    tls_server::{TlsServer, good, http as over_the_wire, nobody_came, request, write},
};
use crate::support::{BLOOM, SECRET, Setting, profile, refusal, retry_delay, soon, write_secret};

rows! {
    invalid_request => "400 `invalid_request`: the schedule of refusals, and a warning at once", "RFC 6749 §5.2";
    refused_credentials => "401 with any code or none, and `invalid_client`: the other secret is tried once, at once; if it is refused too, the schedule of refusals", "RFC 6749 §5.2";
    no_switch_of_methods => "A challenge does not make the agent change its method of authentication", "RFC 6749 §5.2";
    refused_requests => "400 `unauthorized_client`, `unsupported_grant_type`, `invalid_scope`, `invalid_target`: the schedule of refusals", "RFC 6749 §5.2";
    invalid_grant => "`invalid_grant`: the schedule of refusals, without trying the other secret", "policy";
    passing_codes => "`temporarily_unavailable`, `server_error` and `slow_down` pass under any status; a code that is not known is read by its status", "policy";
    a_providers_own_words => "`error_description` is escaped and cut, `error_uri` is never fetched, and callers get neither", "RFC 6749 §5.2";
    any_body_of_an_error => "An error's body may be HTML, empty, endless or broken: the status decides, and no more than 64 KiB is read", "policy";
    every_other_4xx => "Every other 4xx: the schedule of refusals", "policy";
    what_passes => "408, 425 and every 5xx pass: full jitter under a window that doubles", "policy";
    retry_after_is_kept => "429 or 503 with Retry-After: no request before that, cut to an hour, but for the operator's; callers are told", "RFC 9110 §10.2.3";
    every_form_of_retry_after => "Retry-After as a date, in the past, negative, huge, twice or garbage is read or ignored safely", "RFC 9110 §10.2.3";
    too_many_without_a_word => "429 without Retry-After: silence for 30 s, then windows that double from 30 s", "RFC 6585 §4";
    no_redirect => "No 3xx is followed: not a byte goes to where it points", "RFC 9700 §4.12";
    interim_answers => "Interim answers are skipped; a switch of protocols is no answer", "RFC 9110 §15.2";
    every_http => "HTTP/1.0, chunked HTTP/1.1 and HTTP/2 are read alike, no connection is kept, and a request without an answer counts", "RFC 9110 §9.2.2";
}

async fn invalid_request() {
    let bench = Bench::new().await;
    let text = bench.rejects_reply("invalid_request", error(400, "invalid_request"), REFUSED).await;
    let log = bench.agent.log();
    let line = log.lines().find(|line| line.contains(&text)).expect("it is told");
    assert!(line.contains(" WARN "), "{line}");
    bench.end().await;
}

const OTHER: &str = "the-other-secret";

/// An agent with two secrets, and the file of the second.
async fn with_two_secrets(lines: &str) -> (Bench, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let next = directory.path().join("next");
    write_secret(&next, OTHER);
    let lines = format!(
        "client_secret.file = 'SECRET_FILE'\nclient_secret_next.file = '{}'\n{lines}",
        next.display()
    );
    let bench = Bench::start(Setting { tokens: profile(BLOOM, &lines), ..Setting::default() }).await;
    bench.hide(OTHER);
    (bench, directory)
}

/// The secrets of the newest requests.
fn secrets_sent(bench: &Bench, count: usize) -> Vec<String> {
    let requests = bench.agent.issuer.requests();
    let secret = |request| form(request).into_iter().find(|(name, _)| name == "client_secret").unwrap().1;
    requests[requests.len() - count..].iter().map(secret).collect()
}

async fn refused_credentials() {
    let (bench, _directory) = with_two_secrets("").await;
    let html = Reply { body: "<html>".into(), ..status(401, "") };
    let refusals = [
        error(401, "invalid_client"),
        error(401, "access_denied"),
        error(401, "who_knows"),
        error(401, "invalid_request"),
        status(401, ""),
        html,
        error(400, "invalid_client"),
        Reply { status: StatusCode::OK, ..error(400, "invalid_client") },
    ];
    for reply in refusals {
        let what = format!("{} {:?}", reply.status, reply.body);
        let before = bench.agent.issuer.request_count();
        // Both refused: two requests, one failure.
        bench.agent.issuer.push_fault(Fault::reply(reply.clone()));
        bench.agent.issuer.push_fault(Fault::reply(reply.clone()));
        let text = bench.fails(&what, REFUSED, async {}).await;
        assert!(text.contains("were both refused"), "{what}: {text}");
        assert_eq!(bench.agent.issuer.request_count(), before + 2, "{what}");
        assert_eq!(secrets_sent(&bench, 2), [SECRET, OTHER], "{what}");
        bench.recovers(&what).await;
        // The first refused: the other one is not waited for.
        let settled = bench.agent.attempts(BLOOM).settled;
        bench.agent.issuer.push_fault(Fault::reply(reply));
        bench.agent.issuer.push_fault(Fault::reply(answer(&[])));
        bench.recovers(&what).await;
        assert_eq!(bench.agent.attempts(BLOOM).settled, settled + 1, "{what}: one attempt");
        assert_eq!(secrets_sent(&bench, 2), [SECRET, OTHER], "{what}");
        // Back to the first one, for the next row.
        bench.agent.issuer.push_fault(Fault::reply(error(401, "invalid_client")));
        bench.agent.issuer.push_fault(Fault::reply(answer(&[])));
        bench.recovers(&what).await;
        assert_eq!(secrets_sent(&bench, 2), [OTHER, SECRET], "{what}: the one that last worked goes first");
    }
    bench.end().await;
}

async fn no_switch_of_methods() {
    for (method, challenge) in [
        ("client_secret_post", "Basic realm=\"token\""),
        ("client_secret_post", "Basic realm=\"a\", DPoP algs=\"ES256\", Bearer"),
        ("client_secret_basic", "Bearer error=\"invalid_token\""),
    ] {
        let bench = Bench::with(&format!("auth_method = '{method}'")).await;
        let before = bench.agent.issuer.request_count();
        let reply = with_header(error(401, "invalid_client"), "www-authenticate", challenge.as_bytes());
        bench.rejects_reply(challenge, reply, REFUSED).await;
        assert_eq!(bench.agent.issuer.request_count(), before + 2, "{challenge}");
        for request in bench.agent.issuer.requests() {
            let in_body = form(&request).iter().any(|(name, _)| name == "client_secret");
            assert_eq!(in_body, method == "client_secret_post", "{challenge}");
            assert_eq!(basic(&request).is_some(), !in_body, "{challenge}");
        }
        bench.end().await;
    }
}

async fn refused_requests() {
    let (bench, _directory) = with_two_secrets("").await;
    for code in [
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
        "invalid_target",
        "invalid_request",
    ] {
        let before = bench.agent.issuer.request_count();
        let text = bench.rejects_reply(code, error(400, code), REFUSED).await;
        assert!(text.contains(code), "{text}");
        assert_eq!(bench.agent.issuer.request_count(), before + 2, "{code}: the other secret is not tried");
    }
    bench.end().await;
}

async fn invalid_grant() {
    let (bench, _directory) = with_two_secrets("").await;
    for code in [400, 403] {
        let before = bench.agent.issuer.request_count();
        bench.rejects_reply("invalid_grant", error(code, "invalid_grant"), REFUSED).await;
        assert_eq!(bench.agent.issuer.request_count(), before + 2, "one request, then the good one");
        assert_eq!(secrets_sent(&bench, 2), [SECRET, SECRET]);
    }
    bench.end().await;
}

async fn passing_codes() {
    let bench = Bench::new().await;
    for code in ["temporarily_unavailable", "server_error", "slow_down"] {
        for status in [400, 403, 404, 500, 503] {
            bench.rejects_reply(code, error(status, code), PASSING).await;
        }
        bench.rejects_reply(code, Reply { status: StatusCode::OK, ..error(400, code) }, PASSING).await;
        // Too many requests are too many, whatever else is said.
        bench.rejects_reply(code, error(429, code), LIMITED).await;
    }
    for code in ["who_knows", "", "Slow_Down", "x y", "caf\u{e9}"] {
        for (status, verdict) in
            [(400, REFUSED), (403, REFUSED), (500, PASSING), (503, PASSING), (429, LIMITED)]
        {
            bench.rejects_reply(code, error(status, code), verdict).await;
        }
    }
    bench.end().await;
}

async fn a_providers_own_words() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}/error", listener.local_addr().unwrap());
    let bench = Bench::new().await;
    let said = |description: &str| {
        let json =
            serde_json::json!({"error": "invalid_scope", "error_description": description, "error_uri": uri});
        status(400, &json.to_string())
    };
    for (description, shown) in [
        ("No such scope.", "No such scope."),
        ("a\r\nb: c", "a\\r\\nb: c"),
        ("\u{1b}]0;title\u{7}", "\\u{1b}]0;title\\u{7}"),
        ("\"quoted\" \\ ", "\\\"quoted\\\" \\\\"),
        ("caf\u{e9} \u{202e}", "caf\\u{e9} \\u{202e}"),
    ] {
        let text = bench.rejects_reply(description, said(description), REFUSED).await;
        assert!(text.contains(shown), "{text} has no {shown}");
        assert!(!text.contains("http://"), "{text}");
    }
    let long = "word ".repeat(2_000);
    let text = bench.rejects_reply("long", said(&long), REFUSED).await;
    assert!(text.contains("word ...") || text.contains("word...") || text.contains("..."), "{text}");
    assert!(text.matches("word").count() <= 40 && text.len() < 500, "{text}");
    // A description that is no text is none.
    for odd in ["7", "[]", "{}", "null"] {
        let json = format!("{{\"error\":\"invalid_scope\",\"error_description\":{odd},\"error_uri\":{odd}}}");
        bench.rejects_reply(odd, status(400, &json), REFUSED).await;
    }
    assert!(nobody_came(std::os::fd::AsFd::as_fd(&listener)), "error_uri was fetched");

    // What callers get, once there is no token any more.
    let reflected = format!("client_secret {SECRET} is wrong");
    bench.agent.issuer.set_rule(Some(Fault::reply(said(&format!("provider-words {reflected}")))));
    bench.agent.time.advance_to(bench.agent.served_until(BLOOM));
    bench.agent.attempts_until(BLOOM, |attempts| attempts.consecutive_failures == 1).await;
    let status = bench.client.get(BLOOM).await.expect_err("refused");
    assert_eq!(refusal(&status), (Code::Unavailable, "PROVIDER_REFUSED".to_owned(), true));
    let all = format!("{status:?}{:?}", bench.client.list().await);
    assert!(!all.contains("provider-words") && !all.contains("http://"), "{all}");
    let admin = bench.client.status().await.unwrap().profiles.remove(0).last_failure_text;
    assert!(admin.contains("provider-words client_secret *** is wrong"), "{admin}");
    bench.end().await;
}

async fn any_body_of_an_error() {
    let bench = Bench::new().await;
    for (code, verdict) in [(400, REFUSED), (404, REFUSED), (500, PASSING), (503, PASSING), (429, LIMITED)] {
        for text in
            ["", "<html><h1>No</h1></html>", "{", "[]", "null", "{\"error\":", "\u{0}", "{\"errors\":[]}"]
        {
            let reply = Reply { body: text.to_owned().into(), ..status(code, "") };
            bench.rejects_reply(text, reply, verdict.clone()).await;
        }
        let long = Reply { body: "x".repeat(10 << 20).into(), ..status(code, "") };
        bench.rejects_reply("10 MiB", long, verdict.clone()).await;
        let packed = with_header(error(code, "slow_down"), "content-encoding", b"gzip");
        bench.rejects_reply("coded, so that its code is not read", packed, verdict).await;
    }
    bench.end().await;

    // Without an end: it stops reading, and does not wait for the deadline.
    let server = TlsServer::new().await;
    let bench = server.bench().await;
    for (code, verdict) in [("400 No", REFUSED), ("500 No", PASSING)] {
        let endless = async {
            let mut stream = server.accept_tls().await;
            request(&mut stream).await;
            let mut taken = write(&mut stream, format!("HTTP/1.1 {code}\r\n\r\n").as_bytes()).await;
            let mut sent = 0_usize;
            while taken {
                taken = write(&mut stream, &[b'x'; 16 * 1024]).await;
                sent += 16 * 1024;
            }
            sent
        };
        let text = bench.fails(code, verdict, soon("it stops reading", endless)).await;
        assert!(!text.contains("time-out"), "{text}");
        tokio::join!(bench.recovers("well again"), server.answer_well());
    }
    bench.end().await;
}

async fn every_other_4xx() {
    let bench = Bench::new().await;
    let named = [402, 403, 404, 405, 406, 410, 411, 413, 415, 421, 431, 451];
    for code in named
        .into_iter()
        .chain([407, 409, 412, 414, 416, 417, 418, 422, 423, 424, 426, 428, 430, 444, 498, 499])
    {
        bench.rejects_reply(&code.to_string(), status(code, ""), REFUSED).await;
    }
    bench.end().await;
    // Each one waits twice as long as the one before it, to a quarter of an hour.
    let mut setting = Setting::default();
    setting.issuer.lifetime = 30 * 24 * HOUR;
    let bench = Bench::start(setting).await;
    bench.agent.issuer.set_rule(Some(Fault::status(StatusCode::FORBIDDEN)));
    for (failures, seconds) in [30, 60, 120, 240, 480, 900, 900, 900].into_iter().enumerate() {
        bench.fails(&failures.to_string(), REFUSED, async {}).await;
        let wait = bench.agent.next_attempt(BLOOM).await.since(bench.agent.time.now().boot);
        assert_eq!(wait, Duration::from_secs(seconds));
    }
    bench.end().await;
}

async fn what_passes() {
    let bench = Bench::new().await;
    for code in [408, 425, 598, 599].into_iter().chain(500..=511).chain(520..=530) {
        bench.rejects_reply(&code.to_string(), status(code, "<html>"), PASSING).await;
    }
    bench.end().await;
    let mut setting = Setting::default();
    setting.issuer.lifetime = 30 * 24 * HOUR;
    let bench = Bench::start(setting).await;
    bench.agent.issuer.set_rule(Some(Fault::status(StatusCode::BAD_GATEWAY)));
    for (failures, window) in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300].into_iter().enumerate() {
        bench.fails(&failures.to_string(), PASSING, async {}).await;
        let wait = bench.agent.next_attempt(BLOOM).await.since(bench.agent.time.now().boot).as_secs_f64();
        let window = f64::from(window);
        assert!((window * 0.0999..=window).contains(&wait), "{failures}: {wait} of {window}");
    }
    bench.end().await;
}

async fn retry_after_is_kept() {
    let bench = Bench::new().await;
    for code in [429, 503, 500, 408] {
        let reply = with_header(status(code, ""), "retry-after", b"120");
        let text = bench.rejects_reply("120", reply, PASSING.after(120)).await;
        assert!(text.contains("Retry-After 120 s"), "{text}");
    }
    for code in [400, 401, 403] {
        let reply = with_header(error(code, "invalid_request"), "retry-after", b"120");
        bench.rejects_reply("a refusal", reply, REFUSED.after(120)).await;
    }
    bench.end().await;

    let mut setting = Setting::default();
    setting.issuer.lifetime = 24 * HOUR;
    let bench = Bench::start(setting).await;
    let asked = with_header(status(429, ""), "retry-after", b"7200");
    bench.agent.issuer.push_fault(Fault::reply(asked));
    let text = bench.fails("2 h are cut to 1 h", LIMITED.after(3600), async {}).await;
    assert!(text.contains("Retry-After 3600 s, the most that is honoured"), "{text}");
    let count = bench.agent.issuer.request_count();
    bench.agent.time.advance(HOUR - SECOND);
    bench.token().await;
    let next = bench.agent.next_attempt(BLOOM).await;
    assert!(
        next > bench.agent.time.now().boot && bench.agent.issuer.request_count() == count,
        "none before that"
    );
    // The operator's word goes before it.
    bench.client.refresh(BLOOM).await.unwrap();
    assert_eq!(bench.agent.issuer.request_count(), count + 1);
    bench.end().await;

    // Beyond the token's end: callers are told why, and when to ask again.
    let bench = Bench::new().await;
    let asked = with_header(status(429, ""), "retry-after", b"3000");
    bench.agent.issuer.push_fault(Fault::reply(asked));
    bench.fails("50 min", LIMITED.after(3000), async {}).await;
    bench.agent.time.advance_to(bench.agent.served_until(BLOOM));
    let status = bench.client.get(BLOOM).await.expect_err("no token until then");
    assert_eq!(refusal(&status), (Code::Unavailable, "PROVIDER_ERROR".to_owned(), true));
    let left = bench.agent.next_attempt(BLOOM).await.since(bench.agent.time.now().boot);
    assert!(retry_delay(&status).abs_diff(left) < SECOND, "{:?} of {left:?}", retry_delay(&status));
    bench.end().await;
}

async fn every_form_of_retry_after() {
    let bench = Bench::new().await;
    // What is asked for, in seconds; none where it is not to be read.
    let cases: Vec<(String, Option<u64>)> = [
        ("120", Some(120)),
        (" 120 ", Some(120)),
        ("0120", Some(120)),
        ("3600", Some(3600)),
        ("1000000000000000000", Some(3600)),
        ("99999999999999999999999999", Some(3600)),
        ("0", None),
        ("-5", None),
        ("+5", None),
        ("1.5", None),
        ("1e3", None),
        ("soon", None),
        ("", None),
        ("120, 60", None),
        ("Thu, 99 Foo 2026 99:99:99 GMT", None),
        ("DATE+300", Some(300)),
        ("DATE+0", None),
        ("DATE-300", None),
        ("DATE+9999999", Some(3600)),
        ("Thu, 01 Jan 1970 00:00:00 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", Some(3600)),
    ]
    .map(|(text, seconds)| (text.to_owned(), seconds))
    .into();
    for (text, seconds) in cases {
        for (code, own) in [(429, LIMITED), (503, PASSING)] {
            // The dates are of the provider's clock, which it tells, and which need not be ours.
            let clock = 1_900_000_000_i64;
            let value = match text.strip_prefix("DATE") {
                Some(offset) => http_date(clock + offset.parse::<i64>().unwrap()),
                None => text.clone(),
            };
            let reply = with_header(status(code, ""), "date", http_date(clock).as_bytes());
            let reply = with_header(reply, "retry-after", value.as_bytes());
            let verdict: Verdict = seconds.map_or(own.clone(), |seconds| own.after(seconds));
            bench.rejects_reply(&format!("{code}: {value:?}"), reply, verdict).await;
        }
    }
    let twice = |one: &'static str, other: &'static str| {
        let reply = with_header(status(503, ""), "retry-after", one.as_bytes());
        reply.header(header::RETRY_AFTER, http::HeaderValue::from_static(other))
    };
    bench.rejects_reply("two", twice("60", "120"), PASSING.after(120)).await;
    bench.rejects_reply("two", twice("120", "60"), PASSING.after(120)).await;
    bench.rejects_reply("one of two", twice("garbage", "60"), PASSING.after(60)).await;
    bench.end().await;
}

async fn too_many_without_a_word() {
    let mut setting = Setting::default();
    setting.issuer.lifetime = 30 * 24 * HOUR;
    let bench = Bench::start(setting).await;
    bench.rejects_reply("429", status(429, ""), LIMITED).await;
    bench.agent.issuer.set_rule(Some(Fault::status(StatusCode::TOO_MANY_REQUESTS)));
    for (failures, window) in [30, 60, 120, 240, 300, 300].into_iter().enumerate() {
        bench.fails(&failures.to_string(), LIMITED, async {}).await;
        let wait = bench.agent.next_attempt(BLOOM).await.since(bench.agent.time.now().boot).as_secs_f64();
        let window = f64::from(window);
        assert!((30.0 + window * 0.0999..=30.0 + window).contains(&wait), "{failures}: {wait} of {window}");
    }
    bench.end().await;
}

async fn no_redirect() {
    let elsewhere = TlsServer::new().await;
    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bench = Bench::new().await;
    for code in (300..=308).chain([309, 310, 350, 399]) {
        for target in [
            format!("https://{}/token", elsewhere.address()),
            format!("http://{}/token", plain.local_addr().unwrap()),
            "/oauth2/token".to_owned(),
        ] {
            let before = bench.agent.issuer.request_count();
            let reply = with_header(status(code, ""), "location", target.as_bytes());
            bench.rejects_reply(&format!("{code} {target}"), reply, REFUSED).await;
            assert_eq!(
                bench.agent.issuer.request_count(),
                before + 2,
                "{code} {target}: itself, and the good one"
            );
            if code > 308 {
                break;
            }
        }
    }
    assert!(elsewhere.nobody_came() && nobody_came(std::os::fd::AsFd::as_fd(&plain)));
    bench.end().await;
}

async fn interim_answers() {
    let server = TlsServer::new().await;
    let bench = server.bench().await;
    for interim in [
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 102 Processing\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n",
    ] {
        let before = bench.token().await;
        let bytes = [interim.as_bytes(), &good()].concat();
        tokio::join!(bench.recovers(interim), server.answer(&bytes));
        assert!(bench.token().await.generation > before.generation);
    }
    let switch = "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n";
    let bytes = [switch.as_bytes(), &good()].concat();
    bench.fails("101", PASSING, server.answer(&bytes)).await;
    bench.end().await;
}

async fn every_http() {
    let mut server = TlsServer::new().await;
    let bench = server.bench().await;
    let text = body(&[]);
    let head = "content-type: application/json\r\ncache-control: no-store\r\n";
    let closed_at_the_end = format!("HTTP/1.0 200 OK\r\n{head}\r\n{}", body(&[]));
    let (one, two) = text.split_at(20);
    let chunked = format!(
        "HTTP/1.1 200 OK\r\n{head}transfer-encoding: chunked\r\n\r\n\
         {:x}\r\n{one}\r\n{:x};x=y\r\n{two}\r\n0\r\nx: y\r\n\r\n",
        one.len(),
        two.len()
    );
    for bytes in [closed_at_the_end.into_bytes(), chunked.into_bytes(), over_the_wire("200 OK", &body(&[]))] {
        let before = bench.token().await;
        tokio::join!(bench.recovers("HTTP/1"), server.answer(&bytes));
        assert!(bench.token().await.generation > before.generation);
    }
    // The server would keep the connection; the client hangs up.
    let stays = async {
        let mut stream = server.accept_tls().await;
        request(&mut stream).await;
        let keep = String::from_utf8(good()).unwrap().replacen("\r\n", "\r\nconnection: keep-alive\r\n", 1);
        assert!(write(&mut stream, keep.as_bytes()).await);
        let mut rest = Vec::new();
        // An end without close_notify is an end as well.
        let _end = soon("the client hangs up", stream.read_to_end(&mut rest)).await;
        assert_eq!(rest, b"", "and sends nothing more");
    };
    tokio::join!(bench.recovers("kept open"), stays);

    // A reset after the request is there: a token may have been minted, so it counts.
    let requests = bench.client.status().await.unwrap().profiles.remove(0).requests;
    let reset = async {
        let mut stream = server.accept_tls().await;
        request(&mut stream).await;
        stream.get_ref().0.set_zero_linger().unwrap();
    };
    bench.fails("a reset", UNREACHABLE, reset).await;
    assert_eq!(bench.client.status().await.unwrap().profiles.remove(0).requests, requests + 1);
    assert!(server.nobody_came(), "and is not sent again");

    server.config.alpn_protocols = vec![b"h2".to_vec()];
    let second = async {
        let stream = server.accept_tls().await;
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let mut served = 0;
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            served += 1;
            assert_eq!(request.method(), http::Method::POST);
            let response = http::Response::builder().header("content-type", "application/json");
            let mut stream = respond.send_response(response.body(()).unwrap(), false).unwrap();
            stream.send_data(body(&[]).into(), true).unwrap();
        }
        assert_eq!(served, 1, "one stream, and the end of the connection");
    };
    let before = bench.token().await;
    tokio::join!(bench.recovers("HTTP/2"), soon("the connection ends", second));
    assert!(bench.token().await.generation > before.generation);
    bench.end().await;
}
