use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{
    access::{Directory, Lookup, Name, Peer, RootAccess, Rules, Selector, Verb},
    oauth2::{AuthMethod, BodyFormat, Client, Endpoint, ProxyUrl},
    refresh::Policy,
    token::Scope,
};

/// What stands in for a secret that somebody pasted.
const CANARY: &str = "C4N4RY+7Q/X9=ZW3";

fn main_file(text: &str) -> SourceFile {
    SourceFile { name: "config.toml".into(), text: text.into(), kind: Kind::Main }
}

fn drop_in(name: &str, text: &str) -> SourceFile {
    SourceFile { name: name.into(), text: text.into(), kind: Kind::DropIn }
}

fn accepted(text: &str) -> Config {
    read(&[main_file(text)]).unwrap_or_else(|problems| panic!("{problems}\nin\n{text}"))
}

fn draft(sources: &[SourceFile]) -> Draft {
    Draft::read("config.toml", sources)
}

fn faults_of(draft: Draft) -> Vec<String> {
    match draft.finish() {
        Ok(_) => Vec::new(),
        Err(problems) => problems.as_slice().iter().map(ToString::to_string).collect(),
    }
}

fn faults(sources: &[SourceFile]) -> Vec<String> {
    faults_of(draft(sources))
}

/// A profile of the kind `oauth2` with further lines, which begin at line 6.
fn partner(lines: &str) -> String {
    format!(
        "[tokens.p]\nprovider = \"oauth2\"\ntoken_url = \"https://id.example/t\"\nclient_id = \"id\"\nclient_secret.file = \"/s\"\n{lines}\n"
    )
}

fn profile(lines: &str) -> Profile {
    accepted(&partner(lines)).tokens.remove("p").unwrap()
}

const CONTRACT: &str = r#"
[agent]
socket = "/run/bloom-agent/agent.sock"   # ignored when systemd passes the socket
socket_mode = "0660"
socket_group = "bloom-agent-users"       # the callers' group; the daemon's own is bloom-agent

[tokens.bloom]
provider = "bloom"                       # bloom | bloom-v1 | blooma | oauth2
environment = "sandbox"                  # sandbox | production
client_id = "aYQ…"
client_secret.credential = "bloom"
client_secret_next.credential = "bloom-next"
scopes = ["data-access:all"]
allow = ["user:billing", "group:credit & uid:1500"]

[tokens.partner]
provider = "oauth2"
token_url = "https://id.example.com/oauth2/token"
auth_method = "client_secret_basic"
body = "form"
audience = "https://api.example.com"
client_id = "partner"
client_secret.file = "/etc/bloom-agent/secrets/partner"
refresh = { at = 0.8, jitter = 0.05 }
"#;

#[test]
fn a_config_becomes_what_it_says() {
    let config = accepted(&CONTRACT.replace('…', "1"));
    assert_eq!(config.agent.socket.to_str(), Some("/run/bloom-agent/agent.sock"));
    assert_eq!(config.agent.socket_mode, 0o660);
    assert_eq!(config.agent.socket_group.as_deref(), Some("bloom-agent-users"));
    assert_eq!(config.warnings, []);
    let bloom = &config.tokens["bloom"];
    assert_eq!(bloom.secret, SecretSpec::Credential(CredentialName::parse("bloom").unwrap()));
    assert_eq!(bloom.next_secret, Some(SecretSpec::Credential(CredentialName::parse("bloom-next").unwrap())));
    let lines = ["user:billing", "group:credit & uid:1500"].map(|line| Selector::parse(line).unwrap());
    assert_eq!(bloom.rules, Rules::Allow(lines.into()));
    let partner = &config.tokens["partner"];
    assert_eq!(partner.secret, SecretSpec::File("/etc/bloom-agent/secrets/partner".into()));
    assert_eq!(partner.next_secret, None);
    assert_eq!(partner.rules, Rules::OwnerOnly);
    assert_eq!(partner.client.auth_method, AuthMethod::ClientSecretBasic);
}

#[test]
fn what_is_not_written_has_its_default() {
    let config = accepted(&partner(""));
    assert_eq!(config.agent, AgentConfig::default());
    assert_eq!(config.agent.socket.to_str(), Some(DEFAULT_SOCKET));
    assert_eq!(config.agent.root, RootAccess::Always);
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.log, LogConfig { level: LogLevel::Info, format: None });
    let profile = &config.tokens["p"];
    assert_eq!(profile.refresh, Policy::default());
    assert_eq!(profile.assumed_lifetime, Duration::from_secs(3600));
    assert!(!profile.require_scope);
    assert_eq!((&profile.ca_file, &profile.proxy), (&None, &None));
    assert_eq!(profile.client.extra, []);
}

#[test]
fn every_key_of_the_agent_has_its_effect() {
    let config = accepted(
        r#"
        agent = { socket = "/s", socket_mode = "600", socket_group = "g", admin = ["uid:5"], root = "by-rule", ready = "tokens", proxy = "http://p:1", ca_file = "/ca" }
        limits = { connections_total = 1, connections = 1, streams_per_connection = 4, calls = 5, watches = 2, connects_per_second = 1000000 }
        log = { level = "trace", format = "json" }
        "#,
    );
    let expected = AgentConfig {
        socket: "/s".into(),
        socket_mode: 0o600,
        socket_group: Some("g".into()),
        admin: vec![Selector::of_uid(5)],
        root: RootAccess::ByRule,
        unit_slices: AgentConfig::default().unit_slices,
        ready: Ready::Tokens,
        proxy: Some(ProxyUrl::parse("http://p:1").unwrap()),
        ca_file: Some("/ca".into()),
    };
    assert_eq!(config.agent, expected);
    let limits = Limits {
        connections_total: 1,
        connections: 1,
        streams_per_connection: 4,
        calls: 5,
        watches: 2,
        connects_per_second: 1_000_000,
    };
    assert_eq!(config.limits, limits);
    assert_eq!(config.log, LogConfig { level: LogLevel::Trace, format: Some(LogFormat::Json) });
}

