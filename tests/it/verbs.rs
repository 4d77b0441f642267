//! Every verb of `bloom-agent-cli` against the real daemon, as a service and an operator use them.

use std::process::Command;

use bloom_agent::dev_issuer::Fault;
use serde_json::Value;

use crate::host::{Host, Printing, User, is_root, messages, printed, shown};

fn host(profiles: &[&str]) -> Host {
    let host = Host::new("s3cret");
    let tables: Vec<_> = profiles.iter().map(|name| host.profile(name, "")).collect();
    host.config(&(host.agent_table("") + &tables.join("")));
    host
}

fn json(host: &Host, arguments: &[&str]) -> Value {
    let output = host.cli(arguments);
    assert!(output.status.success(), "{}", shown(&output));
    assert_eq!(printed(&output).lines().count(), 1, "one line: {}", shown(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn generation(host: &Host) -> String {
    json(host, &["token", "bloom", "--format", "json"])["generation"].as_str().unwrap().to_owned()
}

#[test]
fn every_format_is_of_one_token() {
    let host = host(&["bloom"]);
    let _agent = host.run();
    let print = |arguments: &[&str]| {
        let output = host.cli(arguments);
        assert!(output.status.success() && output.stderr.is_empty(), "{}", shown(&output));
        printed(&output)
    };
    let token = print(&["token"]);
    assert!(host.issuer.control.is_live(&token));
    assert_eq!(print(&["token", "bloom", "--format", "header"]), format!("Authorization: Bearer {token}"));
    assert_eq!(print(&["token", "bloom", "--format", "env"]), format!("BLOOM_TOKEN={token}"));
    let whole = json(&host, &["token", "--format", "json"]);
    assert_eq!((&whole["accessToken"], &whole["tokenType"]), (&Value::from(&*token), &Value::from("Bearer")));
    let listed = json(&host, &["list", "--json"]);
    let listed = &listed["tokens"][0];
    assert_eq!(
        (&listed["name"], &listed["state"]),
        (&Value::from("bloom"), &Value::from("TOKEN_STATE_VALID"))
    );
    assert_eq!((&listed["generation"], &listed["expiresAt"]), (&whole["generation"], &whole["expiresAt"]));
    assert!(!listed.to_string().contains(&token));
    assert_eq!(host.issuer.control.request_count(), 1);
}

#[test]
fn the_exit_code_says_what_to_do() {
    let host = host(&["bloom", "partner"]);
    // A client that the provider does not know: the next attempt is 30 s away.
    host.issuer.control.set_secrets(["another"]);
    let code = |arguments: &[&str], wanted: i32, part: &str| {
        let output = host.cli(arguments);
        assert_eq!(output.status.code(), Some(wanted), "{arguments:?}: {}", shown(&output));
        assert!(messages(&output).contains(part), "{arguments:?}: {part:?} is not in {}", shown(&output));
        assert!(output.stdout.is_empty(), "{}", shown(&output));
        assert_eq!(messages(&output).lines().count(), 3, "{}", shown(&output));
    };
    code(&["token", "bloom"], 69, "the agent is not running");
    code(&["exec", "bloom", "--", "true"], 69, "the agent is not running");
    let agent = host.run();
    agent.wait_until_logged("partner");
    code(&["token"], 64, "you may use: bloom, partner");
    code(&["token", "blomo"], 64, "it has: bloom, partner");
    code(&["refresh", "blomo"], 64, "it has: bloom, partner");
    code(&["report-rejected", "blomo", "--generation", "1"], 64, "it has: bloom, partner");
    code(&["token", "bloom"], 75, "the provider refuses");
    code(&["refresh", "bloom"], 75, "no token for \"bloom\"");
    assert_eq!(host.cli(&["token", "Bloom"]).status.code(), Some(64), "no name at all");
    assert_eq!(host.cli(&["tokn"]).status.code(), Some(64));
    assert_eq!(host.cli(&["--help"]).status.code(), Some(0));

    // The operator's word goes past the back-off.
    host.issuer.control.set_secrets(["s3cret"]);
    let refreshed = host.cli(&["refresh", "bloom"]);
    assert!(refreshed.status.success(), "{}\n{}", shown(&refreshed), agent.log());
    assert!(host.issuer.control.is_live(&printed(&host.cli(&["token", "bloom"]))));
    // A failed refresh never takes a valid token away, and is told.
    host.issuer.control.set_rule(Some(Fault::status(http::StatusCode::SERVICE_UNAVAILABLE)));
    let failed = host.cli(&["refresh", "bloom"]);
    assert_eq!(failed.status.code(), Some(75), "{}", shown(&failed));
    assert!(host.cli(&["token", "bloom"]).status.success());
    let listed = json(&host, &["list", "--json"]);
    assert_eq!(listed["tokens"][0]["state"], "TOKEN_STATE_DEGRADED");
    assert_eq!(listed["tokens"][0]["lastFailure"], "FAILURE_KIND_PROVIDER_ERROR");
    assert!(printed(&host.cli(&["status"])).contains("503"), "{}", shown(&host.cli(&["status"])));
}

#[test]
fn a_caller_without_permission_is_told_who_he_is() {
    if !is_root("a caller of another uid") {
        return;
    }
    let host = Host::new("s3cret");
    let rules = "allow = [\"uid:2001\"]";
    host.config(&(host.agent_table("socket_mode = \"0666\"") + &host.profile("loans", rules)));
    let _agent = host.run();
    let stranger = User::new(2002, 2002, &[]);
    let mut words = Vec::new();
    for name in ["loans", "invented"] {
        for verb in [&["token", name][..], &["watch", name], &["exec", name, "--", "true"]] {
            let output = host.cli_as(&stranger, verb);
            assert_eq!(output.status.code(), Some(77), "{verb:?}: {}", shown(&output));
            assert!(messages(&output).contains("you are uid 2002"), "{verb:?}: {}", shown(&output));
            words.push(messages(&output).replace(name, "NAME"));
        }
    }
    words.dedup();
    assert_eq!(words.len(), 1, "an invented name is told from a real one: {words:#?}");
    for verb in [&["status"][..], &["metrics"], &["reload"], &["refresh", "loans"]] {
        let output = host.cli_as(&stranger, verb);
        assert_eq!(output.status.code(), Some(77), "{verb:?}: {}", shown(&output));
        assert!(messages(&output).contains("admin = [\"uid:2002\"]"), "{verb:?}: {}", shown(&output));
    }
    let list = host.cli_as(&stranger, &["list", "--json"]);
    assert_eq!((list.status.code(), printed(&list).as_str()), (Some(0), "{\"tokens\":[]}"));
    let nobody = host.cli_as(&User::new(65_534, 65_534, &[2001]), &["token", "loans"]);
    assert_eq!(nobody.status.code(), Some(77), "{}", shown(&nobody));
    assert!(messages(&nobody).contains("no rule can admit uid 65534"), "{}", shown(&nobody));
}

#[test]
fn waiting_begins_before_there_is_an_agent() {
    let host = host(&["bloom"]);
    let mut waiting = Printing::spawn(host.cli_command(&["token", "bloom", "--wait", "60s"]));
    let at_once = host.cli(&["token", "bloom"]);
    assert_eq!(at_once.status.code(), Some(69), "{}", shown(&at_once));
    let _agent = host.run();
    let token = waiting.line();
    assert!(host.issuer.control.is_live(&token));
    let (status, more, messages) = waiting.wait();
    assert_eq!((status.code(), more.len(), messages.as_str()), (Some(0), 0, ""));
    // What does not pass is not waited for.
    let unknown = host.cli(&["token", "blomo", "--wait", "60s"]);
    assert_eq!(unknown.status.code(), Some(64), "{}", shown(&unknown));
}

#[test]
fn a_refresh_rotates_and_a_report_of_the_old_token_costs_nothing() {
    let host = host(&["bloom"]);
    let _agent = host.run();
    let before = generation(&host);
    let refreshed = json(&host, &["refresh", "bloom", "--json"]);
    let after = generation(&host);
    assert!(before != after && refreshed.to_string().contains(&after), "{before} {after} {refreshed}");
    let reported = host.cli(&["report-rejected", "bloom", "--generation", &before]);
    assert_eq!(printed(&reported), format!("bloom: {after} (new)"), "{}", shown(&reported));
    let reported = json(&host, &["report-rejected", "bloom", "--generation", &before, "--json"]);
    assert_eq!((&reported["generation"], &reported["isNew"]), (&Value::from(after), &Value::from(true)));
    assert_eq!(host.issuer.control.request_count(), 2);
}

#[test]
fn status_and_metrics_say_what_an_operator_asks() {
    let host = host(&["bloom", "partner"]);
    let agent = host.run();
    let token = printed(&host.cli(&["token", "bloom"]));
    assert!(host.cli(&["token", "partner"]).status.success());
    assert_eq!(host.cli(&["token", "blomo"]).status.code(), Some(64));
    let status = json(&host, &["status", "--json"]);
    assert_eq!(status["pid"], agent.pid().as_raw());
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    let names: Vec<_> = status["profiles"].as_array().unwrap().iter().map(|p| &p["token"]["name"]).collect();
    assert_eq!(names, ["bloom", "partner"]);
    assert_eq!(status["profiles"][0]["requests"], "1");
    assert_eq!(status["profiles"][0]["tokenUrl"], *host.issuer.token_url);
    assert!(status["profiles"][0]["secretSource"].as_str().unwrap().contains("/secret"));

    let metrics = printed(&host.cli(&["metrics"]));
    for line in [
        "bloom_agent_refreshes_total{profile=\"bloom\",outcome=\"success\"} 1",
        "bloom_agent_refreshes_total{profile=\"partner\",outcome=\"refused\"} 0",
        "bloom_agent_calls_total{method=\"GetToken\",code=\"OK\"} 2",
        "bloom_agent_calls_total{method=\"GetToken\",code=\"NOT_FOUND\"} 1",
        "bloom_agent_calls_total{method=\"GetStatus\",code=\"OK\"} 1",
        "bloom_agent_connections 1",
        "bloom_agent_denied_total{verb=\"get\"} 0",
        "bloom_agent_panics_total 0",
        "# EOF",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    let expiry = |profile: &str| {
        let key = format!("bloom_agent_token_expiry_timestamp_seconds{{profile=\"{profile}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&key)).unwrap().parse::<u64>().unwrap()
    };
    assert!(expiry("bloom") > 1_700_000_000 && expiry("partner") > 1_700_000_000);
    assert!(metrics.lines().any(|line| line.starts_with("bloom_agent_degraded{what=")), "{metrics}");
    for text in [status.to_string(), metrics, agent.log()] {
        assert!(!text.contains(&token) && !text.contains("s3cret"), "{text}");
    }
}

#[test]
fn a_watch_hears_of_each_rotation_and_runs_a_command_with_each_token() {
    let host = host(&["bloom"]);
    let agent = host.run();
    let mut lines = Printing::spawn(host.cli_command(&["watch", "bloom"]));
    let mut objects = Printing::spawn(host.cli_command(&["watch", "--json"]));
    let mut headers = Printing::spawn(host.cli_command(&["watch", "bloom", "--format", "header"]));
    let script =
        "read token; echo \"$BLOOM_TOKEN_NAME $BLOOM_TOKEN_GENERATION $BLOOM_TOKEN_EXPIRES_AT $token\"";
    let mut runs = Printing::spawn(host.cli_command(&["watch", "bloom", "--exec", "sh", "-c", script]));
    for rotation in 0..3 {
        if rotation > 0 {
            assert!(host.cli(&["refresh", "bloom"]).status.success(), "{}", agent.log());
        }
        let line = lines.line();
        let [name, generation, expires] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        assert_eq!((name, generation), ("bloom", &*self::generation(&host)), "{line}");
        let object: Value = serde_json::from_str(&objects.line()).unwrap();
        assert_eq!(
            (&object["generation"], &object["name"]),
            (&Value::from(generation), &Value::from("bloom"))
        );
        let header = headers.line();
        let token = header.strip_prefix("Authorization: Bearer ").unwrap();
        assert_eq!(token, printed(&host.cli(&["token"])));
        assert_eq!(runs.line(), format!("bloom {generation} {expires} {token}"));
    }
    let metrics = printed(&host.cli(&["metrics"]));
    assert!(metrics.contains("\nbloom_agent_watches 4\n"), "{metrics}");
    // A reader that has seen enough ends the watch, and that is no failure.
    let script = "\"$0\" --socket \"$1\" watch bloom | head -n 1";
    let mut head = Command::new("sh");
    head.args(["-c", script]).arg(host.program("bloom-agent-cli")).arg(host.path("agent.sock"));
    let head = head.output().unwrap();
    assert_eq!((head.status.code(), messages(&head).as_str()), (Some(0), ""), "{}", shown(&head));
}

#[test]
fn exec_becomes_the_command() {
    let host = host(&["bloom"]);
    let _agent = host.run();
    let output = host.cli(&["exec", "bloom", "--", "sh", "-c", "echo \"$BLOOM_TOKEN\"; exit 7"]);
    assert_eq!(output.status.code(), Some(7), "{}", shown(&output));
    assert_eq!(printed(&output), printed(&host.cli(&["token"])));
    assert!(output.stderr.is_empty());
    let killed = host.cli(&["exec", "--", "sh", "-c", "kill -TERM $$"]);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&killed.status), Some(15), "{}", shown(&killed));
    for (command, code) in [("no-such-command", 127), ("/etc/passwd", 126)] {
        // A PATH with a directory that may not be searched would make both 126.
        let mut exec = host.cli_command(&["exec", "--", command]);
        let output = exec.env("PATH", "/usr/bin:/bin").output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", shown(&output));
    }
}
