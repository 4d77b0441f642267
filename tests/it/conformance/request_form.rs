//! What a provider is asked, and what it is never told.

use std::sync::Mutex;

use bloom_agent::dev_issuer::{Dialect, Fault, Recorded};
use http::{Method, StatusCode, header};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use super::{
    bench::{Bench, MINUTE, assert_fault, basic, faults_of, form},
    rows,
    tls_server::{NAME, TlsServer, carry, here, request},
};
use crate::{
    host::{Host, check_as_ourselves, is_root, messages},
    support::{BLOOM, SECRET, Setting, profile, write_secret},
};

rows! {
    one_post_to_the_endpoint => "A token request is a POST to exactly the configured endpoint, whatever was answered before; never a GET", "RFC 6749 §3.2";
    the_media_types => "The body is `application/x-www-form-urlencoded` in UTF-8 (`application/json` where the config says so), and `Accept` is `application/json`", "RFC 6749 §4.4.2";
    the_grant_type => "`grant_type=client_credentials` is there exactly once", "RFC 6749 §4.4.2";
    nothing_twice_and_nothing_empty => "No parameter is sent twice (but `resource`), and none that is empty", "RFC 6749 §3.2";
    basic_is_form_encoded => "`client_secret_basic`: id and secret are each form-encoded, then joined with a colon, then Base64, at any length", "RFC 6749 §2.3.1";
    post_is_in_the_body_only => "`client_secret_post`, the default: id and secret are in the body, never in the URI", "RFC 6749 §2.3.1";
    one_method_of_authentication => "Never more than one method of client authentication in a request", "RFC 6749 §2.3";
    a_server_that_does_not_decode_basic => "A server that does not decode `client_secret_basic` is sent no other encoding: `client_secret_post` serves it", "RFC 6749 §2.3.1";
    nothing_secret_in_an_address => "No secret and no token is in a URL, a Referer, a proxy's CONNECT or a User-Agent", "RFC 6750 §5.3";
    no_fragment_and_the_query_stays => "An endpoint with a fragment is a fault of the config; its query is sent as it is written", "RFC 6749 §3.2";
    no_plaintext => "An `http://` endpoint is a fault of the config, on the loopback too", "RFC 6749 §3.2";
    no_user_in_an_endpoint => "An endpoint with a user or a password is a fault of the config, which does not repeat it", "policy";
    the_scope => "`scope` is sent only if configured, in the order of the config, and its characters are checked", "RFC 6749 §3.3";
    resource_and_audience => "`resource` is an absolute URI without a fragment, repeated for several; `audience` is sent only if there is one", "RFC 8707 §2";
    a_token_is_one_profiles => "A token belongs to one profile, even where two would ask for the same", "RFC 9700 §2.3";
    further_parameters => "Further parameters come from a config that nobody else can write, and override nothing that the agent sets", "policy";
}

/// A profile that asks for everything that can be asked for.
const EVERYTHING: &str = "audience = 'https://api.example.com'\nresource = ['https://a.example', 'urn:b']\n\
     scopes = ['data-access:all', 'furnishment:all']\nextra = { tenant = 'caf\u{e9}', a = '&=' }\n";

/// What an agent with these further lines sends first.
async fn first_request(lines: &str, dialect: Dialect) -> Recorded {
    let mut setting = Setting { tokens: profile(BLOOM, lines), ..Setting::default() };
    setting.issuer.dialect = dialect;
    let bench = Bench::start(setting).await;
    let request = bench.last_request();
    bench.end().await;
    request
}

async fn one_post_to_the_endpoint() {
    let bench = Bench::new().await;
    for status in [301, 303, 400, 404, 405, 500] {
        let fault = Fault::status(StatusCode::from_u16(status).unwrap());
        bench.agent.issuer.push_fault(fault);
        bench.agent.pass_an_attempt(BLOOM).await;
        bench.recovers("well again").await;
    }
    bench.client.refresh(BLOOM).await.unwrap();
    let token = bench.token().await;
    bench.agent.time.advance(MINUTE);
    assert!(bench.client.report(BLOOM, token.generation).await.unwrap().is_new);
    let requests = bench.agent.issuer.requests();
    assert_eq!(requests.len(), 1 + 2 * 6 + 2);
    for request in requests {
        assert_eq!((request.method, &*request.target), (Method::POST, Dialect::Hydra.token_path()));
    }
    bench.hide(&token.access_token);
    bench.end().await;
}

