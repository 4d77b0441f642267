use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::clock::WallTime;

const FORM: &str = "application/x-www-form-urlencoded";
const GOOD: &str =
    "grant_type=client_credentials&client_id=id&client_secret=s%2B1&audience=dev-api&scope=data-access%3Aall";

fn issuer(dialect: Dialect) -> (DevIssuer, Control) {
    let issuer = DevIssuer::new(Options::new(dialect, "id", "s+1"));
    let control = issuer.control();
    (issuer, control)
}

/// An answer as a client reads it.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn token(&self) -> String {
        self.json()["access_token"].as_str().unwrap().to_owned()
    }
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += &format!("content-length: {}\r\n\r\n{body}", body.len());
    text.into_bytes()
}

fn token_request(issuer: &DevIssuer, content_type: &str, body: &str) -> Vec<u8> {
    request("POST", issuer.state.dialect().token_path(), &[("content-type", content_type)], body)
}

/// Every byte that comes back on a connection of its own.
async fn exchange(issuer: &DevIssuer, request: Vec<u8>) -> Vec<u8> {
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    let talk = async {
        client.write_all(&request).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        answer
    };
    tokio::join!(talk, issuer.serve_connection(server)).0
}

async fn ask(issuer: &DevIssuer, content_type: &str, body: &str) -> Answer {
    Answer::parse(&exchange(issuer, token_request(issuer, content_type, body)).await)
}

#[tokio::test]
async fn hydra_grants_for_a_form() {
    let (issuer, control) = issuer(Dialect::Hydra);
    let answer = ask(&issuer, FORM, GOOD).await;
    let json = answer.json();
    assert_eq!(answer.status, 200);
    assert_eq!(
        (&json["expires_in"], &json["scope"], &json["token_type"]),
        (&3600.into(), &"data-access:all".into(), &"bearer".into())
    );
    assert!(answer.head.contains("cache-control: no-store") && answer.head.contains("pragma: no-cache"));
    let token = answer.token();
    assert!(token.starts_with(TOKEN_PREFIX) && control.is_live(&token));
    assert!(crate::token::AccessToken::parse(token.clone().into()).is_ok());
    assert_ne!(ask(&issuer, FORM, GOOD).await.token(), token);
    assert_eq!((control.request_count(), control.granted_count()), (2, 2));
    control.revoke(&token);
    assert!(!control.is_live(&token));
}

#[tokio::test]
async fn auth0_grants_for_a_form_and_for_json() {
    let (issuer, _) = issuer(Dialect::Auth0);
    let json =
        r#"{"grant_type":"client_credentials","client_id":"id","client_secret":"s+1","audience":"dev-api"}"#;
    let form = GOOD.replace("&scope=data-access%3Aall", "");
    for (content_type, body) in [(FORM, form.as_str()), ("application/json", json)] {
        let answer = ask(&issuer, content_type, body).await;
        assert_eq!((answer.status, &answer.json()["token_type"]), (200, &"Bearer".into()), "{}", answer.body);
        assert_eq!(answer.json().get("scope"), None);
    }
    // What the client may not have is left out.
    let answer = ask(&issuer, FORM, &format!("{form}&scope=data-access%3Aall+admin")).await;
    assert_eq!(answer.json()["scope"], "data-access:all");
}

#[tokio::test]
async fn credentials_in_the_header_are_as_good() {
    let (issuer, _) = issuer(Dialect::Hydra);
    let body = "grant_type=client_credentials&audience=dev-api";
    for (credentials, status) in
        [("id:s%2B1", 200), ("id:s+1", 401), ("id:s%2B1x", 401), ("other:s%2B1", 401)]
    {
        let basic = format!("Basic {}", BASE64_STANDARD.encode(credentials));
        let headers = [("content-type", FORM), ("authorization", basic.as_str())];
        let answer = exchange(&issuer, request("POST", "/oauth2/token", &headers, body)).await;
        let answer = Answer::parse(&answer);
        assert_eq!(answer.status, status, "{credentials}");
        assert_eq!(answer.head.contains("www-authenticate: basic"), status == 401, "{credentials}");
    }
}