#[test]
fn every_provider_and_environment_makes_its_client() {
    let client = |token_url: &str, audience: Option<&str>, scopes: &[&str]| Client {
        endpoint: Endpoint::parse(token_url).unwrap(),
        client_id: "id".into(),
        auth_method: AuthMethod::ClientSecretPost,
        body: BodyFormat::Form,
        audience: audience.map(Into::into),
        resource: vec![],
        scopes: scopes.iter().map(|scope| Scope::parse(scope).unwrap()).collect(),
        extra: vec![],
    };
    let bloom = "scopes = [\"data-access:all\", \"furnishment:all\"]\nprovider = \"bloom\"";
    let both = &["data-access:all", "furnishment:all"][..];
    let cases = [
        (
            format!("{bloom}\nenvironment = \"sandbox\""),
            client("https://authn.bloomcredit.dev/oauth2/token", Some("dev-api"), both),
        ),
        (
            format!("{bloom}\nenvironment = \"production\""),
            client("https://authn.bloomcredit.io/oauth2/token", Some("api.bloomcredit.io"), both),
        ),
        (
            "provider = \"bloom-v1\"\nenvironment = \"sandbox\"".into(),
            client("https://auth.bloom.dev/oauth/token", Some("dev-api"), &[]),
        ),
        (
            "provider = \"bloom-v1\"\nenvironment = \"production\"".into(),
            client("https://auth.bloomcredit.io/oauth/token", Some("api.bloomcredit.io"), &[]),
        ),
        (
            "provider = \"blooma\"\nbase_url = \"https://x.example/\"".into(),
            client("https://login.blooma.ai/oauth/token", Some("https://x.example/api/"), &[]),
        ),
        (
            "provider = \"blooma\"\nbase_url = \"https://x.example/y\"".into(),
            client("https://login.blooma.ai/oauth/token", Some("https://x.example/y/api/"), &[]),
        ),
        (
            "provider = \"oauth2\"\ntoken_url = \"https://t.example/?a=b\"".into(),
            client("https://t.example/?a=b", None, &[]),
        ),
    ];
    for (lines, expected) in cases {
        let text = format!("[tokens.p]\nclient_id = \"id\"\nclient_secret.credential = \"c\"\n{lines}\n");
        assert_eq!(accepted(&text).tokens["p"].client, expected, "{lines}");

        let overrides = "audience = \"aud\"\nbody = \"json\"\nauth_method = \"client_secret_basic\"\nresource = [\"urn:a:b\"]\nextra = { z = \"1\", a = \"2\" }";
        let given =
            lines.lines().filter(|line| !line.starts_with("scopes") && !line.starts_with("token_url"));
        let text = format!(
            "[tokens.p]\nclient_id = \"id\"\nclient_secret.credential = \"c\"\ntoken_url = \"https://o.example/\"\nscopes = [\"s\"]\n{overrides}\n{}\n",
            given.collect::<Vec<_>>().join("\n")
        );
        let expected = Client {
            auth_method: AuthMethod::ClientSecretBasic,
            body: BodyFormat::Json,
            resource: vec!["urn:a:b".into()],
            extra: vec![("a".into(), "2".into()), ("z".into(), "1".into())],
            ..client("https://o.example/", Some("aud"), &["s"])
        };
        assert_eq!(accepted(&text).tokens["p"].client, expected, "{lines}, overridden");
    }
}

#[test]
fn a_profile_has_its_own_proxy_and_certificates_or_the_agents() {
    let agent = "agent = { proxy = \"http://a:1\", ca_file = \"/a\" }\n";
    let of = |lines: &str| accepted(&format!("{agent}{}", partner(lines))).tokens.remove("p").unwrap();
    let proxy = |url: &str| Some(ProxyUrl::parse(url).unwrap());
    let usual = of("");
    assert_eq!((usual.proxy, usual.ca_file), (proxy("http://a:1"), Some("/a".into())));
    let own = of("proxy = \"http://b:2\"\nca_file = \"/b\"");
    assert_eq!((own.proxy, own.ca_file), (proxy("http://b:2"), Some("/b".into())));
}