async fn the_media_types() {
    for (lines, dialect, content_type) in [
        ("", Dialect::Hydra, "application/x-www-form-urlencoded"),
        ("body = 'json'", Dialect::Auth0, "application/json"),
    ] {
        let request = first_request(&format!("{lines}\naudience = 'caf\u{e9} au lait'"), dialect).await;
        let header = |name| request.headers.get_all(name).iter().collect::<Vec<_>>();
        assert_eq!(header(header::CONTENT_TYPE), [content_type]);
        assert_eq!(header(header::ACCEPT), ["application/json"]);
        let body = std::str::from_utf8(&request.body).expect("UTF-8");
        assert!(body.contains("caf%C3%A9+au+lait") || body.contains("\"caf\u{e9} au lait\""), "{body}");
    }
}

async fn the_grant_type() {
    for method in ["client_secret_post", "client_secret_basic"] {
        for (body, dialect) in [("form", Dialect::Hydra), ("json", Dialect::Auth0)] {
            let lines = format!("auth_method = '{method}'\nbody = '{body}'\nextra = {{ Grant = 'x' }}");
            let request = first_request(&lines, dialect).await;
            let text = std::str::from_utf8(&request.body).unwrap();
            assert_eq!(text.matches("grant_type").count(), 1, "{text}");
            let first = if body == "form" {
                "grant_type=client_credentials&"
            } else {
                r#"{"grant_type":"client_credentials","#
            };
            assert!(text.starts_with(first), "{text}");
        }
    }
}

async fn nothing_twice_and_nothing_empty() {
    for method in ["client_secret_post", "client_secret_basic"] {
        let lines = format!("{EVERYTHING}auth_method = '{method}'");
        let parameters = form(&first_request(&lines, Dialect::Hydra).await);
        for (name, value) in &parameters {
            let count = parameters.iter().filter(|(other, _)| other == name).count();
            assert_eq!(count, if name == "resource" { 2 } else { 1 }, "{name}");
            assert!(!value.is_empty(), "{name}");
        }
    }
    for (lines, key) in [
        ("audience = ''", "audience"),
        ("resource = ['']", "resource[0]"),
        ("scopes = ['']", "scopes[0]"),
        ("extra = { a = '' }", "extra.a"),
        ("client_id = ''", "client_id"),
    ] {
        assert_fault(lines, key, "");
    }
    let lines = "provider = 'oauth2'\nscopes = []\nresource = []\nextra = {}";
    assert_eq!(faults_of(lines), "");
}

async fn basic_is_form_encoded() {
    let long = "k".repeat(1024);
    let vectors = [
        ("a b", "a+b"),
        ("a+b", "a%2Bb"),
        ("a:b", "a%3Ab"),
        ("100%", "100%25"),
        ("a/b", "a%2Fb"),
        ("caf\u{e9}", "caf%C3%A9"),
        (&long, &long),
    ];
    let mut setting =
        Setting { tokens: profile(BLOOM, "auth_method = 'client_secret_basic'"), ..Setting::default() };
    setting.issuer.secrets.extend(vectors.map(|(secret, _)| secret.to_owned()));
    let bench = Bench::start(setting).await;
    assert_eq!(basic(&bench.last_request()).as_deref(), Some(&*format!("it-client:{SECRET}")));
    for (secret, encoded) in vectors {
        bench.hide(secret);
        write_secret(&bench.agent.secret_file(), secret);
        bench.recovers(encoded).await;
        assert_eq!(basic(&bench.last_request()), Some(format!("it-client:{encoded}")));
    }
    bench.end().await;

    // The id is encoded in the same way, so that its colon is not the one that parts the two.
    for (id, encoded) in [("i:d", "i%3Ad"), ("i d", "i+d"), ("i%2B", "i%252B")] {
        let tokens = profile(BLOOM, "auth_method = 'client_secret_basic'").replace("it-client", id);
        let mut setting = Setting { tokens, ..Setting::default() };
        setting.issuer.client_id = id.to_owned();
        let bench = Bench::start(setting).await;
        assert_eq!(basic(&bench.last_request()), Some(format!("{encoded}:{SECRET}")));
        bench.end().await;
    }
}

