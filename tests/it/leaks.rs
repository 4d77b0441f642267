//! What must not get out, does not: canaries in every place that a secret or a token passes through, and a search for
//! all their forms in everything that the shipped programs print, answer, write and keep.
//!
//! Only `token`, `watch` and `exec` print a token, and nothing prints a secret.

#![allow(clippy::print_stderr, reason = "what is skipped is said there")]

pub(crate) mod canary;
mod crash;
mod panics;
mod process;
mod types;

use std::{process::Output, time::Duration};

use bloom_agent::{
    clock::WallTime,
    dev_issuer::{Dialect, Ending, Fault, Outage, Reply},
    pb,
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use nix::sys::signal::Signal;
use tonic::Status;

use crate::host::{CLIENT_ID, Host, is_root, shown};
use canary::{Canary, Search};

/// All that was seen of the agent from outside, but for what may hold a token.
#[derive(Default)]
struct Seen(Vec<(String, Vec<u8>)>);

impl Seen {
    fn note(&mut self, place: impl Into<String>, bytes: impl AsRef<[u8]>) {
        self.0.push((place.into(), bytes.as_ref().to_vec()));
    }

    fn output(&mut self, place: &str, output: &Output) {
        self.note(format!("stdout of {place}"), &output.stdout);
        self.note(format!("stderr of {place}"), &output.stderr);
    }

    /// Runs the CLI, and keeps what it printed.
    fn cli(&mut self, host: &Host, arguments: &[&str]) -> Output {
        let output = host.cli(arguments);
        self.output(&format!("bloom-agent-cli {}", arguments.join(" ")), &output);
        output
    }

    /// Everything that tells an operator how the agent is.
    fn state(&mut self, host: &Host) {
        for arguments in
            [&["status", "--json"][..], &["list", "--json"], &["status"], &["list"], &["metrics"]]
        {
            let output = self.cli(host, arguments);
            assert!(output.status.success(), "{}", shown(&output));
        }
    }

    /// `bloom-agent check`, which must end with this code.
    fn check(&mut self, host: &Host, name: &str, code: i32) {
        let output = host.check();
        self.output(&format!("bloom-agent check with {name}"), &output);
        assert_eq!(output.status.code(), Some(code), "{name}: {}", shown(&output));
    }

    fn search(&self, search: &Search) {
        for (place, bytes) in &self.0 {
            search.assert_none_in(place, bytes);
        }
    }
}

impl Host {
    /// Fails if a file below the directory holds what is looked for, but for those that are meant to.
    fn assert_only_holds(&self, search: &Search, meant: &[&str]) {
        let mut left = vec![self.directory().to_owned()];
        while let Some(directory) = left.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
                let name = path.strip_prefix(self.directory()).unwrap().to_str().unwrap().to_owned();
                search.assert_none_in("a file's name", &name);
                if kind.is_dir() {
                    left.push(path);
                } else if kind.is_file() && !meant.contains(&&*name) && !name.starts_with("bloom-agent") {
                    search.assert_none_in(&name, std::fs::read(path).unwrap());
                }
            }
        }
    }
}

fn token_of(host: &Host, name: &'static str) -> Canary {
    let output = host.cli(&["token", "bloom"]);
    assert!(output.status.success(), "{}", shown(&output));
    assert!(output.stderr.is_empty(), "{}", shown(&output));
    Canary::token(name, std::str::from_utf8(&output.stdout).unwrap())
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_bytes(text.as_bytes()).unwrap()
}