#[tokio::test]
async fn each_refusal_is_worded_as_the_dialect_has_it() {
    let without = |part: &str| GOOD.replace(part, "");
    let with = |from: &str, to: &str| GOOD.replace(from, to);
    let cases = [
        (Dialect::Hydra, with("s%2B1", "wrong"), 401, "invalid_client"),
        (Dialect::Hydra, with("client_id=id", "client_id=other"), 401, "invalid_client"),
        (Dialect::Hydra, without("&client_secret=s%2B1"), 401, "invalid_client"),
        (Dialect::Hydra, with("dev-api", "api.bloomcredit.io"), 400, "invalid_request"),
        (Dialect::Hydra, with("data-access%3Aall", "data-access%3Aall+admin"), 400, "invalid_scope"),
        (Dialect::Hydra, with("client_credentials", "password"), 400, "unsupported_grant_type"),
        (Dialect::Hydra, without("grant_type=client_credentials&"), 400, "invalid_request"),
        (Dialect::Hydra, format!("{GOOD}&client_id=id"), 400, "invalid_request"),
        (Dialect::Auth0, with("s%2B1", "wrong"), 401, "access_denied"),
        (Dialect::Auth0, with("dev-api", "api.bloomcredit.io"), 403, "access_denied"),
        (Dialect::Auth0, without("&audience=dev-api"), 403, "access_denied"),
        (Dialect::Auth0, with("client_credentials", "password"), 403, "unsupported_grant_type"),
    ];
    for (dialect, body, status, error) in cases {
        let (issuer, control) = issuer(dialect);
        let answer = ask(&issuer, FORM, &body).await;
        assert_eq!((answer.status, &answer.json()["error"]), (status, &error.into()), "{dialect:?} {body}");
        assert_eq!(answer.json().get("error_hint").is_some(), dialect == Dialect::Hydra, "{body}");
        assert_eq!(control.granted_count(), 0);
        assert!(!answer.body.contains("s+1") && !answer.body.contains("wrong"), "{}", answer.body);
    }
    let (hydra, _) = issuer(Dialect::Hydra);
    let answer = ask(&hydra, "application/json", "{}").await;
    assert_eq!((answer.status, &answer.json()["error"]), (400, &"invalid_request".into()));
    let (auth0, _) = issuer(Dialect::Auth0);
    let json = ask(&auth0, FORM, &with("dev-api", "other")).await.json();
    assert_eq!(json["error_description"], "Service not enabled within domain: other");
}

#[tokio::test]
async fn other_paths_and_methods_are_refused_recorded_and_cost_no_fault() {
    let (issuer, control) = issuer(Dialect::Hydra);
    control.push_fault(Fault::status(StatusCode::SERVICE_UNAVAILABLE));
    for (method, path, status) in
        [("GET", "/oauth2/token", 405), ("POST", "/oauth/token", 404), ("GET", "/", 404)]
    {
        let answer = Answer::parse(&exchange(&issuer, request(method, path, &[], "")).await);
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(answer.head.contains("allow: post"), status == 405);
    }
    assert_eq!(ask(&issuer, FORM, GOOD).await.status, 503);
    let seen = control.requests();
    assert_eq!(seen.len(), 4);
    assert_eq!((seen[0].method.as_str(), seen[1].target.as_str()), ("GET", "/oauth/token"));
    assert_eq!(
        (&seen[3].body[..], &seen[3].headers["content-type"]),
        (GOOD.as_bytes(), &FORM.try_into().unwrap())
    );
}

#[tokio::test]
async fn what_is_remembered_is_bounded_and_what_is_counted_is_not() {
    let (issuer, control) = issuer(Dialect::Hydra);
    for n in 0..MAX_RECORDED + 5 {
        exchange(&issuer, request("GET", &format!("/{n}"), &[], "")).await;
    }
    let seen = control.requests();
    assert_eq!((seen.len(), seen[0].target.as_str()), (MAX_RECORDED, "/5"));
    assert_eq!(control.request_count(), (MAX_RECORDED + 5) as u64);
}

#[tokio::test]
async fn a_secret_can_be_rotated() {
    let (issuer, control) = issuer(Dialect::Hydra);
    let new = GOOD.replace("s%2B1", "s2");
    let statuses = async |issuer: &DevIssuer| {
        (ask(issuer, FORM, GOOD).await.status, ask(issuer, FORM, &new).await.status)
    };
    assert_eq!(statuses(&issuer).await, (200, 401));
    control.set_secrets(["s+1", "s2"]);
    assert_eq!(statuses(&issuer).await, (200, 200));
    control.set_secrets(["s2"]);
    assert_eq!(statuses(&issuer).await, (401, 200));
    control.set_secrets([""; 0]);
    assert_eq!(statuses(&issuer).await, (401, 401));
}

#[tokio::test]
async fn faults_come_in_order_then_the_rule_then_the_truth() {
    let (issuer, control) = issuer(Dialect::Auth0);
    let wall = WallTime::from_unix_millis(1_795_356_300_000);
    control.push_fault(Fault::too_many_requests(Some(Duration::from_secs(7)), wall));
    control.push_fault(Fault::lifetime(Duration::from_secs(2)));
    control.push_fault(Fault::same_token());
    control.push_fault(Fault::reply(Reply::json(StatusCode::OK, "not json")));
    control.set_rule(Some(Fault::status(StatusCode::BAD_GATEWAY)));

    let limited = ask(&issuer, FORM, GOOD).await;
    assert_eq!((limited.status, &limited.json()["error"]), (429, &"too_many_requests".into()));
    for line in ["retry-after: 7", "x-ratelimit-remaining: 0", "x-ratelimit-reset: 1795356300"] {
        assert!(limited.head.contains(line), "{}", limited.head);
    }
    let short = ask(&issuer, FORM, GOOD).await;
    assert_eq!(short.json()["expires_in"], 2);
    let same = ask(&issuer, FORM, GOOD).await;
    assert_eq!((same.token(), &same.json()["expires_in"]), (short.token(), &3600.into()));
    assert_eq!(ask(&issuer, FORM, GOOD).await.body, "not json");
    assert_eq!(ask(&issuer, FORM, GOOD).await.status, 502);
    assert_eq!(ask(&issuer, FORM, GOOD).await.status, 502);
    control.set_rule(None);
    control.set_lifetime(Duration::from_secs(9));
    assert_eq!(ask(&issuer, FORM, GOOD).await.json()["expires_in"], 9);
}

