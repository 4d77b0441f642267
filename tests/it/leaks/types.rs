//! What `{:?}` prints of everything public that can hold a secret or a token, or something that holds one.

use std::{sync::Arc, time::Duration};

use bloom_agent::{
    clock::{Now, WallTime},
    config::{self, Kind, SourceFile},
    dev_issuer::{DevIssuer, Dialect, Options},
    failure::Failure,
    locked::LockedPages,
    oauth2::{self, Answer, AuthMethod, BodyEnd, BodyFormat, Client, Endpoint, Rules, ScopeRule},
    obtain::{Obtained, Outcome},
    pb, reply,
    secret::Secret,
    source::{ReadSecret as _, Source},
    store::{self, Identity},
    token::{AccessToken, Generation, Life, LifeSource, ProfileName, Reply, Token},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use zeroize::Zeroizing;

use super::{CLIENT_ID, Canary, Search};

fn client(auth_method: AuthMethod, extra: &Canary) -> Client {
    Client {
        endpoint: Endpoint::parse(&format!("https://id.example.com/token?key={}", extra.text)).unwrap(),
        client_id: CLIENT_ID.into(),
        auth_method,
        body: BodyFormat::Form,
        audience: None,
        resource: Vec::new(),
        scopes: Vec::new(),
        extra: vec![("assertion".into(), extra.text.as_str().into())],
    }
}

/// Both ways of printing, of one value.
fn both<T: std::fmt::Debug>(name: &str, value: &T) -> (String, String) {
    (name.to_owned(), format!("{value:?}\n{value:#?}"))
}

#[test]
fn nothing_that_can_hold_a_secret_or_a_token_prints_it() {
    let secret = Canary::secret("the secret");
    let text = Canary::plain("a token");
    let extra = Canary::plain("a value that a config may hold");
    let search = Search::new(CLIENT_ID, [&secret, &text, &extra]);
    let mut printed = Vec::new();

    // The secret, and what is made of it.
    let parsed = || Secret::parse(Zeroizing::new(secret.text.as_bytes().to_vec())).unwrap();
    printed.push(both("Secret", &parsed()));
    printed.push(both("Secret in a Result", &Ok::<_, ()>(Some(parsed()))));
    let two_lines = Secret::parse(Zeroizing::new(format!("{0}\n{0}", secret.text).into_bytes()));
    printed.push(both("SecretProblem", &two_lines));
    for method in [AuthMethod::ClientSecretPost, AuthMethod::ClientSecretBasic] {
        let client = client(method, &extra);
        printed.push(both("Client", &client));
        printed.push(both("EncodedRequest", &oauth2::encode(&client, &parsed())));
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    let write = |text: &str| {
        use std::os::unix::fs::OpenOptionsExt as _;
        let file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        std::io::Write::write_all(&mut file.unwrap(), text.as_bytes()).unwrap();
    };
    let source = Source::file(&path);
    write(&secret.text);
    printed.push(both("Source", &source));
    printed.push(both("Reading", &source.read().unwrap()));
    write(&format!("{}\r\n", secret.text));
    printed.push(both("SourceFault", &source.read()));

    // The token, and what carries it.
    let pages = LockedPages::default();
    let access_token = || AccessToken::parse(pages.copy(text.text.as_bytes())).unwrap();
    let life =
        Life { requested: Now::default(), length: Duration::from_secs(60), source: LifeSource::Provider };
    let token = Token {
        name: ProfileName::parse("bloom").unwrap(),
        generation: Generation::from_u64(1),
        access_token: access_token(),
        scopes: Vec::new(),
        audience: None,
        life,
        reply: Reply::default(),
    };
    let token = Arc::new(reply::framed(token, |bytes| pages.copy(bytes)));
    let obtained = || Obtained { access_token: access_token(), scopes: Vec::new(), life };
    let (publisher, reader) = store::cell(Identity(1), Now::default());
    publisher.publish(Identity(1), Arc::clone(&token));
    printed.extend([
        both("LockedPages", &pages),
        both("AccessToken", &access_token()),
        both("TokenProblem", &AccessToken::parse(Bytes::from(format!("{} {}", text.text, text.text)))),
        both("Token", &token),
        both("Reply", &token.reply),
        both("Obtained", &obtained()),
        both("Outcome", &Outcome { result: Ok(obtained()), requests: 1, refused: None }),
        both("Publisher", &publisher),
        both("Reader", &reader),
    ]);
    let message =
        pb::Token { name: "bloom".to_owned(), access_token: text.text.clone(), ..Default::default() };
    printed.extend([
        both("pb::Token", &message),
        both("pb::GetTokenResponse", &pb::GetTokenResponse { token: Some(message.clone()) }),
        both("pb::WatchTokenResponse", &pb::WatchTokenResponse { token: Some(message.clone()) }),
        both("a Response", &tonic::Response::new(pb::GetTokenResponse { token: Some(message) })),
    ]);

    // An answer of a provider, good and bad.
    let rules = Rules { assumed_lifetime: Duration::from_secs(60), scope: ScopeRule::Report };
    for (status, body) in [
        (200, serde_json::json!({"access_token": text.text, "token_type": "bearer", "expires_in": 60})),
        (200, serde_json::json!({"access_token": text.text, "token_type": text.text})),
        (401, serde_json::json!({"error": "invalid_client", "error_description": secret.text})),
        (400, serde_json::json!({"error": text.text, "error_hint": secret.text, "access_token": text.text})),
    ] {
        let body = body.to_string();
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        let answer = Answer { status, headers: &headers, body: body.as_bytes(), end: &BodyEnd::Whole };
        let client = client(AuthMethod::ClientSecretPost, &extra);
        let read = oauth2::read(&answer, &client, &rules, WallTime::default(), &|bytes| pages.copy(bytes));
        printed.push(both("Grant or Rejection", &read));
        if let Err(rejection) = read {
            let failure: Failure = rejection.into_failure(&client, &parsed());
            printed.push(both("Failure", &failure));
            printed.push(("Failure's text".to_owned(), failure.text.to_string()));
            printed.push(both("Outcome", &Outcome { result: Err(failure), requests: 1, refused: None }));
        }
    }

    // A config that somebody pasted into, broken and not.
    for lines in [
        format!("client_secret = \"{}\"", extra.text),
        format!("client_secret.file = \"/s\"\nextra = {{ assertion = \"{}\" }}", extra.text),
    ] {
        let file = SourceFile {
            name: "config.toml".into(),
            text: format!(
                "[tokens.bloom]\nprovider = \"oauth2\"\nclient_id = \"x\"\ntoken_url = \"https://id.example.com/?a={}\"\n{lines}\n",
                extra.text
            ),
            kind: Kind::Main,
        };
        printed.push(both("Config or Problems", &config::read(&[file])));
    }

    // The issuer of `dev`, which has accepted it all.
    let options = Options::new(Dialect::Hydra, CLIENT_ID, &secret.text);
    printed.push(both("Options", &options));
    let issuer = DevIssuer::new(options);
    printed.push(both("Control", &issuer.control()));
    printed.push(both("DevIssuer", &issuer));

    for (name, text) in printed {
        search.assert_none_in(&format!("Debug of {name}"), text);
    }
}