/// What a provider can do with what it was sent and with what it would give: `said` is in every answer, somewhere.
fn reflections(said: &str) -> Vec<(String, Fault)> {
    let json = |value: serde_json::Value| value.to_string();
    let bodies = [
        (
            "error_description",
            401,
            json(serde_json::json!({"error": "invalid_client", "error_description": said})),
        ),
        ("error_hint", 400, json(serde_json::json!({"error": "invalid_request", "error_hint": said}))),
        ("error", 400, json(serde_json::json!({"error": said}))),
        ("error_uri", 403, json(serde_json::json!({"error": "access_denied", "error_uri": said}))),
        ("error of a 200", 200, json(serde_json::json!({"error": said, "error_description": said}))),
        ("a member's name", 400, json(serde_json::json!({said: said, "error": "server_error"}))),
        (
            "token_type",
            200,
            json(serde_json::json!({"access_token": said, "token_type": said, "expires_in": 60})),
        ),
        (
            "expires_in",
            200,
            json(serde_json::json!({"access_token": said, "token_type": "bearer", "expires_in": said})),
        ),
        ("access_token", 200, json(serde_json::json!({"access_token": [said], "token_type": "bearer"}))),
        (
            "scope",
            200,
            json(serde_json::json!({"access_token": "t", "token_type": "bearer", "scope": {said: 1}})),
        ),
        ("a broken 200", 200, format!("{{\"access_token\":\"{said}\",\"token_type\":\"bearer\"")),
        ("a 200 that is a string", 200, json(serde_json::json!(said))),
        (
            "a member twice",
            200,
            format!("{{\"access_token\":\"{}\",\"access_token\":\"x\"}}", said.escape_default()),
        ),
    ];
    let mut faults: Vec<_> = bodies
        .into_iter()
        .map(|(name, status, body)| {
            (name.to_owned(), Fault::reply(Reply::json(StatusCode::from_u16(status).unwrap(), body)))
        })
        .collect();
    let mut add = |name: &str, reply: Reply| faults.push((name.to_owned(), Fault::reply(reply)));
    let html = format!("<html><title>{said}</title><body>{said}</body></html>");
    let page = |status, body: &str| {
        let reply = Reply { body: body.to_owned().into(), ..Reply::empty(status) };
        reply.header(header::CONTENT_TYPE, HeaderValue::from_static("text/html"))
    };
    add("an HTML 200", page(StatusCode::OK, &html));
    add("an HTML 502", page(StatusCode::BAD_GATEWAY, &html));
    add("plain text", page(StatusCode::FORBIDDEN, said));
    let encoded: String = url::form_urlencoded::byte_serialize(said.as_bytes()).collect();
    for location in [format!("https://127.0.0.1:1/?secret={encoded}"), format!("/{encoded}")] {
        add("Location", Reply::empty(StatusCode::FOUND).header(header::LOCATION, value(&location)));
    }
    let mut headers = Reply::json(StatusCode::BAD_REQUEST, "{}");
    for name in ["www-authenticate", "retry-after", "date", "x-ratelimit-reset", "set-cookie", "x-other"] {
        headers = headers.header(HeaderName::from_static(name), value(&encoded));
    }
    add("headers", headers);
    for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CACHE_CONTROL] {
        let reply = Reply { body: "{}".into(), ..Reply::empty(StatusCode::OK) };
        add(name.clone().as_str(), reply.header(name, value(&encoded)));
    }
    let cut = Reply::json(StatusCode::OK, json(serde_json::json!({"access_token": said, "x": said})));
    faults.push(("a cut body".to_owned(), Fault::part(cut, 60, Ending::Close)));
    faults
}

/// The kinds of failure in which the provider says nothing of its own.
fn plain_faults() -> Vec<(String, Fault)> {
    let mut faults: Vec<_> = [301, 400, 401, 403, 404, 408, 415, 500, 503]
        .map(|code| (code.to_string(), Fault::status(StatusCode::from_u16(code).unwrap())))
        .into();
    let reset = WallTime::from_unix_millis(1_800_000_000_000);
    faults.push(("429".to_owned(), Fault::too_many_requests(Some(Duration::from_secs(7)), reset)));
    faults.push(("close".to_owned(), Fault::close()));
    faults.push(("an empty 200".to_owned(), Fault::status(StatusCode::OK)));
    faults
}