/// Lines of a profile, and the fault that they are, without its place.
#[test]
fn each_fault_of_a_profile_is_told_with_its_line_and_its_key() {
    const SECRET: &str = "is a secret, or is called like one, and no secret may stand in the config; write client_secret.credential = ";
    let cases: &[(&str, &str)] = &[
        ("banana = \"C\"", "banana: is no key of this table; the keys here are provider, environment, "),
        ("scope = [\"C\"]", "scope: is no key of this table; did you mean scopes?"),
        ("Audience = \"C\"", "…: is no key of this table; did you mean audience?"),
        ("C4N4RY = 1", "…: is no key of this table; the keys here are"),
        ("password = \"C\"", &format!("password: {SECRET}")),
        (
            "client_secrets.file = \"/C\"",
            "client_secrets: is no key of this table; did you mean client_secret?",
        ),
        ("client_secret_text = \"C\"", &format!("client_secret_text: {SECRET}")),
        ("client_secret_next = \"C\"", &format!("client_secret_next: {SECRET}")),
        ("client_secret_next = 5", &format!("client_secret_next: {SECRET}")),
        ("client_secret_next = {}", "client_secret_next: names neither a credential nor a file; write "),
        (
            "client_secret_next.value = \"C\"",
            "client_secret_next.value: is no key of this table; the keys here are credential, file",
        ),
        (
            "client_secret_next = { credential = \"a\", file = \"/b\" }",
            "client_secret_next: has both a credential and a file; ",
        ),
        (
            "client_secret_next.credential = \"a/C\"",
            "client_secret_next.credential: is not a credential's name (",
        ),
        ("client_secret_next.file = \"C\"", "client_secret_next.file: is not an absolute path; "),
        ("client_secret_next.file = \"/a/../C\"", "client_secret_next.file: is not a plain path to a file; "),
        ("client_secret_next.file = \"/s\"", "client_secret_next: is the same as client_secret; "),
        ("environment = \"sandbox\"", "environment: is no key of this provider; "),
        ("base_url = \"https://C\"", "base_url: is no key of this provider; "),
        ("audience = \"\"", "audience: is empty; write the API's identifier"),
        ("audience = 7", "audience: is an integer; write a string, in quotes"),
        (
            "auth_method = \"C\"",
            "auth_method: is none of the words that it can be; write \"client_secret_post\" or \"client_secret_basic\"",
        ),
        (
            "auth_method = \"client_secret_basik\"",
            "auth_method: is none of the words that it can be; did you mean \"client_secret_basic\"?",
        ),
        ("body = true", "body: is a boolean; write a string, in quotes"),
        ("resource = \"https://C\"", "resource: is a string; write a list of strings"),
        ("resource = [\"https://a#C\"]", "resource[0]: has a fragment, '#…' (RFC 8707 §2 forbids it); "),
        (
            "resource = [\"https://a\", \"C\"]",
            "resource[1]: is not an absolute URI (like https://api.example.com; RFC 8707 §2); ",
        ),
        ("resource = [\"https://a\", \"https://a\"]", "resource[1]: stands twice in the list; "),
        ("scopes = [\"a b\"]", "scopes[0]: is not a scope ("),
        ("scopes = [\"a\", \"a\"]", "scopes[1]: stands twice in the list; "),
        ("scopes = [\"a\", 1.5]", "scopes[1]: is a float; write a string, in quotes"),
        ("extra = \"C\"", "extra: is a string; write a table"),
        (
            "extra = { Grant_Type = \"C\" }",
            "extra.Grant_Type: is a parameter with a key of its own, or one that the agent sets; take it out",
        ),
        (
            "extra.scope = \"C\"",
            "extra.scope: is a parameter with a key of its own, or one that the agent sets; take it out",
        ),
        ("extra.client_secret = \"C\"", &format!("extra.client_secret: {SECRET}")),
        ("extra.client_assertion = \"C\"", &format!("extra.client_assertion: {SECRET}")),
        ("extra.\"a b\" = \"C\"", "extra.…: is not a parameter's name (letters, digits, "),
        ("extra.a = \"\"", "extra.a: is empty; write the parameter's value"),
        ("extra.code = \"C\"", &format!("extra.code: {SECRET}")),
        ("extra.refresh_token = \"C\"", &format!("extra.refresh_token: {SECRET}")),
        ("extra.a = \"C\\u0000\"", "extra.a: holds a control character; "),
        (
            "client_secret_next.credential = \"with space\"",
            "client_secret_next.credential: is not a credential's name (a file name, of letters, ",
        ),
        ("resource = [\"https://a/{C}\"]", "resource[0]: is not an absolute URI (like "),
        ("extra.a = 1", "extra.a: is an integer; write a string, in quotes"),
        ("allow = \"user:C\"", "allow: is a string; write a list of strings"),
        (
            "allow = [\"user:a\", \"C\"]",
            "allow[1]: has a term that is none of user:, uid:, group:, gid:, unit:; ",
        ),
        (
            "allow = [\"uid:61184\"]",
            "allow[0]: names one of systemd's dynamic ids (61184 to 65519), which are handed on to other services; use unit:NAME.service",
        ),
        ("allow = [\"unit:x.scope\"]", "allow[0]: has a unit that is not a service; "),
        ("refresh = 0.8", "refresh: is a float; write a table"),
        ("refresh = { at = \"C\" }", "refresh.at: is a string; write a number"),
        ("refresh = { at = 0.09 }", "refresh.at: `at` must lie between 0.1 and 0.95 "),
        ("refresh = { at = 1 }", "refresh.at: `at` must lie between 0.1 and 0.95 "),
        ("refresh = { at = nan }", "refresh.at: `at` must lie between 0.1 and 0.95 "),
        ("refresh = { jitter = -0.1 }", "refresh.jitter: `jitter` must not be negative; "),
        ("refresh = { jitter = inf }", "refresh.jitter: `at` less `jitter` must be above 0, "),
        ("refresh = { jitter = 0.3 }", "refresh.jitter: `at` less `jitter` must be above 0, "),
        ("refresh = { floor = 1 }", "refresh.floor: is no key of this table; the keys here are at, jitter"),
        ("assumed_lifetime = 3600", "assumed_lifetime: is an integer; write a string, in quotes"),
        ("assumed_lifetime = \"C\"", "assumed_lifetime: is not a duration; "),
        ("assumed_lifetime = \"0s\"", "assumed_lifetime: is not within 1s to 720h (30 days); "),
        ("assumed_lifetime = \"721h\"", "assumed_lifetime: is not within 1s to 720h (30 days); "),
        ("require_scope = \"yes\"", "require_scope: is a string; write true or false, without quotes"),
        ("ca_file = \"C.pem\"", "ca_file: is not an absolute path; "),
        ("proxy = \"https://p:1\"", "proxy: "),
        ("proxy = \"http://u:C@p:1\"", "proxy: "),
    ];
    for (line, expected) in cases {
        let text = partner(&line.replace('C', CANARY).replace(&format!("{CANARY}4N4RY"), "C4N4RY"));
        let found = faults(&[main_file(&text)]);
        let expected = format!("config.toml:6: tokens.p.{expected}");
        assert!(
            found.len() == 1 && found[0].starts_with(&expected),
            "{line}\nexpected {expected}\nfound    {found:#?}"
        );
        assert!(!found[0].contains("4N4RY"), "{line}: {found:?}");
    }
}

#[test]
fn each_fault_of_what_a_provider_asks_for_is_told() {
    let rest = "client_id = \"id\"\nclient_secret.file = \"/s\"";
    let cases: &[(&str, &[&str])] = &[
        ("client_id = \"id\"\nclient_secret.file = \"/s\"", &["provider: is missing; write provider = "]),
        (
            "provider = \"blom\"\nclient_id = \"id\"\nclient_secret.file = \"/s\"",
            &["provider: is none of the words that it can be; did you mean \"bloom\"?"],
        ),
        (
            "provider = \"oauth2\"",
            &["client_id: is missing; ", "client_secret: is missing; ", "token_url: is missing; "],
        ),
        (&format!("provider = \"bloom\"\n{rest}"), &["environment: is missing; ", "scopes: is missing; "]),
        (
            &format!("provider = \"bloom\"\nenvironment = \"dev\"\nscopes = []\n{rest}"),
            &["environment: is none of", "scopes: is empty"],
        ),
        (&format!("provider = \"bloom-v1\"\n{rest}"), &["environment: is missing; "]),
        (
            &format!("provider = \"bloom-v1\"\nenvironment = \"sandbox\"\nbase_url = \"https://x\"\n{rest}"),
            &["base_url: is no key of this provider; "],
        ),
        (&format!("provider = \"blooma\"\n{rest}"), &["base_url: is missing; "]),
        (
            &format!("provider = \"blooma\"\nbase_url = \"http://C.example\"\n{rest}"),
            &["base_url: is not an https URL without user, query and fragment; "],
        ),
        (
            &format!("provider = \"blooma\"\nbase_url = \"https://u:C@x.example\"\n{rest}"),
            &["base_url: is not an https URL "],
        ),
        (&format!("provider = \"oauth2\"\ntoken_url = \"http://C.example/\"\n{rest}"), &["token_url: "]),
        (&format!("provider = \"oauth2\"\ntoken_url = \"http://127.0.0.1/\"\n{rest}"), &["token_url: "]),
        (&format!("provider = \"oauth2\"\ntoken_url = \"https://u:C@x.example/\"\n{rest}"), &["token_url: "]),
        (&format!("provider = \"oauth2\"\ntoken_url = \"https://x.example/#C\"\n{rest}"), &["token_url: "]),
        (
            &format!("provider = \"oauth2\"\ntoken_url = \"https://x.example/?client_secret=C\"\n{rest}"),
            &["token_url: is a secret, or is called like one, "],
        ),
        (&format!("provider = \"oauth2\"\ntoken_url = \"C\"\n{rest}"), &["token_url: "]),
        (
            "provider = \"oauth2\"\ntoken_url = \"https://x\"\nclient_id = \"\"\nclient_secret = \"C\"",
            &["client_id: is empty; ", "client_secret: is a secret, "],
        ),
        (
            "provider = \"oauth2\"\ntoken_url = \"https://x\"\nclient_id = \"é\"\nclient_secret = [\"C\"]",
            &["client_id: holds a character that no client_id may hold ", "client_secret: is a secret, "],
        ),
        (
            "provider = 1\ntoken_url = 2\nclient_id = 3\nclient_secret = 4",
            &[
                "provider: is an integer",
                "token_url: is an integer",
                "client_id: is an integer",
                "client_secret: is a secret",
            ],
        ),
    ];
    for (lines, expected) in cases {
        let found = faults(&[main_file(&format!("[tokens.p]\n{}\n", lines.replace('C', CANARY)))]);
        assert_eq!(found.len(), expected.len(), "{lines}\n{found:#?}");
        for expected in *expected {
            let path = format!(": tokens.p.{expected}");
            assert!(
                found.iter().any(|fault| fault.contains(&path)),
                "{lines}\nexpected {expected}\nfound {found:#?}"
            );
        }
        assert!(!found.concat().contains("4N4RY"), "{found:?}");
    }
}

