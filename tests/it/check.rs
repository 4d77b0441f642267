//! `bloom-agent check`: everything that `run` would stumble over, before it does.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    process::Output,
};

use crate::host::{Host, User, check_as_ourselves, is_root, messages, printed, shown};

/// A word that stands in configs and must come out nowhere.
const CANARY: &str = "C4N4RY";

fn check(host: &Host, arguments: &[&str]) -> Output {
    let mut command = host.daemon(check_as_ourselves());
    let output = command.args(arguments).env_remove("CREDENTIALS_DIRECTORY").output().unwrap();
    assert!(!shown(&output).contains(CANARY), "{}", shown(&output));
    output
}

/// Fails unless it ends with 78 and tells each of these, and nothing else, once.
fn has_faults(host: &Host, faults: &[&str]) {
    let output = check(host, &[]);
    let text = messages(&output);
    assert_eq!(output.status.code(), Some(78), "{}", shown(&output));
    for fault in faults {
        assert_eq!(text.lines().filter(|line| line.contains(fault)).count(), 1, "{fault:?} in\n{text}");
    }
    let count = faults.len();
    let last =
        format!("{count} fault{}; the agent would not take this config", if count == 1 { "" } else { "s" });
    assert_eq!(text.lines().last(), Some(&*last), "{text}");
    assert_eq!(text.lines().count(), count + 1, "{text}");
    assert!(output.stdout.is_empty(), "{}", shown(&output));
}