/// Every rpc, in every way that it can fail, as the bytes of what came over the socket; and what reflection and health say.
async fn call_everything(host: &Host, seen: &mut Seen) {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest,
    };

    let channel = host.channel().await;
    let mut tokens = pb::token_service_client::TokenServiceClient::new(channel.clone());
    let mut admin = pb::admin_service_client::AdminServiceClient::new(channel.clone());
    let mut said = |place: &str, status: Option<Status>| {
        if let Some(status) = status {
            seen.note(format!("the details of {place}"), status.details());
            seen.note(format!("the status of {place}"), format!("{status} {status:?}"));
        }
    };
    for name in ["bloom", "", "nobody", "-"] {
        let name = name.to_owned();
        let request = pb::GetTokenRequest { name: name.clone(), min_validity: None };
        let mut request = tonic::Request::new(request);
        request.set_timeout(Duration::from_secs(20));
        said("GetToken", tokens.get_token(request).await.err());
        let request = pb::ReportRejectedRequest { name: name.clone(), generation: 1 };
        said("ReportRejected", tokens.report_rejected(request).await.err());
        if name != "bloom" {
            said("WatchToken", tokens.watch_token(pb::WatchTokenRequest { name: name.clone() }).await.err());
        }
        let refreshed = admin.refresh_token(pb::RefreshTokenRequest { name }).await;
        said("RefreshToken", refreshed.err());
    }
    said("Reload", admin.reload(pb::ReloadRequest {}).await.err());
    let status = admin.get_status(pb::GetStatusRequest {}).await.unwrap().into_inner();
    let metrics = admin.get_metrics(pb::GetMetricsRequest {}).await.unwrap().into_inner();
    let list = tokens.list_tokens(pb::ListTokensRequest {}).await.unwrap().into_inner();
    seen.note("GetStatus", prost::Message::encode_to_vec(&status));
    seen.note("Debug of GetStatus", format!("{status:?} {list:?} {metrics:?}"));
    seen.note("GetMetrics", prost::Message::encode_to_vec(&metrics));
    seen.note("ListTokens", prost::Message::encode_to_vec(&list));

    let mut health = HealthClient::new(channel.clone());
    for service in ["", "bloom", "nobody"] {
        let answer = health.check(HealthCheckRequest { service: service.to_owned() }).await;
        seen.note("health", format!("{answer:?}"));
    }
    let mut reflection = ServerReflectionClient::new(channel);
    for ask in [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("bloom.agent.v1.Token".to_owned()),
        MessageRequest::FileByFilename("no".to_owned()),
    ] {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
        let answer = reflection.server_reflection_info(tokio_stream::iter([request])).await;
        let answer = match answer {
            Ok(answers) => answers.into_inner().message().await,
            Err(status) => Err(status),
        };
        seen.note("reflection", format!("{answer:?}"));
        seen.note(
            "reflection",
            answer.map(|answer| prost::Message::encode_to_vec(&answer.unwrap())).unwrap_or_default(),
        );
    }
}

/// Whether the agent takes a config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Yes,
    No,
}