#[test]
fn each_fault_of_the_agents_tables_is_told_with_its_line_and_its_key() {
    let long = format!("agent.socket = \"/{}\"", "a".repeat(107));
    let cases: &[(&str, &str)] = &[
        ("agnet = {}", "agnet: is no key of this table; did you mean agent?"),
        ("secret = \"C\"", "secret: is a secret, or is called like one, "),
        ("agent = \"C\"", "agent: is a string; write a table"),
        ("agent = []", "agent: is an array; write a table"),
        ("agent.sockets = \"C\"", "agent.sockets: is no key of this table; did you mean socket?"),
        ("agent.socket = \"C.sock\"", "agent.socket: is not an absolute path; "),
        ("agent.socket = \"@C\"", "agent.socket: is an abstract socket, which no mode protects; "),
        ("agent.socket = \"\\u0000C\"", "agent.socket: is an abstract socket, which no mode protects; "),
        ("agent.socket = \"/C\\u0000\"", "agent.socket: is not a plain path to a file; "),
        ("agent.socket = \"/C/\"", "agent.socket: is not a plain path to a file; "),
        ("agent.socket = \"/\"", "agent.socket: is not a plain path to a file; "),
        (&long, "agent.socket: is longer than 107 bytes, the most that a socket's path can have; "),
        ("agent.socket_mode = 660", "agent.socket_mode: is an integer; write a string, in quotes"),
        ("agent.socket_mode = \"0o660\"", "agent.socket_mode: is not a mode; "),
        ("agent.socket_mode = \"1660\"", "agent.socket_mode: is not a mode; "),
        ("agent.socket_mode = \"0680\"", "agent.socket_mode: is not a mode; "),
        ("agent.socket_mode = \"+66\"", "agent.socket_mode: is not a mode; "),
        ("agent.socket_mode = \"\"", "agent.socket_mode: is not a mode; "),
        ("agent.socket_mode = \"0777\"", "agent.socket_mode: gives a right that a socket does not have, "),
        ("agent.socket_mode = \"0640\"", "agent.socket_mode: gives a right that a socket does not have, "),
        ("agent.socket_mode = \"0060\"", "agent.socket_mode: gives a right that a socket does not have, "),
        ("agent.socket_group = \"1000\"", "agent.socket_group: is not a group's name; "),
        ("agent.socket_group = \"\"", "agent.socket_group: is not a group's name; "),
        ("agent.admin = [\"user:*\"]", "agent.admin[0]: holds a wildcard; "),
        ("agent.admin = [\"uid:1\", \"gid:65519\"]", "agent.admin[1]: names one of systemd's dynamic ids "),
        ("agent.admin = [\"uid:1 & unit:a@b.slice\"]", "agent.admin[0]: has a unit that is not a service; "),
        (
            "agent.root = \"never\"",
            "agent.root: is none of the words that it can be; write \"always\" or \"by-rule\"",
        ),
        ("agent.ready = \"C\"", "agent.ready: is none of the words that it can be; "),
        ("agent.unit_slices = []", "agent.unit_slices: is empty, so no caller would have a unit; "),
        ("agent.unit_slices = \"system.slice\"", "agent.unit_slices: is a string; "),
        (
            "agent.unit_slices = [\"system.slice\", \"C\"]",
            "agent.unit_slices[1]: is not the name of a slice; ",
        ),
        ("agent.unit_slices = [\"-.slice\"]", "agent.unit_slices[0]: is the root slice, "),
        ("agent.unit_slices = [\"user.slice\"]", "agent.unit_slices[0]: is a slice of the users, "),
        ("agent.unit_slices = [\"user-1000.slice\"]", "agent.unit_slices[0]: is a slice of the users, "),
        ("agent.proxy = \"socks5://C:1\"", "agent.proxy: "),
        ("agent.proxy = \"http://C\"", "agent.proxy: "),
        ("agent.ca_file = \"C\"", "agent.ca_file: is not an absolute path; "),
        ("limits.calls = 0", "limits.calls: is not a number from 1 to 1000000; the default is 4096"),
        ("limits.calls = -5", "limits.calls: is not a number from 1 to 1000000; "),
        ("limits.calls = 99999999999999999999999", "limits.calls: is not a number from 1 to 1000000; "),
        ("limits.calls = 1.5", "limits.calls: is a float; write a whole number"),
        ("limits.calls = \"C\"", "limits.calls: is a string; write a whole number"),
        ("limits.call = 1", "limits.call: is no key of this table; did you mean calls?"),
        ("log.level = \"loud\"", "log.level: is none of the words that it can be; "),
        (
            "log.format = \"xml\"",
            "log.format: is none of the words that it can be; write \"text\" or \"json\" or \"journal\"",
        ),
        ("log.file = \"C\"", "log.file: is no key of this table; the keys here are level, format"),
        ("tokens = 1", "tokens: is an integer; write a table"),
        ("tokens.Bloom = {}", "tokens.…: is not a profile's name ("),
        ("tokens.bloom_two = {}", "tokens.bloom_two: is not a profile's name ("),
        ("tokens.C = {}", "tokens.…: is not a profile's name ("),
        ("tokens.bloom = \"C\"", "tokens.bloom: is a string; write a table"),
        ("tokens.client_secret = \"C\"", "tokens.client_secret: is "),
        ("[[tokens]]", "tokens: is an array; write a table"),
    ];
    for (line, expected) in cases {
        let quoted = line.replace("tokens.C", "tokens.\"C\"");
        let found = faults(&[main_file(&format!("# comment\n\n{}\n", quoted.replace('C', CANARY)))]);
        let expected = format!("config.toml:3: {expected}");
        assert!(
            found.first().is_some_and(|first| first.starts_with(&expected)),
            "{line}\nexpected {expected}\nfound {found:#?}"
        );
        assert!(!found.concat().contains("4N4RY"), "{line}: {found:?}");
        // A profile that is not one has other faults beside; of every other line there is one.
        assert!(found.len() == 1 || line.starts_with("tokens."), "{line}: {found:#?}");
    }
}

