//! The second wall of the shipped daemon: it stands round every thread before the first caller comes, it is told of, and a
//! reload cannot want more than it lets through.

#[cfg(target_arch = "x86_64")]
mod injected;

use std::{
    collections::BTreeMap,
    fs,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    process::Command,
};

use nix::{sys::signal::Signal, unistd::Pid};

use crate::host::{Agent, Host, User, is_root, messages, printed, shown};

fn one_profile() -> Host {
    let host = Host::new("s3cret");
    host.config(&(host.agent_table("") + &host.profile("bloom", "")));
    host
}

/// `[tokens.NAME]` at this port of the loopback.
fn profile_at(host: &Host, name: &str, port: u16) -> String {
    let url = format!("https://127.0.0.1:{port}/token");
    host.profile(name, "").replace(&host.issuer.token_url, &url)
}

/// The issuer's port.
fn port(host: &Host) -> u16 {
    let address = host.issuer.token_url.trim_start_matches("https://");
    address.split(['/', ':']).nth(1).unwrap().parse().unwrap()
}

/// Where nobody listens.
const CLOSED: u16 = 1;

/// Of each thread: its name, and what proc_pid_status(5) says of these lines.
fn threads(pid: Pid, lines: &[&str]) -> Vec<(String, BTreeMap<String, String>)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let read = |path: std::path::PathBuf| {
        let name = fs::read_to_string(path.join("comm")).ok()?;
        let status = fs::read_to_string(path.join("status")).ok()?;
        let found = status.lines().filter_map(|line| line.split_once(":\t"));
        let found = found.filter(|(name, _)| lines.contains(name)).map(|(a, b)| (a.to_owned(), b.to_owned()));
        Some((name.trim().to_owned(), found.collect()))
    };
    // One that has ended meanwhile says nothing.
    tasks.filter_map(|task| read(task.unwrap().path())).collect()
}

#[test]
fn every_thread_is_behind_it_and_the_operator_is_told_once() {
    let host = one_profile();
    let agent = host.run();
    // A look-up and the reading of a secret have threads of their own.
    assert!(host.cli(&["token", "bloom"]).status.success(), "{}", agent.log());
    let threads = threads(agent.pid(), &["NoNewPrivs", "Seccomp"]);
    assert!(threads.len() >= 3 && threads.iter().any(|(name, _)| name == "log"), "{threads:?}");
    for (name, status) in &threads {
        assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("1", "2"), "{name}");
    }
    let status = printed(&host.cli(&["status", "--json"]));
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let confinement = status["confinement"].as_str().unwrap();
    let ports = format!(", TCP to 53 {}; seccomp", port(&host));
    assert!(confinement.starts_with("Landlock ABI ") && confinement.ends_with(&ports), "{status}");
    assert_eq!(status["degraded"], serde_json::json!([]), "{status}");
    let table = printed(&host.cli(&["status"]));
    assert!(table.contains(&format!("\nconfined    {confinement}\n")), "{table}");
    let metrics = printed(&host.cli(&["metrics"]));
    assert!(!metrics.contains("degraded{what=\"landlock\"}") && !metrics.contains("seccomp"), "{metrics}");
    let (_, _, log) = agent.stop();
    assert_eq!(log.matches("the process has confined itself").count(), 1, "{log}");
    assert!(log.contains(confinement), "{log}");
}

#[test]
fn it_stands_before_there_is_a_second_thread_and_after_the_socket() {
    let name = "it_stands_before_there_is_a_second_thread_and_after_the_socket";
    if Command::new("strace").arg("--version").output().is_err() {
        // Past the test runner, which keeps what a passing test prints to itself.
        let _loud = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("SKIPPED: {name} needs strace(1), to see the order\n"),
        );
        return;
    }
    let host = one_profile();
    let mut command = Command::new("strace");
    command.args(["-f", "-q", "-o"]).arg(host.path("trace"));
    command.args(["-e", "trace=bind,clone,clone3,landlock_restrict_self,seccomp"]);
    command.arg(host.program("bloom-agent")).args(["run", "--config"]).arg(host.path("config.toml"));
    let mut agent = Agent::spawn(command);
    agent.wait_for_log("serving");
    assert!(host.cli(&["token", "bloom"]).status.success(), "{}", agent.log());
    let tracer = agent.pid();
    let children = fs::read_to_string(format!("/proc/{tracer}/task/{tracer}/children")).unwrap();
    nix::sys::signal::kill(Pid::from_raw(children.trim().parse().unwrap()), Signal::SIGTERM).unwrap();
    let (status, _, log) = agent.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    let trace = fs::read_to_string(host.path("trace")).unwrap();
    let first = |call: &str| {
        let at = trace.lines().position(|line| line.contains(call));
        at.unwrap_or_else(|| panic!("no {call} in {trace}"))
    };
    let (bind, files, calls) = (first("agent.sock\"}"), first("landlock_restrict_self("), first("seccomp("));
    // clone3(2) is denied by then, so that flags are seen; the C library falls back.
    let thread = first("clone3(").min(first("clone("));
    assert!(bind < files && files < calls && calls < thread, "{trace}");
    for (call, line) in [("landlock_restrict_self", files), ("seccomp", calls)] {
        let line = trace.lines().nth(line).unwrap();
        assert!(line.trim_end().ends_with("= 0"), "{call}: {line}");
    }
    assert!(trace.lines().nth(calls).unwrap().contains("SECCOMP_FILTER_FLAG_TSYNC"), "{trace}");
}