/// Configs into which somebody pasted a secret, and whether the agent takes them all the same.
fn pasted(host: &Host, canary: &str, good: &str) -> Vec<(&'static str, String, Taken)> {
    let url = &host.issuer.token_url;
    let with = |lines: &str| good.to_owned() + lines;
    let at = |url: &str| good.replace(&host.issuer.token_url, url);
    let file = format!("client_secret.file = {:?}", host.path("secret"));
    let instead = |line: &str| good.replace(&file, line);
    vec![
        ("client_secret as text", instead(&format!("client_secret = \"{canary}\"")), Taken::No),
        ("client_secret beside a file", with(&format!("client_secret = \"{canary}\"\n")), Taken::No),
        ("client_secret.value", instead(&format!("client_secret.value = \"{canary}\"")), Taken::No),
        ("client_secret.file", instead(&format!("client_secret.file = \"{canary}\"")), Taken::No),
        ("an unknown key's value", with(&format!("password = \"{canary}\"\n")), Taken::No),
        ("a key's name", with(&format!("{canary} = true\n")), Taken::No),
        ("a quoted key's name", with(&format!("\"{canary} x\" = true\n")), Taken::No),
        ("a table's name", with(&format!("[{canary}]\n")), Taken::No),
        ("a profile's name", with(&format!("[tokens.\"{canary} x\"]\n")), Taken::No),
        ("a profile's unknown table", with(&format!("[tokens.bloom.{canary}]\n")), Taken::No),
        ("a URL's user", at(&url.replace("https://", &format!("https://{canary}@"))), Taken::No),
        ("a URL's password", at(&url.replace("https://", &format!("https://id:{canary}@"))), Taken::No),
        ("a URL's fragment", at(&format!("{url}#{canary}")), Taken::No),
        ("a URL's scheme", at(&url.replace("https://", &format!("{canary}://"))), Taken::No),
        ("token_url itself", at(canary), Taken::No),
        ("a proxy's password", with(&format!("proxy = \"http://id:{canary}@127.0.0.1:1\"\n")), Taken::No),
        ("extra.client_secret", with(&format!("extra = {{ client_secret = \"{canary}\" }}\n")), Taken::No),
        ("extra of a wrong type", with(&format!("extra = {{ a = [\"{canary}\"] }}\n")), Taken::No),
        ("a value out of range", with(&format!("auth_method = \"{canary}\"\n")), Taken::No),
        ("provider", good.replace("\"oauth2\"", &format!("\"{canary}\"")), Taken::No),
        ("scopes", with(&format!("scopes = [\"{canary} x\"]\n")), Taken::No),
        ("allow", with(&format!("allow = [\"{canary}\"]\n")), Taken::No),
        ("a duration", with(&format!("assumed_lifetime = \"{canary}\"\n")), Taken::No),
        ("a line that is no TOML", with(&format!("client_secret: {canary}\n")), Taken::No),
        ("a string without its end", with(&format!("audience = \"{canary}\n")), Taken::No),
        ("a bare value", with(&format!("audience = {canary}\n")), Taken::No),
        ("a key twice", with(&format!("client_id = \"{canary}\"\n")), Taken::No),
        ("ca_file", with(&format!("ca_file = \"{canary}\"\n")), Taken::No),
        // A provider may ask for these, so they are taken; nobody prints them.
        ("a URL's query", at(&format!("{url}?key={canary}")), Taken::Yes),
        ("extra", with(&format!("extra = {{ a = \"{canary}\" }}\n")), Taken::Yes),
    ]
}