async fn post_is_in_the_body_only() {
    for lines in ["", "auth_method = 'client_secret_post'"] {
        let request = first_request(lines, Dialect::Hydra).await;
        let wanted = [("client_id", "it-client"), ("client_secret", SECRET)];
        for (name, value) in wanted.map(|(name, value)| (name.to_owned(), value.to_owned())) {
            assert!(form(&request).contains(&(name, value)));
        }
        assert_eq!(request.target, Dialect::Hydra.token_path());
    }
    let lines = "token_url = 'https://id.example.com/token?client_secret=c4n4ry'";
    assert_fault(lines, "token_url", "");
}

async fn one_method_of_authentication() {
    let in_body = ["client_id", "client_secret", "client_assertion", "client_assertion_type"];
    for (body, dialect) in [("form", Dialect::Hydra), ("json", Dialect::Auth0)] {
        for (method, names) in [("client_secret_post", 2), ("client_secret_basic", 0)] {
            let lines = format!("{EVERYTHING}auth_method = '{method}'\nbody = '{body}'");
            let request = first_request(&lines, dialect).await;
            let text = std::str::from_utf8(&request.body).unwrap();
            let found = in_body
                .iter()
                .filter(|name| text.contains(&format!("{name}{}", if body == "form" { "=" } else { "\":" })));
            assert_eq!(found.count(), names, "{method}: {text}");
            let headers = request.headers.get_all(header::AUTHORIZATION).iter().count();
            assert_eq!(headers, usize::from(names == 0), "{method}");
        }
    }
}

async fn a_server_that_does_not_decode_basic() {
    const RAW: &str = "a+b/c";
    let bench = Bench::with("auth_method = 'client_secret_basic'").await;
    bench.hide(RAW);
    write_secret(&bench.agent.secret_file(), RAW);
    // It compares what is encoded with what is not.
    bench.agent.issuer.set_secrets(["another"]);
    let before = bench.agent.issuer.request_count();
    for attempts in 1..=3 {
        bench.agent.pass_an_attempt(BLOOM).await;
        assert_eq!(bench.agent.issuer.request_count(), before + attempts, "one request, and no guess");
        let request = bench.last_request();
        assert_eq!(basic(&request).as_deref(), Some("it-client:a%2Bb%2Fc"));
        assert!(!form(&request).iter().any(|(name, _)| name.starts_with("client_")));
    }
    bench.agent.issuer.set_secrets([RAW]);
    bench.agent.write_config(&profile(BLOOM, "auth_method = 'client_secret_post'"));
    bench.client.reload().await.unwrap();
    bench.token().await;
    assert!(form(&bench.last_request()).contains(&("client_secret".to_owned(), RAW.to_owned())));
    bench.end().await;
}