#[test]
fn all_faults_of_all_files_are_told_at_once_in_the_order_of_their_lines() {
    let main = main_file(
        "log.level = 1\n[tokens.a]\nprovider = \"oauth2\"\nclient_id = \"x\"\nclient_secret = \"s\"\nallow = [\"user:\"]\n[limits]\ncalls = 0\n",
    );
    let second = drop_in("config.d/20-b.toml", "[tokens.b]\n\n[tokens.a]\n[agent]\n");
    let first = drop_in("config.d/10-c.toml", "x = 1");
    let found = faults(&[second, main, first]);
    let starts = [
        "config.toml:1: log.level: is an integer",
        "config.toml:2: tokens.a.token_url: is missing",
        "config.toml:5: tokens.a.client_secret: is a secret",
        "config.toml:6: tokens.a.allow[0]: has a term whose name",
        "config.toml:8: limits.calls: is not",
        "config.d/10-c.toml:1: x: is no key",
        "config.d/20-b.toml:1: tokens.b.provider: is missing",
        "config.d/20-b.toml:1: tokens.b.client_id: is missing",
        "config.d/20-b.toml:1: tokens.b.client_secret: is missing",
        "config.d/20-b.toml:3: tokens.a: is also in config.toml:2; ",
        "config.d/20-b.toml:3: tokens.a.provider: is missing",
        "config.d/20-b.toml:3: tokens.a.client_id: is missing",
        "config.d/20-b.toml:3: tokens.a.client_secret: is missing",
        "config.d/20-b.toml:4: agent: does not belong in config.d, where only [tokens.NAME] may stand; ",
    ];
    assert_eq!(found.len(), starts.len(), "{found:#?}");
    for (fault, start) in found.iter().zip(starts) {
        assert!(fault.starts_with(start), "expected {start}\nfound {fault}");
    }
}

#[test]
fn a_fault_of_a_text_hides_nothing_that_the_host_would_find() {
    // Without a client there is no profile, and still its rules, its secrets and its trust store are judged; a line that
    // cannot be read does not move the others. In the second file the same, although another profile has its name.
    let lines = "ca_file = \"/ca\"\nallow = [\n  \"user:\",\n  \"user:ghost\",\n]\n";
    let broken = partner(lines).replace("https:", "http:");
    let sources = [main_file(&broken), drop_in("d.toml", &partner("allow = [\"user:ghost\"]"))];
    let mut draft = draft(&sources);
    assert_eq!(draft.names(), [Name::User("ghost".into())].into());
    assert_eq!(draft.profiles().len(), 1);
    draft.judge_names(&Lookup::default(), 990, UnknownNames::AreFaults);
    let secrets: Vec<_> = draft.secrets().iter().map(|secret| secret.problem("a", "b").to_string()).collect();
    assert_eq!(
        secrets,
        ["config.toml:5: tokens.p.client_secret: a; b", "d.toml:5: tokens.p.client_secret: a; b"]
    );
    let ca_files: Vec<_> = draft.ca_files().iter().map(|file| file.problem("a", "b").to_string()).collect();
    assert_eq!(ca_files, ["config.toml:6: tokens.p.ca_file: a; b"]);
    let found = faults_of(draft);
    let starts = [
        "config.toml:3: tokens.p.token_url: does not start with https://",
        "config.toml:8: tokens.p.allow[0]: has a term",
        "config.toml:9: tokens.p.allow[1]: names a user that this host does not know",
        "d.toml:1: tokens.p: is also in config.toml:1",
        "d.toml:6: tokens.p.allow[0]: names a user that this host does not know",
    ];
    assert_eq!(found.len(), starts.len(), "{found:#?}");
    for (fault, start) in found.iter().zip(starts) {
        assert!(fault.starts_with(start), "expected {start}\nfound {fault}");
    }
}

#[test]
fn drop_ins_are_judged_without_the_main_file() {
    let mut draft = draft(&[drop_in("a.toml", "x = 1\n")]);
    draft.fault(Problem::of_file("config.toml", "cannot be used", "write it"));
    assert_eq!(draft.agent_key("socket_group"), None);
    let found = faults_of(draft);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("config.toml: cannot") && found[1].starts_with("a.toml:1: x: is no key"));
    assert!(
        read(&[drop_in("a.toml", &partner(""))]).unwrap_err().to_string().starts_with("config: is missing")
    );
}

#[test]
fn one_mistake_is_one_line_at_the_key_that_makes_it() {
    let text = format!("[agent]\nca_file = \"/ca\"\n{}", partner("") + &partner("").replace("s.p", "s.q"));
    let mut draft = draft(&[main_file(&text)]);
    let names: Vec<_> = draft.profiles().keys().cloned().collect();
    for name in &names {
        draft.fault(draft.problem_of_profile(name, "ca_file", "is not there", "make it"));
    }
    assert_eq!(faults_of(draft), ["config.toml:2: agent.ca_file: is not there; make it"]);
}

#[test]
fn drop_ins_bring_profiles() {
    let a = drop_in("config.d/a.toml", &partner(""));
    let b = drop_in("config.d/b.toml", &partner("").replace("tokens.p", "tokens.q"));
    let config = read(&[main_file("[agent]\nproxy = \"http://a:1\"\n"), b, a]).unwrap();
    assert_eq!(config.tokens.keys().map(ProfileName::as_str).collect::<Vec<_>>(), ["p", "q"]);
    assert!(config.tokens.values().all(|profile| profile.proxy.is_some()));
    assert_eq!(config.place("tokens.q.client_id").to_string(), "config.d/b.toml:4");
    assert_eq!(config.place("agent.proxy").to_string(), "config.toml:2");
}