/// A whole life of an agent that logs everything, with everything going wrong that can.
fn a_life(dialect: Dialect, log: &str, profile: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (secret, next, wrong) =
        (Canary::secret("the secret"), Canary::secret("the next secret"), Canary::secret("a wrong secret"));
    let paste = Canary::plain("what was pasted");
    let mut tokens = Vec::new();
    let mut seen = Seen::default();

    let host = Host::with_dialect(dialect, &secret.text);
    host.write("next", &next.text, 0o600);
    let lines =
        format!("{profile}\naudience = \"dev-api\"\nclient_secret_next.file = {:?}\n", host.path("next"));
    let good = format!(
        "[log]\nlevel = \"trace\"\nformat = \"{log}\"\n{}{}",
        host.agent_table(""),
        host.profile("bloom", &lines)
    );
    host.config(&good);
    seen.check(&host, "a good config", 0);
    let agent = if log == "journal" { host.run_in_journal() } else { host.run() };
    let refresh = |seen: &mut Seen, name: &str, ends_well: bool| {
        let output = host.cli(&["refresh", "bloom"]);
        assert_eq!(output.status.success(), ends_well, "{name}: {}\n{}", shown(&output), agent.log());
        seen.output(&format!("bloom-agent-cli refresh after {name}"), &output);
    };

    // It works, in turn with either secret.
    tokens.push(token_of(&host, "the first token"));
    seen.state(&host);
    host.issuer.control.set_secrets([next.text.clone()]);
    refresh(&mut seen, "a rotation to client_secret_next", true);
    tokens.push(token_of(&host, "the second token"));
    host.issuer.control.set_secrets(["somebody else's"]);
    refresh(&mut seen, "both secrets were refused", false);
    host.issuer.control.set_secrets([secret.text.clone(), next.text.clone()]);
    refresh(&mut seen, "good again", true);

    // The provider says back what it was told, and what it would have given.
    let mint = Canary::token("a token that is not given", &host.issuer.control.mint());
    let held = token_of(&host, "the token held");
    let unauthorized = || Fault::status(StatusCode::UNAUTHORIZED);
    let pair = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        format!("{CLIENT_ID}:{}", secret.text),
    );
    let form = url::form_urlencoded::byte_serialize(secret.text.as_bytes()).collect();
    // Written anew, it is the first to be sent again.
    host.write("secret", &secret.text, 0o600);
    for said in [&secret.text, &pair, &form] {
        for (name, fault) in reflections(said) {
            // What a request carried can come back with the answer to it.
            host.issuer.control.push_fault(fault);
            host.issuer.control.set_rule(Some(unauthorized()));
            refresh(&mut seen, &name, false);
        }
        seen.state(&host);
    }
    for (name, fault) in reflections(&next.text) {
        host.issuer.control.push_fault(unauthorized());
        host.issuer.control.set_rule(Some(fault));
        refresh(&mut seen, &name, false);
    }
    seen.state(&host);
    for said in [&mint.text, &held.text] {
        for (name, fault) in reflections(said) {
            host.issuer.control.set_rule(Some(fault));
            refresh(&mut seen, &name, false);
        }
        seen.state(&host);
    }
    host.issuer.control.set_rule(None);
    tokens.extend([mint, held]);
    for (name, fault) in plain_faults() {
        host.issuer.control.set_rule(Some(fault));
        refresh(&mut seen, &name, false);
    }
    host.issuer.control.set_rule(None);
    host.issuer.control.set_outage(Outage::Refuse);
    refresh(&mut seen, "the provider was down", false);
    seen.state(&host);
    host.issuer.control.set_outage(Outage::Up);

    // The file is not what it should be. The other one is as bad, or the agent would make do with it.
    let text = wrong.text.as_bytes();
    for (name, bytes, mode) in [
        ("two lines", [text, b"\n", text, b"\n"].concat(), 0o600),
        ("CRLF", [text, b"\r\n"].concat(), 0o600),
        ("a key=value line and another", [b"client_secret=", text, b"\nx=y\n"].concat(), 0o600),
        ("binary", [&b"\x7fELF\0\xff"[..], text, b"\0"].concat(), 0o600),
        ("not UTF-8", [text, b"\xff"].concat(), 0o600),
        ("too long", text.repeat(3000), 0o600),
        ("readable by others", text.to_vec(), 0o644),
        ("not the provider's", text.to_vec(), 0o600),
    ] {
        for file in ["secret", "next"] {
            host.write_bytes(file, &bytes, mode);
        }
        refresh(&mut seen, name, false);
        seen.state(&host);
        seen.check(&host, name, if name.starts_with("not the") { 0 } else { 78 });
    }
    host.write("secret", &secret.text, 0o600);
    host.write("next", &next.text, 0o600);
    refresh(&mut seen, "the file is good again", true);

    // The config is not what it should be: by an admin's call, by a signal, by a check.
    for (name, config, taken) in pasted(&host, &paste.text, &good) {
        host.config(&config);
        seen.check(&host, name, if taken == Taken::Yes { 0 } else { 78 });
        let output = seen.cli(&host, &["reload"]);
        assert_eq!(output.status.success(), taken != Taken::No, "{name}: {}", shown(&output));
        let word = if taken == Taken::No { "not reloaded" } else { "reloaded" };
        agent.wait_for_log(word);
        agent.signal(Signal::SIGHUP);
        agent.wait_for_log(word);
        if taken != Taken::No {
            seen.state(&host);
        }
    }
    runtime.block_on(call_everything(&host, &mut seen));
    host.config(&pasted(&host, &paste.text, &good)[0].1);
    runtime.block_on(call_everything(&host, &mut seen));
    host.config(&good);
    assert!(seen.cli(&host, &["reload"]).status.success());
    tokens.push(token_of(&host, "the last token"));

    let (status, out, log) = agent.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    seen.note("stdout of bloom-agent run", out);
    seen.note("the log of bloom-agent run", &log);
    assert!(log.contains("invalid_client"), "nothing of the provider's is in the log: {log}");
    let secrets = [secret, next, wrong, paste];
    let search = Search::new(CLIENT_ID, secrets.iter().chain(&tokens));
    seen.search(&search);
    host.assert_only_holds(&search, &["secret", "next"]);
}