#[test]
fn an_agent_of_any_user_has_it() {
    let name = "an_agent_of_any_user_has_it";
    if !is_root(name) {
        return;
    }
    let host = Host::new("s3cret");
    host.config(&(host.plain_agent_table("") + &host.profile("bloom", "")));
    let agent = host.start_as(&User::new(50_124, 50_124, &[]));
    let line = agent.wait_for_log("the process has confined itself");
    assert!(!line.contains("missing"), "{line}");
    agent.wait_for_log("serving");
    assert!(host.cli(&["token", "bloom"]).status.success(), "{}", agent.log());
    let (status, _, log) = agent.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!host.path("agent.sock").exists(), "its own socket is removed: {log}");
    assert!(host.path("agent.sock.lock").exists());
}

#[test]
fn a_command_of_dev_has_no_wall() {
    let host = one_profile();
    let output = Command::new(host.program("bloom-agent"))
        .args([
            "dev",
            "--",
            "sh",
            "-c",
            "grep -h Seccomp: /proc/$PPID/status /proc/self/status; : >written && /bin/echo run",
        ])
        .current_dir(host.directory())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", shown(&output));
    assert!(printed(&output).ends_with("run") && host.path("written").exists(), "{}", shown(&output));
    // Neither the program itself, which is to start it; unless all that runs here has a filter.
    let ours = fs::read_to_string("/proc/self/status").unwrap();
    let ours = ours.lines().find(|line| line.starts_with("Seccomp:")).unwrap();
    assert_eq!(printed(&output).lines().filter(|line| *line == ours).count(), 2, "{}", shown(&output));
}

#[test]
fn a_reload_that_brings_a_port_is_refused_with_line_and_key_and_the_running_config_stays() {
    let host = one_profile();
    let agent = host.run();
    let token = printed(&host.cli(&["token", "bloom"]));
    let proxy = format!("proxy = \"http://127.0.0.1:{CLOSED}\"");
    let good = host.agent_table("") + &host.profile("bloom", "");
    let table = [
        (
            "a profile's endpoint",
            format!("{good}{}", profile_at(&host, "second", CLOSED)),
            "tokens.second.token_url",
        ),
        (
            "the endpoint of one that runs",
            host.agent_table("") + &profile_at(&host, "bloom", CLOSED),
            "tokens.bloom.token_url",
        ),
        ("a profile's proxy", format!("{good}{proxy}\n"), "tokens.bloom.proxy"),
        ("the agent's proxy", host.agent_table(&proxy) + &host.profile("bloom", ""), "agent.proxy"),
    ];
    for (name, config, key) in table {
        host.config(&config);
        let written = key.rsplit('.').next().unwrap();
        let is_it = |(_, line): &(usize, &str)| line.starts_with(written);
        let line = 1 + config.lines().enumerate().filter(is_it).last().unwrap().0;
        let fault = format!(
            "{}:{line}: {key}: has a port that the agent closed itself to when it started; restart for that",
            host.path("config.toml").display()
        );
        let told = host.cli(&["reload"]);
        assert_eq!(told.status.code(), Some(78), "{name}: {}", shown(&told));
        assert!(messages(&told).contains(&fault), "{name}: {fault} is not in\n{}", shown(&told));
        agent.signal(Signal::SIGHUP);
        agent.wait_for_log("not reloaded");
        assert_eq!(printed(&host.cli(&["token", "bloom"])), token, "{name}: the running config stays");
        // What runs is nothing that `check` knows; the config has no fault.
        let checked = host.check();
        assert_eq!(checked.status.code(), Some(0), "{name}: {}", shown(&checked));
    }
    // The ports are those of the start: what goes may come back.
    host.config(&host.agent_table(""));
    assert!(host.cli(&["reload"]).status.success());
    host.config(&(good.clone() + &host.profile("second", "")));
    let told = host.cli(&["reload"]);
    assert!(told.status.success(), "{}", shown(&told));
    assert!(host.cli(&["token", "second"]).status.success(), "{}", agent.log());
    // And after the restart that was asked for it is taken.
    host.config(&(good + &profile_at(&host, "third", CLOSED)));
    agent.stop();
    let agent = host.run();
    let status = printed(&host.cli(&["status", "--json"]));
    assert!(status.contains(&format!("TCP to {CLOSED} 53 {}; seccomp", port(&host))), "{status}");
    agent.stop();
}

#[test]
fn the_first_profile_of_an_agent_without_any_may_come_by_a_reload() {
    let host = Host::new("s3cret");
    host.config(&host.agent_table(""));
    let agent = host.run();
    for (port, code) in [(CLOSED, 78), (443, 0)] {
        host.config(&(host.agent_table("") + &profile_at(&host, "bloom", port)));
        let told = host.cli(&["reload"]);
        assert_eq!(told.status.code(), Some(code), "{port}: {}", shown(&told));
    }
    agent.stop();
}

/// What the manager is told, whatever its socket is called: one by a path is reached past Landlock, and for an abstract one
/// the agent leaves those open.
#[test]
fn a_service_manager_at_an_abstract_socket_hears_of_the_agent() {
    let host = one_profile();
    let name = format!("bloom-agent-it-{}", host.directory().file_name().unwrap().to_str().unwrap());
    let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    manager.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    let mut command = host.daemon(&["run"]);
    command.env("NOTIFY_SOCKET", format!("@{name}"));
    let agent = Agent::spawn(command);
    let mut told = [0; 4096];
    loop {
        let length = manager.recv(&mut told).expect("it is told");
        if told[..length].starts_with(b"READY=1") {
            break;
        }
    }
    assert!(agent.log().contains("the process has confined itself"), "{}", agent.log());
    agent.stop();
}

#[cfg(target_arch = "x86_64")]
#[test]
fn whatever_a_thread_of_the_agent_were_made_to_do_would_fail() {
    injected::attempts_from_every_thread();
}