#[test]
fn broken_syntax_is_told_with_its_place_and_without_its_text() {
    let cases: &[(&str, &str)] = &[
        ("client_secret = C\n", "config.toml:1:17: is not TOML: "),
        ("[agent]\nsocket = \"C\n", "config.toml:2:"),
        ("é = \"a\" C\n", "config.toml:1:"),
        ("C\n", "config.toml:1:"),
        ("[tokens.p\nclient_secret = \"C\"\n", "config.toml:1:"),
        ("x = '''C", "config.toml:1:"),
        ("a = 2026-13-45C\n", "config.toml:1:"),
        (
            "agent.socket = \"/a\"\nagent.socket = \"/C\"\n",
            "config.toml:2:7: socket: stands twice; keep one of the two",
        ),
        ("[log]\n[agent]\n[log]\n", "config.toml:3:2: log: stands twice; keep one of the two"),
        ("[log]\nlevel = 1\nlevel = 2\nformat = 3\n", "config.toml:2: log.level: is an integer"),
    ];
    for (text, expected) in cases {
        let found = faults(&[main_file(&text.replace('C', CANARY))]);
        assert!(
            found.first().is_some_and(|first| first.starts_with(expected)),
            "{text:?}\nexpected {expected}\nfound {found:#?}"
        );
        assert!(!found.concat().contains("4N4RY"), "{found:?}");
    }
    // What stands twice hides nothing; what is no TOML hides the rest of its file, and of no other.
    assert_eq!(faults(&[main_file("[log]\nlevel = 1\nlevel = 2\nformat = 3\n")]).len(), 3);
    let broken = faults(&[main_file("log.level = 1\nx = y z\n"), drop_in("config.d/a.toml", "y = 1\n")]);
    assert!(broken.iter().all(|fault| !fault.contains("log.level")), "{broken:#?}");
    assert!(broken.last().unwrap().starts_with("config.d/a.toml:1: y: is no key"), "{broken:#?}");
}

#[test]
fn line_ends_of_windows_and_a_byte_order_mark_are_read() {
    let text = format!("\u{feff}{}", partner("").replace('\n', "\r\n"));
    assert_eq!(accepted(&text).place("tokens.p.client_id").line, Some(4));
}

#[test]
fn what_works_but_may_not_be_meant_is_a_warning() {
    let bloom = "[tokens.p]\nprovider = \"bloom\"\nenvironment = \"sandbox\"\nscopes = [\"a\"]\nclient_id = \"i\"\nclient_secret.file = \"/s\"\n";
    let cases = [
        ("".to_owned(), "config.toml: names no token, "),
        (partner("allow = []"), "config.toml:6: tokens.p.allow: is empty, so nobody is served but root; "),
        (partner("require_scope = true"), "config.toml:6: tokens.p.require_scope: has nothing to require "),
        (
            format!("{bloom}body = \"json\""),
            "config.toml:7: tokens.p.body: is not what this provider reads; ",
        ),
        (
            partner("[limits]\nconnections_total = 5"),
            "config.toml:6: limits.connections: is above connections_total, ",
        ),
        (
            partner("[limits]\nwatches = 1024"),
            "config.toml:7: limits.watches: is not below streams_per_connection, ",
        ),
    ];
    for (text, expected) in cases {
        let warnings = accepted(&text).warnings;
        assert_eq!(warnings.len(), 1, "{text}\n{warnings:?}");
        assert!(warnings[0].to_string().starts_with(expected), "expected {expected}\nfound {}", warnings[0]);
    }
}

#[test]
fn an_empty_allow_does_not_mean_the_owner() {
    assert_eq!(profile("allow = []").rules, Rules::Allow(vec![]));
    assert_eq!(profile("").rules, Rules::OwnerOnly);
}

#[test]
fn a_refresh_may_use_all_of_its_range() {
    for (written, at, jitter) in [
        ("{ at = 0.1 }", 0.1, 0.05),
        ("{ at = 0.95 }", 0.95, 0.05),
        ("{ at = 0.5, jitter = 0 }", 0.5, 0.0),
        ("{}", 0.8, 0.05),
    ] {
        assert_eq!(
            profile(&format!("refresh = {written}")).refresh,
            Policy::new(at, jitter).unwrap(),
            "{written}"
        );
    }
}

#[test]
fn a_token_is_kept_unless_the_profile_is_another_one() {
    let usual = "scopes = [\"a\", \"b\"]\nresource = [\"urn:x:1\", \"urn:x:2\"]\naudience = \"u\"\nextra = { k = \"v\" }";
    let text = partner(usual);
    let of = |text: &str| accepted(text).tokens.remove("p").unwrap();
    let same = [
        ("allow", text.clone() + "allow = [\"uid:1\"]"),
        ("refresh", text.clone() + "refresh = { at = 0.5 }"),
        ("the next secret", text.clone() + "client_secret_next.file = \"/n\""),
        ("the secret's place", text.replace("\"/s\"", "\"/other\"")),
        ("assumed_lifetime", text.clone() + "assumed_lifetime = \"5m\""),
        ("proxy", text.clone() + "proxy = \"http://p:1\""),
        ("ca_file", text.clone() + "ca_file = \"/ca\""),
        ("the order of scopes", text.replace("\"a\", \"b\"", "\"b\", \"a\"")),
        ("the order of resources", text.replace("\"urn:x:1\", \"urn:x:2\"", "\"urn:x:2\", \"urn:x:1\"")),
        (
            "a default that is now written",
            text.clone() + "body = \"form\"\nauth_method = \"client_secret_post\"",
        ),
    ];
    for (what, other) in same {
        assert!(of(&text).same_identity(&of(&other)), "{what}");
    }
    let another = [
        ("the endpoint", text.replace("https://id.example/t", "https://id.example/u")),
        ("the client", text.replace("\"id\"", "\"id2\"")),
        ("the audience", text.replace("\"u\"", "\"u2\"")),
        ("no audience", text.replace("audience = \"u\"", "")),
        ("a resource", text.replace("urn:x:2", "urn:x:3")),
        ("a scope", text.replace("\"b\"", "\"c\"")),
        ("one scope less", text.replace(", \"b\"", "")),
        ("the method", text.clone() + "auth_method = \"client_secret_basic\""),
        ("the body", text.clone() + "body = \"json\""),
        ("a further parameter", text.replace("\"v\"", "\"w\"")),
    ];
    for (what, other) in another {
        assert!(!of(&text).same_identity(&of(&other)), "{what}");
    }
}