async fn nothing_secret_in_an_address() {
    let provider = TlsServer::new().await;
    let proxy = TlsServer::new().await;
    let lines = format!(
        "{}auth_method = 'client_secret_basic'\nproxy = 'http://{}'",
        provider.lines(),
        proxy.address()
    );
    let (heads, through) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let exchange = async {
        let serve = async {
            let mut near = proxy.accept().await;
            let connect = request(&mut near).await;
            near.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
            let far = TcpStream::connect(provider.address()).await.unwrap();
            heads.lock().unwrap().push(connect);
            carry(near, far, &through).await;
        };
        let (request, ()) = tokio::join!(provider.answer_well(), serve);
        heads.lock().unwrap().push(request);
    };
    let setting = Setting { tokens: profile(BLOOM, &lines), look_ups: here(), ..Setting::default() };
    let (bench, ()) = tokio::join!(Bench::start(setting), exchange);
    let token = bench.token().await.access_token;
    bench.hide(&token);
    // Once more, now that there is a token to betray.
    let serve = async {
        let mut near = proxy.accept().await;
        let connect = request(&mut near).await;
        heads.lock().unwrap().push(connect);
        near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let far = TcpStream::connect(provider.address()).await.unwrap();
        carry(near, far, &through).await;
    };
    let (_, seen, ()) = tokio::join!(bench.agent.pass_an_attempt(BLOOM), provider.answer_well(), serve);
    heads.lock().unwrap().push(seen);
    let port = provider.address().port();
    let heads = heads.into_inner().unwrap();
    assert_eq!(heads.len(), 4);
    for head in heads {
        let (head, _body) = head.split_once("\r\n\r\n").unwrap();
        let first = head.lines().next().unwrap();
        let connects = format!("CONNECT {NAME}:{port} HTTP/1.1");
        assert!(first == "POST /token?tenant=a%20b HTTP/1.1" || first == connects, "{first}");
        for line in head.lines().filter(|line| !line.starts_with("authorization: ")) {
            assert!(
                !line.contains(SECRET) && !line.contains(&token) && !line.contains("it-client"),
                "{line}"
            );
        }
        let lower = head.to_ascii_lowercase();
        assert!(!lower.contains("\nreferer:") && !lower.contains("\nproxy-authorization:"), "{head}");
        assert_eq!(lower.contains("\nauthorization:"), first.starts_with("POST"), "{head}");
        let agent = concat!("user-agent: bloom-agent/", env!("CARGO_PKG_VERSION"));
        assert!(lower.lines().any(|line| line == agent), "{head}");
    }
    let through = through.into_inner().unwrap();
    assert!(!through.windows(6).any(|w| w == b"secret") && through.len() > 500, "in clear through the proxy");
    bench.end().await;
}

async fn no_fragment_and_the_query_stays() {
    for url in
        ["https://id.example.com/token#c4n4ry", "https://id.example.com/#", "https://id.example.com/t?a=b#x"]
    {
        assert_fault(&format!("token_url = '{url}'"), "token_url", "fragment");
    }
    let server = TlsServer::new().await;
    for query in ["?tenant=a%20b&x", "?", "?a=%C3%A9+b&a=c", ""] {
        let url = format!("https://{NAME}:{}/oauth2/token{query}", server.address().port());
        let tokens = profile(BLOOM, &server.lines_at(&url));
        let setting = Setting { tokens, look_ups: here(), ..Setting::default() };
        let (bench, seen) = tokio::join!(Bench::start(setting), server.answer_well());
        assert!(seen.starts_with(&format!("POST /oauth2/token{query} HTTP/1.1\r\n")), "{seen}");
        bench.end().await;
    }
}

async fn no_plaintext() {
    for url in [
        "http://id.example.com/token",
        "http://localhost/token",
        "http://127.0.0.1:8080/token",
        "http://[::1]:8080/token",
        "HTTP://id.example.com/c4n4ry",
        "ftp://id.example.com/",
    ] {
        assert_fault(&format!("token_url = '{url}'"), "token_url", "https://");
    }
}

async fn no_user_in_an_endpoint() {
    for url in [
        "https://c4n4ry@id.example.com/",
        "https://u:c4n4ry@id.example.com/",
        "https://@id.example.com/c4n4ry",
    ] {
        assert_fault(&format!("token_url = '{url}'"), "token_url", "names a user or a password");
    }
}