#[test]
fn a_good_config_is_called_good_and_nothing_is_asked_of_anybody() {
    let host = Host::new("s3cret");
    host.config(&(host.agent_table("") + &host.profile("bloom", "") + &host.profile("partner", "")));
    let output = check(&host, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    assert!(printed(&output).ends_with("config.toml: good; 2 profiles"), "{}", shown(&output));
    assert!(output.stderr.is_empty(), "{}", shown(&output));
    assert!(!host.path("agent.sock").exists() && !host.path("agent.sock.lock").exists());
    assert_eq!(host.issuer.control.request_count(), 0);
}

#[test]
fn every_kind_of_fault_is_told_at_once_and_no_value() {
    let host = Host::new("s3cret");
    // Each faulty line carries the part of the message that tells of it.
    let lines: &[(&str, &str)] = &[
        ("[agent]", ""),
        ("socket = \"@C4N4RY\"", "agent.socket: "),
        ("socket_mode = \"C4N4RY\"", "agent.socket_mode: "),
        ("root = \"C4N4RY\"", "agent.root: "),
        ("ready = \"C4N4RY\"", "agent.ready: "),
        ("unit_slices = [\"C4N4RY\"]", "agent.unit_slices[0]: "),
        ("admin = [\"user:root\", \"C4N4RY\"]", "agent.admin[1]: "),
        ("proxy = \"http://C4N4RY:C4N4RY@proxy:3128\"", "agent.proxy: "),
        ("colour = \"C4N4RY\"", "agent.colour: "),
        ("[limits]", ""),
        ("connections = 0", "limits.connections: "),
        ("callz = 1", "limits.callz: "),
        ("[log]", ""),
        ("level = \"C4N4RY\"", "log.level: "),
        ("format = \"C4N4RY\"", "log.format: "),
        ("[surprise]", "surprise: "),
        ("key = \"C4N4RY\"", ""),
        ("[tokens.a]", ""),
        ("provider = \"oauth2\"", ""),
        ("token_url = \"http://C4N4RY.example/token\"", "tokens.a.token_url: "),
        ("client_id = 7", "tokens.a.client_id: "),
        ("client_secret = \"C4N4RY\"", "tokens.a.client_secret: "),
        ("auth_method = \"C4N4RY\"", "tokens.a.auth_method: "),
        ("body = \"C4N4RY\"", "tokens.a.body: "),
        ("assumed_lifetime = \"1 C4N4RY\"", "tokens.a.assumed_lifetime: "),
        ("extra = { client_secret = \"C4N4RY\" }", "tokens.a.extra.client_secret: "),
        ("allow = [\"uid:61184\", \"unit:C4N4RY\", \"C4N4RY:x\"]", "tokens.a.allow[0]: "),
        ("", "tokens.a.allow[1]: "),
        ("", "tokens.a.allow[2]: "),
        ("refresh = { at = 2.0, jiter = 1 }", "tokens.a.refresh.at: "),
        ("", "tokens.a.refresh.jiter: "),
        ("[tokens.b]", "tokens.b.scopes: "),
        ("provider = \"bloom\"", ""),
        ("environment = \"C4N4RY\"", "tokens.b.environment: "),
        ("base_url = \"https://C4N4RY.example\"", "tokens.b.base_url: "),
        ("client_id = \"C4N4RY\"", ""),
        ("client_secret.file = \"C4N4RY\"", "tokens.b.client_secret.file: "),
        ("[tokens.c]", "tokens.c.client_id: "),
        ("provider = \"oauth2\"", ""),
        ("token_url = \"https://C4N4RY:C4N4RY@id.example/token#C4N4RY\"", "tokens.c.token_url: "),
        ("client_secret.environment = \"C4N4RY\"", "tokens.c.client_secret.environment: "),
        ("[tokens.C4N4RY]", "tokens.…: "),
        ("provider = \"C4N4RY\"", ""),
    ];
    host.config(&lines.iter().map(|(line, _)| format!("{line}\n")).collect::<String>());
    let output = check(&host, &[]);
    let text = messages(&output);
    assert_eq!(output.status.code(), Some(78), "{}", shown(&output));
    let config = host.path("config.toml").display().to_string();
    let mut written = 0;
    for (index, (line, fault)) in lines.iter().enumerate() {
        // An empty line here is one more fault of the line before it.
        written = if line.is_empty() { written } else { index + 1 };
        if !fault.is_empty() {
            let place = format!("{config}:{written}: {fault}");
            assert!(text.lines().any(|line| line.starts_with(&place)), "{place:?} is not in\n{text}");
        }
    }
    let run = host.run_to_its_end();
    assert_eq!(run.status.code(), Some(78));
    for line in text.lines().filter(|line| line.starts_with(&config)) {
        assert!(messages(&run).contains(line), "run says less: {line}");
    }
    assert!(!shown(&run).contains(CANARY), "{}", shown(&run));
}

#[test]
fn broken_syntax_is_told_by_its_place_alone() {
    let host = Host::new("s3cret");
    host.config("[agent]\nsocket = \"C4N4RY\n");
    has_faults(&host, &["config.toml:2:"]);
}

#[test]
fn users_and_secrets_that_run_would_only_miss_later_are_faults() {
    let host = Host::new("s3cret");
    host.write("open", CANARY, 0o644);
    host.write("empty", "", 0o600);
    host.write("two-lines", "C4N4RY\nC4N4RY\n", 0o600);
    std::os::unix::fs::symlink(host.path("secret"), host.path("link")).unwrap();
    fs::hard_link(host.path("two-lines"), host.path("two-names")).unwrap();
    let secret =
        |name: &str, lines: &str| host.profile(name, lines).replace("/secret\"", &format!("/{name}\""));
    let next = format!("client_secret_next.file = {:?}", host.path("absent-too"));
    host.config(
        &(host.agent_table("admin = [\"user:no-such-user\"]")
            + &host.profile("good", "allow = [\"group:no-such-group\", \"user:root\"]")
            + &secret("open", "")
            + &secret("empty", "")
            + &secret("absent", "")
            + &secret("link", "")
            + &secret("two-names", "")
            + &host.profile("next", &next)),
    );
    let open = format!("chmod 600 {}", host.path("open").display());
    has_faults(
        &host,
        &[
            "agent.admin[0]: names a user that this host does not know",
            "tokens.good.allow[0]: names a group that this host does not know",
            "tokens.absent.client_secret: ",
            &open,
            "tokens.empty.client_secret: ",
            "tokens.link.client_secret: ",
            "tokens.two-names.client_secret: ",
            "tokens.next.client_secret_next: ",
        ],
    );
    assert_eq!(host.issuer.control.request_count(), 0);
}

#[test]
fn a_secret_of_another_user_is_a_fault_with_its_remedy() {
    if !is_root("a secret of another user") {
        return;
    }
    let host = Host::new("s3cret");
    host.config(&(host.agent_table("") + &host.profile("bloom", "")));
    host.give("secret", 1234);
    has_faults(&host, &["run: chown root "]);
}

#[test]
fn a_credential_is_a_note_where_systemd_does_not_deliver_it() {
    let host = Host::new("s3cret");
    let profile = host.profile("bloom", "").replace("client_secret.file", "client_secret.credential");
    let path = format!("{:?}", host.path("secret"));
    host.config(&(host.agent_table("") + &profile.replace(&path, "\"bloom\"")));
    let output = check(&host, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    let text = messages(&output);
    assert!(
        text.starts_with("note: ") && text.contains("tokens.bloom.client_secret: is a credential"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn connect_goes_the_whole_way_and_costs_no_token() {
    let host = Host::new("s3cret");
    host.config(&(host.agent_table("") + &host.profile("bloom", "") + &host.profile("partner", "")));
    let steps = |output: &Output, name: &str| {
        let lines: Vec<_> = printed(output)
            .lines()
            .filter_map(|line| line.strip_prefix(&format!("{name}: ")).map(ToOwned::to_owned))
            .collect();
        lines.iter().map(|line| line.split(": ").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let whole = ["look-up", "connect", "TLS", "endpoint"];
    let all = check(&host, &["--connect"]);
    assert_eq!(all.status.code(), Some(0), "{}", shown(&all));
    assert_eq!(
        (steps(&all, "bloom"), steps(&all, "partner")),
        (whole.map(String::from).into(), whole.map(String::from).into())
    );
    let one = check(&host, &["--connect", "partner"]);
    assert_eq!(one.status.code(), Some(0), "{}", shown(&one));
    assert!(steps(&one, "bloom").is_empty());
    assert_eq!(steps(&one, "partner"), whole);

    for request in host.issuer.control.requests() {
        assert_eq!(request.method, http::Method::HEAD);
        assert!(request.body.is_empty() && !request.headers.contains_key(http::header::AUTHORIZATION));
    }
    assert_eq!(host.issuer.control.granted_count(), 0);
    assert!(!shown(&all).contains("s3cret"));

    for (name, code) in [("invented", 64), ("Not-A-Name", 64)] {
        let output = check(&host, &["--connect", name]);
        assert_eq!(output.status.code(), Some(code), "{}", shown(&output));
        assert!(messages(&output).lines().count() >= 3, "{}", shown(&output));
    }
}

/// The issuer at an address that is not in its certificate. The thread ends with the test's process.
fn by_another_address(port: &str) -> String {
    let door = TcpListener::bind("127.0.0.2:0").unwrap();
    let address = door.local_addr().unwrap().to_string();
    let issuer = format!("127.0.0.1:{port}");
    std::thread::spawn(move || {
        for client in door.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(&issuer).unwrap());
            let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            // Either side may break off: that is what is tested.
            std::thread::spawn(move || drop(std::io::copy(&mut from_client, &mut to_server)));
            std::thread::spawn(move || drop(std::io::copy(&mut &server, &mut &client)));
        }
    });
    address
}

#[test]
fn connect_ends_at_the_step_that_fails_and_with_69() {
    let host = Host::new("s3cret");
    let other = Host::new("s3cret");
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let (_, port) = host.issuer.token_url.rsplit_once(':').unwrap();
    let (port, _) = port.split_once('/').unwrap();
    let at = |authority: &str| host.profile("bad", "").replace(&format!("127.0.0.1:{port}"), authority);
    let wrong_ca = host.profile("bad", &format!("ca_file = {:?}", other.path("ca.pem")));
    let cases: &[(&str, String, &str, usize)] = &[
        ("another CA", wrong_ca, "bad: TLS: ", 2),
        ("a closed port", at(&format!("127.0.0.1:{closed}")), "bad: connect: ", 1),
        ("an address that the certificate is not for", at(&by_another_address(port)), "bad: TLS: ", 2),
        ("a name that nobody has", at("no-such-host.invalid"), "bad: look-up: ", 0),
    ];
    for (what, profile, failed, passed) in cases {
        host.config(&(host.agent_table("") + &host.profile("good", "") + profile));
        let output = check(&host, &["--connect"]);
        assert_eq!(output.status.code(), Some(69), "{what}: {}", shown(&output));
        assert!(messages(&output).contains(failed), "{what}: {}", shown(&output));
        let good = printed(&output).lines().filter(|line| line.starts_with("bad: ")).count();
        assert_eq!(good, *passed, "{what}: {}", shown(&output));
        // One that fails hides no other.
        assert!(printed(&output).contains("good: endpoint: "), "{what}: {}", shown(&output));
        assert_eq!(messages(&output).lines().count(), 1, "{what}: {}", shown(&output));
    }
    assert_eq!(host.issuer.control.granted_count(), 0);
}

#[test]
fn root_checks_as_the_user_whose_files_they_are() {
    if !is_root("root_checks_as_the_user_whose_files_they_are") {
        return;
    }
    let host = Host::new(CANARY);
    host.config(&host.profile("bloom", ""));
    // Every Debian has the user, and its uid is 1.
    host.give("secret", 1);
    let checked = |user: &str| {
        let mut command = host.daemon(&["check", "--user", user]);
        command.env_remove("CREDENTIALS_DIRECTORY").output().unwrap()
    };
    let theirs = checked("daemon");
    assert!(theirs.status.success(), "{}", shown(&theirs));
    assert!(messages(&theirs).contains("note: checked as the user daemon; --user names another"));
    assert_eq!(checked("root").status.code(), Some(78));
    let nobodys = checked("no-such-user-9f2");
    assert_eq!(nobodys.status.code(), Some(71));
    assert!(
        messages(&nobodys)
            .contains("cannot check as the user no-such-user-9f2\nthis host knows no such user\n")
    );
    // Who is not root becomes nobody else.
    let mut command = User::new(1, 1, &[]).command(&host.program("bloom-agent"));
    let denied =
        command.args(["check", "--user", "root", "--config"]).arg(host.path("config.toml")).output().unwrap();
    assert_eq!(denied.status.code(), Some(71), "{}", shown(&denied));
    assert!(messages(&denied).contains("run it as root"));
}
