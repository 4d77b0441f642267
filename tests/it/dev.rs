//! `bloom-agent dev` as a developer types it.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::host::shown;

fn dev(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bloom-agent"));
    command.arg("dev").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// `dev -- sh -c SCRIPT`, with short lives, of which nothing is said.
fn around(script: &str) -> Output {
    dev(&["--lifetime", "2s", "--", "sh", "-c", script]).output().unwrap()
}

/// A `dev` without a command, its output as it comes, and its socket.
fn introduced() -> (Child, BufReader<ChildStdout>, String) {
    let mut child = dev(&["--lifetime", "2s"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    loop {
        let mut line = String::new();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "it ended without naming a socket");
        if let Some(socket) = line.trim().strip_prefix("export BLOOM_AGENT_SOCK=") {
            return (child, lines, socket.to_owned());
        }
    }
}

#[test]
fn what_is_printed_is_the_commands_alone_and_so_is_the_exit_status() {
    for (script, status, out, err) in [
        ("echo out; echo err >&2; exit 7", 7, "out\n", "err\n"),
        ("kill -KILL $$", 137, "", ""),
        ("umask 027; exec sh -c umask", 0, "0027\n", ""),
    ] {
        let output = around(script);
        assert_eq!(output.status.code(), Some(status), "{script}: {}", shown(&output));
        assert_eq!(String::from_utf8_lossy(&output.stdout), out, "{script}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), err, "{script}");
    }
}

#[test]
fn a_command_gets_tokens_and_its_agent_ends_with_it() {
    let script = format!(
        "test -n \"$({} token)\" && echo \"$BLOOM_AGENT_SOCK\"",
        env!("CARGO_BIN_EXE_bloom-agent-cli")
    );
    let output = around(&script);
    assert!(output.status.success(), "{}", shown(&output));
    let socket = String::from_utf8(output.stdout).unwrap();
    assert!(!Path::new(socket.trim()).parent().unwrap().exists(), "{socket} is left behind");
}

#[test]
fn a_command_that_cannot_be_run_is_told_as_env_tells_it() {
    for (program, status) in [("/nonexistent/program", 127), ("/dev/null", 126)] {
        let output = dev(&["--", program]).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{}", shown(&output));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains(program) && told.lines().count() == 3, "{told}");
    }
}

#[test]
fn ctrl_c_ends_it_with_0_and_leaves_nothing_behind() {
    let (mut child, _lines, socket) = introduced();
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!Path::new(&socket).parent().unwrap().exists(), "{socket} is left behind");
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let (child, lines, socket) = introduced();
    drop(lines);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    assert!(!Path::new(&socket).parent().unwrap().exists(), "{socket} is left behind");
}