#[test]
fn a_life_in_text_with_client_secret_post() {
    a_life(Dialect::Hydra, "text", "auth_method = \"client_secret_post\"");
}

#[test]
fn a_life_in_json_with_client_secret_basic() {
    a_life(Dialect::Hydra, "json", "auth_method = \"client_secret_basic\"");
}

#[test]
fn a_life_in_text_with_a_json_body() {
    a_life(Dialect::Auth0, "text", "auth_method = \"client_secret_post\"\nbody = \"json\"");
}

#[test]
fn a_life_in_json_with_client_secret_basic_and_a_json_body() {
    a_life(Dialect::Auth0, "json", "auth_method = \"client_secret_basic\"\nbody = \"json\"");
}

#[test]
fn a_life_in_the_journal() {
    if is_root("a_life_in_the_journal") {
        a_life(Dialect::Hydra, "journal", "auth_method = \"client_secret_post\"");
    }
}

#[test]
fn an_agent_that_never_got_a_token_tells_its_callers_nothing_of_why() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (secret, token) = (Canary::secret("the secret"), Canary::plain("a token"));
    let search = Search::new(CLIENT_ID, [&secret, &token]);
    for said in [&secret.text, &token.text] {
        let host = Host::new(&secret.text);
        let description = serde_json::json!({"error": "invalid_client", "error_description": said});
        let reply = Reply::json(StatusCode::UNAUTHORIZED, description.to_string());
        host.issuer.control.set_rule(Some(Fault::reply(reply)));
        host.config(
            &("[log]\nlevel = \"trace\"\n".to_owned() + &host.agent_table("") + &host.profile("bloom", "")),
        );
        let agent = host.run();
        let mut seen = Seen::default();
        // Each makes the next attempt later than any caller waits for.
        for _ in 0..3 {
            assert!(!seen.cli(&host, &["refresh", "bloom"]).status.success());
        }
        for arguments in [
            &["token", "bloom"][..],
            &["token"],
            &["token", "nobody"],
            &["exec", "nobody", "--", "true"],
            &["report-rejected", "bloom"],
        ] {
            let output = seen.cli(&host, arguments);
            assert!(!output.status.success(), "{arguments:?}: {}", shown(&output));
        }
        seen.state(&host);
        runtime.block_on(call_everything(&host, &mut seen));
        let (_, out, log) = agent.stop();
        seen.note("the log", log + &out);
        seen.search(&search);
    }
}

#[test]
fn a_config_that_keeps_the_agent_from_starting_is_not_quoted() {
    let paste = Canary::plain("what was pasted");
    let host = Host::new("s3cret");
    let good = host.agent_table("") + &host.profile("bloom", "");
    let mut seen = Seen::default();
    for (name, config, taken) in pasted(&host, &paste.text, &good) {
        if taken == Taken::No {
            host.config(&config);
            let (status, out, log) = host.start().wait();
            assert_eq!(status.code(), Some(78), "{name}: {log}");
            seen.note(name, out + &log);
        }
    }
    seen.search(&Search::new(CLIENT_ID, [&paste]));
}

#[test]
fn no_help_tells_what_is_in_the_environment() {
    let canary = Canary::plain("a token in the environment");
    let host = Host::new("s3cret");
    let mut seen = Seen::default();
    for (program, verbs) in [
        ("bloom-agent", &["run", "check", "dev"][..]),
        (
            "bloom-agent-cli",
            &["token", "watch", "list", "status", "refresh", "reload", "report-rejected", "exec", "metrics"],
        ),
    ] {
        for verb in verbs {
            for arguments in [
                &["--help"][..],
                &["--version"],
                &[verb, "--help"],
                &[verb, "--no-such-option"],
                &["help", verb],
            ] {
                let mut command = std::process::Command::new(host.program(program));
                let variables = ["BLOOM_TOKEN", "BLOOM_AGENT_SOCK", "CREDENTIALS_DIRECTORY", "CLIENT_SECRET"];
                command.args(arguments).envs(variables.map(|name| (name, &canary.text)));
                seen.output(&format!("{program} {}", arguments.join(" ")), &command.output().unwrap());
            }
        }
    }
    seen.search(&Search::new(CLIENT_ID, [&canary]));
}
