//! The shipped programs, as an operator starts them.

use std::process::Command;

use nix::sys::signal::Signal;

use crate::host::{Host, shown};

#[test]
fn run_serves_a_token_over_tls_and_ends_with_0_when_told() {
    let host = Host::new("s3cret");
    host.config(&(host.agent_table("") + &host.profile("bloom", "")));
    let agent = host.run();
    let output = host.cli(&["token", "bloom"]);
    assert!(output.status.success(), "{}\n{}", shown(&output), agent.log());
    assert!(host.issuer.control.is_live(String::from_utf8_lossy(&output.stdout).trim()));
    agent.signal(Signal::SIGHUP);
    agent.wait_for_log("reloaded");
    let (status, out, log) = agent.stop();
    assert_eq!((status.code(), out.as_str()), (Some(0), ""), "{log}");
    assert!(!host.path("agent.sock").exists(), "the socket is left behind");
    assert_eq!(host.issuer.control.request_count(), 1);
}

#[test]
fn check_tells_of_a_socket_group_that_the_host_does_not_know() {
    let host = Host::new("s3cret");
    for (group, status) in [("root", 0), ("no-such-group", 78)] {
        host.config(&(host.agent_table(&format!("socket_group = {group:?}")) + &host.profile("bloom", "")));
        let mut check = Command::new(host.program("bloom-agent"));
        let output = check.arg("check").arg("--config").arg(host.path("config.toml")).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{group}: {}", shown(&output));
        assert_eq!(
            told.contains("agent.socket_group: this host knows no such group; "),
            status != 0,
            "{told}"
        );
        assert!(!told.contains("no-such-group"), "{told}");
    }
}

#[test]
fn run_tells_of_what_only_the_host_knows_beside_a_fault_of_the_text() {
    let host = Host::new("s3cret");
    let agent = "socket_group = \"no-such-group\"\nca_file = \"/nowhere/ca.pem\"";
    host.config(&format!("[log]\nlevel = \"loud\"\n[agent]\n{agent}\n"));
    let mut run = Command::new(host.program("bloom-agent"));
    let output = run.arg("run").arg("--config").arg(host.path("config.toml")).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{}", shown(&output));
    for fault in ["config has 3 faults", "log.level: ", "agent.socket_group: ", "agent.ca_file: "] {
        assert!(told.contains(fault), "{fault} is not in: {told}");
    }
}