#[test]
fn a_changed_socket_asks_for_a_restart_and_nothing_else_does() {
    let running = accepted("[agent]\nsocket = \"/a\"\nsocket_group = \"g\"\n");
    let told = |text: &str| {
        let mut draft = draft(&[main_file(text)]);
        draft.judge_restart(&running);
        faults_of(draft)
    };
    assert!(
        told("[agent]\nadmin = [\"uid:1\"]\nsocket = \"/a\"\nsocket_group = \"g\"\nsocket_mode = \"0660\"\n")
            .is_empty()
    );
    assert_eq!(
        told("[agent]\nsocket = \"/b\"\nsocket_mode = \"0666\"\n"),
        [
            "config.toml:1: agent.socket_group: has changed, which a reload cannot do; restart for that",
            "config.toml:2: agent.socket: has changed, which a reload cannot do; restart for that",
            "config.toml:3: agent.socket_mode: has changed, which a reload cannot do; restart for that",
        ]
    );
    assert!(told("")[0].starts_with("config.toml: agent.socket: has changed"));
}

#[test]
fn what_could_not_be_read_has_not_changed() {
    let running = accepted("[agent]\nsocket = \"/a\"\nsocket_group = \"g\"\n");
    for (sources, told) in [
        (vec![main_file("[agent]\nsocket = \"a\"\nsocket_group = \"g\"\n")], 1),
        (vec![main_file("agent = 5\n")], 1),
        (vec![main_file("[agent\n")], 1),
        (vec![drop_in("d.toml", &partner(""))], 0),
    ] {
        let mut draft = draft(&sources);
        draft.judge_restart(&running);
        let faults = faults_of(draft);
        assert_eq!(faults.len(), told, "{faults:#?}");
        assert!(!faults.concat().contains("has changed"), "{faults:#?}");
    }
}

#[test]
fn names_are_judged_by_what_was_found() {
    let text = format!(
        "[agent]\nadmin = [\"user:op\"]\n{}",
        partner(
            "allow = [\n  \"user:known & group:ghost\",\n  \"user:moving\",\n  \"group:slow\",\n  \"user:nobody\",\n]"
        )
    );
    let config = accepted(&text);
    let user = |name: &str| Name::User(name.into());
    let group = |name: &str| Name::Group(name.into());
    let all = [user("op"), user("known"), user("moving"), user("nobody"), group("ghost"), group("slow")];
    assert_eq!(config.names(), BTreeSet::from(all));
    let mut directory = Directory::default();
    for (name, id) in [(user("op"), 5), (user("known"), 6), (user("nobody"), 65_534)] {
        directory.insert(name, id).unwrap();
    }
    let lookup = Lookup {
        directory: directory.clone(),
        unknown: [group("ghost")].into(),
        dynamic: [user("moving")].into(),
        failed: [(group("slow"), "I/O error".to_owned())].into(),
    };
    let judged = |unknown| {
        let mut draft = draft(&[main_file(&text)]);
        assert_eq!(draft.names(), config.names());
        draft.judge_names(&lookup, 990, unknown);
        let (finished, warnings) = draft.finish_with_warnings();
        (finished.unwrap_err().into_vec(), warnings)
    };
    let (faults, warnings) = judged(UnknownNames::AreFaults);
    let told = |problems: &[Problem]| problems.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        told(&faults),
        [
            "config.toml:9: tokens.p.allow[0]: names a group that this host does not know, so it matches nobody; correct the name, or create it",
            "config.toml:10: tokens.p.allow[1]: names somebody who has one of systemd's dynamic ids (61184 to 65519), which are handed on to others; use unit:NAME.service",
            "config.toml:11: tokens.p.allow[2]: names a group that could not be looked up (I/O error), so it matches nobody; see why `getent` fails on this host",
        ]
    );
    assert_eq!(
        told(&warnings),
        [
            "config.toml:12: tokens.p.allow[3]: names uid 65534, which no rule admits; run the caller as a user of its own"
        ]
    );
    let (faults, warnings) = judged(UnknownNames::AreWarnings);
    assert_eq!((faults.len(), warnings.len()), (1, 3), "{faults:?} {warnings:?}");
    assert!(faults[0].to_string().ends_with("; use unit:NAME.service"));
    let rules = config.access_rules(990, directory);
    let op = Peer { uid: 5, gid: 5, groups: vec![], pid: 1, unit: None };
    assert!(rules.admin(&op).is_allow() && !rules.decide("p", &op, Verb::Get).is_allow());
}

#[test]
fn a_profile_that_root_by_rule_serves_to_nobody_is_a_warning() {
    let text = format!("agent.root = \"by-rule\"\n{}", partner(""));
    let warnings = |text: &str, own_uid| {
        let mut draft = draft(&[main_file(text)]);
        draft.judge_names(&Lookup::default(), own_uid, UnknownNames::AreFaults);
        draft.finish().unwrap().warnings
    };
    assert!(warnings(&text, 0)[0].to_string().starts_with("config.toml:2: tokens.p: serves nobody: "));
    assert!(warnings(&text, 990).is_empty());
    assert!(warnings(&text.replace("by-rule", "always"), 0).is_empty());
    assert!(warnings(&(text + "allow = [\"uid:5\"]\n"), 0).is_empty());
}

#[test]
fn units_are_asked_for_in_the_slices_that_are_named() {
    let text = partner("allow = [\"uid:5 & unit:loans@.service\"]");
    let names =
        |config: &Config| config.agent.unit_slices.iter().map(ToString::to_string).collect::<Vec<_>>();
    let config = accepted(&text);
    assert_eq!(names(&config), ["system.slice"]);
    assert!(config.access_rules(0, Directory::default()).names_units());
    let slices = "[agent]\nunit_slices = [\"apps.slice\", \"machine-a.slice\"]\n";
    assert_eq!(names(&accepted(&(text.clone() + slices))), ["apps.slice", "machine-a.slice"]);
    // Another list is no reason to restart.
    let mut changed = draft(&[main_file(&(text.clone() + slices))]);
    changed.judge_restart(&config);
    assert!(changed.finish().is_ok());

    let mut without = draft(&[main_file(&text)]);
    without.without_units("this host has no systemd");
    let warning = without.finish().unwrap().warnings.remove(0).to_string();
    assert!(
        warning
            .starts_with("config.toml:6: tokens.p.allow[0]: asks for a unit, and this host has no systemd,")
    );
    let mut other = draft(&[main_file(&partner("allow = [\"uid:5\"]"))]);
    other.without_units("this host has no systemd");
    assert_eq!(other.finish().unwrap().warnings, []);
}