async fn the_scope() {
    let scope =
        |request: &Recorded| form(request).into_iter().find(|(name, _)| name == "scope").map(|(_, v)| v);
    for (scopes, sent) in [
        ("['furnishment:all', 'data-access:all']", "furnishment:all data-access:all"),
        ("['data-access:all']", "data-access:all"),
    ] {
        let request = first_request(&format!("scopes = {scopes}"), Dialect::Hydra).await;
        assert_eq!(scope(&request).as_deref(), Some(sent));
    }
    let tokens = profile(BLOOM, "").replace(
        "provider = 'bloom'\nenvironment = 'sandbox'",
        "provider = 'bloom-v1'\nenvironment = 'sandbox'",
    );
    let tokens = tokens.replace("scopes = ['data-access:all']\n", "");
    let bench = Bench::start(Setting { tokens, ..Setting::default() }).await;
    assert_eq!(scope(&bench.last_request()), None, "the provider's own default");
    bench.end().await;
    for bad in ["a b", "caf\u{e9}", "a\\tb", "\\\"", "\\\\", ""] {
        assert_fault(&format!("scopes = [\"ok\", \"{bad}\"]"), "scopes[1]", "");
    }
    let all: String = ('!'..='~').filter(|c| !"\"\\".contains(*c)).collect();
    assert_eq!(faults_of(&format!("scopes = [\"{all}\"]")), "");
}

async fn resource_and_audience() {
    let parameters = form(&first_request(EVERYTHING, Dialect::Hydra).await);
    let all = |wanted: &str| {
        let named = parameters.iter().filter(|(name, _)| name == wanted);
        named.map(|(_, value)| value.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(all("resource"), ["https://a.example", "urn:b"]);
    assert_eq!(all("audience"), ["https://api.example.com"]);
    for bad in ["api.example.com", "/api", "https://a.example/#f", "https://a.example/#", "https://a b"] {
        assert_fault(&format!("resource = ['https://ok.example', '{bad}']"), "resource[1]", "");
    }
    let server = TlsServer::new().await;
    let lines = format!("{}provider = 'oauth2'", server.lines());
    let tokens = profile(BLOOM, &lines).replace("provider = 'bloom'\nenvironment = 'sandbox'\n", "");
    let setting = Setting { tokens, look_ups: here(), ..Setting::default() };
    let (bench, seen) = tokio::join!(Bench::start(setting), server.answer_well());
    assert!(!seen.contains("audience") && !seen.contains("resource"), "{seen}");
    bench.end().await;
}

async fn a_token_is_one_profiles() {
    let tokens = profile(BLOOM, "") + &profile("other", "");
    let bench = Bench::start(Setting { tokens, ..Setting::default() }).await;
    let other = bench.client.get("other").await.unwrap();
    assert_ne!(bench.token().await.access_token, other.access_token);
    assert_eq!(bench.agent.issuer.request_count(), 2);
    // A refresh of the one is none of the other.
    bench.client.refresh(BLOOM).await.unwrap();
    assert_eq!(bench.agent.issuer.request_count(), 3);
    assert_eq!(bench.client.get("other").await.unwrap(), other);
    bench.end().await;
}

async fn further_parameters() {
    let parameters = form(&first_request("extra = { tenant = 'x y', a = '&=' }", Dialect::Hydra).await);
    assert_eq!(
        parameters[parameters.len() - 2..],
        [("a", "&="), ("tenant", "x y")].map(|(n, v)| (n.to_owned(), v.to_owned()))
    );
    for name in ["grant_type", "client_id", "audience", "resource", "scope", "Scope"] {
        assert_fault(
            &format!("extra = {{ {name} = 'c4n4ry' }}"),
            &format!("extra.{name}"),
            "a key of its own",
        );
    }
    for name in [
        "client_secret",
        "CLIENT_SECRET",
        "client_assertion",
        "client_assertion_type",
        "password",
        "refresh_token",
    ] {
        let told = faults_of(&format!("extra = {{ {name} = 'c4n4ry' }}"));
        assert!(told.contains(name) && !told.contains("c4n4ry"), "{told}");
    }
    let host = Host::new("s3cret");
    host.config(&(host.agent_table("") + &host.profile("bloom", "extra = { tenant = \"x\" }")));
    let checks = |what: &str, code| {
        let output = host.daemon(check_as_ourselves()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{what}: {}", messages(&output));
    };
    for (mode, code) in [(0o644, 0), (0o666, 78), (0o664, 78)] {
        host.chmod("config.toml", mode);
        checks(&format!("{mode:o}"), code);
    }
    host.chmod("config.toml", 0o644);
    if is_root("a config that another user owns") {
        host.give("config.toml", 4242);
        checks("another user's", 78);
    }
}
