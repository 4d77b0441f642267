//! `bloom-agent dev -- COMMAND` is to COMMAND as `ssh-agent COMMAND` is: nothing but the environment tells the difference.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

const AGENT: &str = env!("CARGO_BIN_EXE_bloom-agent");

/// Where `dev` makes its directory, and where nothing may be left.
struct Runtime(TempDir);

impl Runtime {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// The agent with every signal at its default, whoever runs the tests.
    fn dev(&self, command: &[&str]) -> Command {
        let mut dev = Command::new("env");
        dev.args(["--default-signal", AGENT, "dev"]).env("XDG_RUNTIME_DIR", self.0.path());
        if !command.is_empty() {
            dev.arg("--").args(command);
        }
        dev
    }

    /// `script` in a shell, with `$@` in it for nothing at all, or for the agent before a command.
    fn with_and_without_agent(&self, script: &str) -> [Output; 2] {
        [&[][..], &[AGENT, "dev", "--"]].map(|agent| {
            let mut shell = Command::new("sh");
            shell.args(["-c", script, "sh"]).args(agent).env("XDG_RUNTIME_DIR", self.0.path());
            shell.output().unwrap()
        })
    }

    fn left(&self) -> Vec<PathBuf> {
        entries(self.0.path())
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Killed with the test, should that fail.
struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }

    fn wait(mut self) -> ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Most have ended.
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

#[test]
fn the_command_inherits_the_callers_descriptors_and_none_of_the_agents() {
    let runtime = Runtime::new();
    let [without, with] = runtime.with_and_without_agent(
        r#"exec 5<<X
passed
X
exec "$@" sh -c 'cat <&5; exec ls /proc/self/fd'"#,
    );
    assert!(out(&without).starts_with("passed\n"), "{}", err(&without));
    assert_eq!((out(&with), err(&with)), (out(&without), err(&without)));
}

#[test]
fn the_command_ignores_and_blocks_the_signals_that_the_caller_did() {
    let runtime = Runtime::new();
    for (ignored, least) in [("HUP", 0x1), ("HUP INT QUIT TERM", 0x4007)] {
        let outputs = runtime.with_and_without_agent(&format!(
            r#"trap "" {ignored}; exec "$@" grep -E "Sig(Ign|Blk)" /proc/self/status"#
        ));
        // From 32 on they are the C library's own.
        let [without, with] = outputs.map(|output| {
            let masks = out(&output);
            let masks: Vec<_> = masks
                .lines()
                .map(|line| {
                    u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap() & 0x7fff_ffff
                })
                .collect();
            (masks, err(&output))
        });
        assert_eq!(with, without, "{ignored}");
        assert_eq!(without.0[1] & least, least, "nothing was ignored");
    }
}

#[test]
fn the_command_has_the_callers_standard_streams_and_process_group_and_the_agent_says_nothing() {
    let runtime = Runtime::new();
    let script =
        r#"cat; echo to stderr >&2; cut -d" " -f5 "/proc/$$/stat"; cut -d" " -f5 "/proc/$PPID/stat""#;
    let mut dev = runtime.dev(&["sh", "-c", script]);
    let mut child = dev.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"to stdin\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let text = out(&output);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!((lines.len(), lines[0], lines[1]), (3, "to stdin", lines[2]));
    assert_eq!(err(&output), "to stderr\n");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(runtime.left(), [] as [PathBuf; 0]);
}

#[test]
fn the_exit_status_is_the_commands_and_the_directory_goes() {
    let runtime = Runtime::new();
    let cases: [(&[&str], i32, &str); 5] = [
        (&["sh", "-c", "exit 7"], 7, ""),
        (&["sh", "-c", "kill -KILL $$"], 137, ""),
        (&["sh", "-c", "kill -QUIT $$"], 131, ""),
        (
            &["/nowhere"],
            127,
            "bloom-agent: cannot run /nowhere\nNo such file or directory (os error 2)\ncorrect the command: a path, or a name that PATH has\n",
        ),
        (
            &["/dev/null"],
            126,
            "bloom-agent: cannot run /dev/null\nPermission denied (os error 13)\ncorrect the command: a path, or a name that PATH has\n",
        ),
    ];
    for (command, code, text) in cases {
        let output = runtime.dev(command).output().unwrap();
        assert_eq!((output.status.code(), err(&output).as_str()), (Some(code), text), "{command:?}");
        assert_eq!(runtime.left(), [] as [PathBuf; 0], "{command:?}");
    }
}

#[test]
fn a_child_that_the_command_leaves_behind_is_not_waited_for() {
    let runtime = Runtime::new();
    let output = runtime.dev(&["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"]).output().unwrap();
    // It lives: the signal reaches it.
    kill(Pid::from_raw(out(&output).trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(0), ""));
    assert_eq!(runtime.left(), [] as [PathBuf; 0]);
}

/// From the moment on in which there is something to leave behind, to the one in which it serves.
#[test]
fn whatever_signal_ends_it_and_however_early_nothing_is_left_behind() {
    let ways: [(&[&str], Signal, i32); 5] = [
        (&[], Signal::SIGINT, 0),
        (&[], Signal::SIGTERM, 0),
        (&[], Signal::SIGHUP, 0),
        (&[], Signal::SIGQUIT, 0),
        (&["sleep", "600"], Signal::SIGTERM, 143),
    ];
    for (command, signal, code) in ways {
        for something in [|_: &Path| true, |directory: &Path| directory.join("agent.sock").exists()] {
            let runtime = Runtime::new();
            let child = runtime.dev(command).stdout(Stdio::null()).spawn().unwrap();
            let mut running = Running(child);
            while !runtime.left().iter().any(|directory| something(directory)) {
                assert_eq!(running.0.try_wait().unwrap(), None);
                // Not a moment later than need be.
                thread::yield_now();
            }
            running.signal(signal);
            assert_eq!(running.wait().code(), Some(code), "{signal} {command:?}");
            assert_eq!(runtime.left(), [] as [PathBuf; 0], "{signal} {command:?}");
        }
    }
}