const EXAMPLE: &str = include_str!("../../systemd/config.toml");

/// The example with every key that is commented out put in.
fn uncommented() -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(key) if key.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()) => format!("{key}\n"),
        _ => format!("{line}\n"),
    };
    EXAMPLE.lines().map(line).collect()
}

#[test]
fn the_example_is_accepted_as_it_is_and_with_every_key_of_it() {
    assert_eq!(accepted(EXAMPLE).tokens.len(), 0);
    let config = accepted(&uncommented());
    assert_eq!(config.warnings, []);
    assert_eq!(config.tokens.len(), 3);
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.log, LogConfig { format: Some(LogFormat::Text), ..LogConfig::default() });
    let shown = AgentConfig { admin: vec![], proxy: None, ca_file: None, socket_group: None, ..config.agent };
    assert_eq!(shown, AgentConfig::default());
}

#[test]
fn the_example_shows_every_key_that_there_is() {
    let config = accepted(&uncommented());
    let shown: BTreeSet<&str> = config
        .places
        .keys()
        .filter(|path| !path.ends_with(']'))
        .filter_map(|path| path.rsplit('.').next())
        .collect();
    let all = [
        agent::AGENT_KEYS,
        agent::LIMITS_KEYS,
        agent::LOG_KEYS,
        profile::PROFILE_KEYS,
        profile::SECRET_KEYS,
        profile::REFRESH_KEYS,
    ];
    for key in all.into_iter().flatten() {
        assert!(shown.contains(key), "the example does not show {key}");
    }
}

#[test]
fn the_manual_names_every_key_that_there_is() {
    const PAGE: &str = include_str!("../../man/bloom-agent.toml.5");
    // Keys are bold; what else is bold does no harm.
    let bold: BTreeSet<&str> = PAGE
        .lines()
        .filter(|line| line.starts_with(".B"))
        .flat_map(|line| line.split(|c: char| !c.is_ascii_lowercase() && c != '_'))
        .collect();
    let all = [
        agent::AGENT_KEYS,
        agent::LIMITS_KEYS,
        agent::LOG_KEYS,
        profile::PROFILE_KEYS,
        profile::SECRET_KEYS,
        profile::REFRESH_KEYS,
    ];
    for key in all.into_iter().flatten() {
        assert!(bold.contains(key), "bloom-agent.toml(5) does not name {key}");
    }
}

/// A config in which every text that is free is the canary, and all of them are where they are allowed.
fn with_canaries() -> String {
    let lines = [
        format!("audience = \"{CANARY}\""),
        format!("extra = {{ organization = \"{CANARY}\" }}"),
        format!("resource = [\"https://x.example/{CANARY}\"]"),
        format!("scopes = [\"{CANARY}\"]"),
        format!("client_secret_next.file = \"/{CANARY}\""),
        format!("allow = [\"user:{}\", \"uid:5\"]", CANARY.replace('/', "")),
        "assumed_lifetime = \"5m\"".into(),
        "refresh = { at = 0.8, jitter = 0.05 }".into(),
        format!(
            "[tokens.bloom]\nprovider = \"bloom\"\nenvironment = \"sandbox\"\nclient_id = \"{CANARY}\"\nscopes = [\"a\"]\nclient_secret.credential = \"c\""
        ),
        format!(
            "[agent]\nsocket = \"/{CANARY}\"\nadmin = [\"gid:7\"]\n[limits]\ncalls = 7000\n[log]\nlevel = \"info\""
        ),
    ];
    partner(&lines.join("\n"))
}

/// One change that a tired operator, or a broken editor, could make.
fn change() -> impl Strategy<Value = (prop::sample::Index, prop::sample::Index, String)> {
    let pieces = [
        "",
        "\n",
        "\"",
        "'",
        "\"\"\"",
        "'''",
        "=",
        ".",
        ",",
        "#",
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        "\\",
        "\\u0000",
        "\\x",
        "\u{feff}",
        "\r",
        "\0",
        "é",
        "nan",
        "-1",
        "1e400",
        "0x",
        "2026-01-01",
        "true",
        "unit:a.service",
        "uid:61184",
        "client_secret = ",
        "client_secret.file = ",
        "[tokens.p]\n",
        "[tokens.",
        "secret",
        "https://u:",
        "@",
        "&",
        "!",
        CANARY,
    ];
    let piece = prop::sample::select(pieces.map(str::to_owned).to_vec());
    (
        any::<prop::sample::Index>(),
        any::<prop::sample::Index>(),
        prop_oneof![4 => piece, 1 => any::<char>().prop_map(String::from)],
    )
}

fn changed(text: &str, changes: &[(prop::sample::Index, prop::sample::Index, String)]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for (at, length, piece) in changes {
        let at = at.index(chars.len() + 1);
        // Most cuts are short, so that the rest can still be read.
        let length = length.index(24).saturating_sub(12).min(chars.len() - at);
        chars.splice(at..at + length, piece.chars());
    }
    chars.into_iter().collect()
}

#[test]
fn the_config_with_canaries_is_accepted_unchanged() {
    assert_eq!(accepted(&with_canaries()).tokens.len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a config was changed into: no panic, a fault for what is not taken, and nothing of a value in any text.
    #[test]
    fn no_change_makes_it_panic_or_quote_a_value(
        changes in prop::collection::vec(change(), 1..6),
        as_drop_in in any::<bool>(),
    ) {
        let text = changed(&with_canaries(), &changes);
        let sources = if as_drop_in { [main_file(""), drop_in("d.toml", &text)] } else { [main_file(&text), drop_in("d.toml", "")] };
        let told = match read(&sources) {
            Ok(config) => {
                // Nothing that stands in a table of the file was lost on the way.
                let tables = text.parse::<toml::Table>().unwrap();
                let written = tables.get("tokens").and_then(|tokens| tokens.as_table()).map_or(0, toml::Table::len);
                prop_assert_eq!(config.tokens.len(), written);
                format!("{:?}", config.warnings)
            }
            Err(problems) => format!("{problems}\n{problems:?}"),
        };
        // Any four characters of it, so that a change inside of it does not hide the rest.
        for window in CANARY.as_bytes().windows(4) {
            let window = std::str::from_utf8(window).unwrap();
            prop_assert!(!told.contains(window), "{window} in {told}\nof\n{text}");
        }
    }
}