#[tokio::test]
async fn a_connection_can_be_closed_unanswered_or_in_the_middle() {
    let (issuer, control) = issuer(Dialect::Hydra);
    control.push_fault(Fault::close());
    assert_eq!(exchange(&issuer, token_request(&issuer, FORM, GOOD)).await, b"");

    control.push_fault(Fault::part(Reply::json(StatusCode::OK, "0123456789"), 4, Ending::Close));
    let answer = Answer::parse(&exchange(&issuer, token_request(&issuer, FORM, GOOD)).await);
    assert!(answer.head.contains("content-length: 10"), "{}", answer.head);
    assert_eq!((answer.status, answer.body.as_str()), (200, "0123"));
}

#[tokio::test]
async fn a_stalled_answer_ends_when_it_is_released() {
    let (issuer, control) = issuer(Dialect::Hydra);
    control.push_fault(Fault::part(Reply::json(StatusCode::OK, "0123456789"), 4, Ending::Stall));
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    let talk = async {
        client.write_all(&token_request(&issuer, FORM, GOOD)).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"0123") {
            assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0, "ended too early");
        }
        control.release();
        assert_eq!(client.read_buf(&mut answer).await.unwrap(), 0);
    };
    tokio::join!(talk, issuer.serve_connection(server));
}

#[tokio::test]
async fn a_held_answer_comes_when_it_is_released() {
    let (issuer, control) = issuer(Dialect::Hydra);
    control.push_fault(Fault::none().held());
    let release = async {
        control.wait_for_request(1).await;
        assert_eq!(control.granted_count(), 0);
        control.release();
    };
    let (answer, ()) = tokio::join!(ask(&issuer, FORM, GOOD), release);
    assert_eq!(answer.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_delayed_answer_comes_by_tokios_clock() {
    let (issuer, control) = issuer(Dialect::Hydra);
    control.push_fault(Fault::none().after(Duration::from_secs(3600)));
    let before = tokio::time::Instant::now();
    assert_eq!(ask(&issuer, FORM, GOOD).await.status, 200);
    assert_eq!(before.elapsed(), Duration::from_secs(3600));
}

#[tokio::test]
async fn an_outage_refuses_or_hangs_until_it_is_over() {
    let (issuer, control) = issuer(Dialect::Hydra);
    control.set_outage(Outage::Refuse);
    assert_eq!(exchange(&issuer, token_request(&issuer, FORM, GOOD)).await, b"");
    assert_eq!(control.request_count(), 0);

    control.set_outage(Outage::Hang);
    let over = async {
        control.wait_for_request(1).await;
        control.set_outage(Outage::Up);
    };
    let (answer, ()) = tokio::join!(ask(&issuer, FORM, GOOD), over);
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn it_listens_on_the_loopback_until_it_is_stopped() {
    let (issuer, run) = DevIssuer::bind(Options::new(Dialect::Auth0, "id", "s+1")).unwrap();
    let address = issuer.address().unwrap();
    assert!(address.ip().is_loopback());
    assert_eq!(issuer.token_url().unwrap(), format!("http://{address}/oauth/token"));
    let control = issuer.control();

    let client = async {
        let ask = async |outcome: &mut Vec<u8>| {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(&token_request(&issuer, FORM, GOOD)).await?;
            stream.read_to_end(outcome).await
        };
        let mut answer = Vec::new();
        ask(&mut answer).await.unwrap();
        assert_eq!(Answer::parse(&answer).status, 200);

        control.set_outage(Outage::Refuse);
        let mut nothing = Vec::new();
        // A reset, or an end before the first byte: which one is a matter of timing.
        let _reset = ask(&mut nothing).await;
        assert_eq!(nothing, b"");

        control.set_outage(Outage::Up);
        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(b"POST").await.unwrap();
        control.stop();
        // The open connection ends with the server.
        let _ended = idle.read_to_end(&mut nothing).await;
        assert_eq!(nothing, b"");
    };
    tokio::join!(run, client);
    // A program that another test starts has the listener from fork(2) to exec(2): it may live a moment longer.
    let gone = async { while TcpStream::connect(address).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("nobody listens any more");
    assert_eq!(control.request_count(), 1);
}

#[test]
fn nothing_prints_a_secret_or_a_token() {
    let options = Options::new(Dialect::Hydra, "id", "canary");
    let printed = format!("{options:?} {:?}", DevIssuer::new(options.clone()));
    assert!(!printed.contains("canary"), "{printed}");
}
