//! `bloom-agent dev` as a developer meets it: what it prints works, it serves its own user alone, and it leaves nothing.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use nix::sys::signal::Signal;

use crate::host::{Host, Printing, User, is_root, messages, printed, shown};

/// A directory with both programs side by side, as they are installed; nothing of the host itself is used.
fn programs() -> Host {
    let host = Host::new("unused");
    host.program("bloom-agent");
    host.program("bloom-agent-cli");
    host
}

/// The daemon with nothing in its environment that could help it: no HOME, no XDG_RUNTIME_DIR.
fn bare(mut command: Command) -> Command {
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command
}

/// The agent with every signal at its default, whoever runs the tests: a job in the background of a script ignores SIGINT.
fn dev(host: &Host, arguments: &[&str]) -> Command {
    let mut command = bare(Command::new("env"));
    command.arg("--default-signal").arg(host.program("bloom-agent")).arg("dev").args(arguments);
    command
}

/// What `dev` prints before the first rotation.
struct Introduction {
    export: String,
    token: String,
    watch: String,
    socket: PathBuf,
}

fn introduction(dev: &mut Printing) -> Introduction {
    let first = dev.line();
    assert!(first.contains("Ctrl-C"), "{first}");
    let lines: Vec<_> = (0..5).map(|_| dev.line()).collect();
    let [blank, export, token, watch, end] = &lines[..] else { panic!("{lines:?}") };
    assert!(blank.is_empty() && end.is_empty(), "{lines:?}");
    let socket = PathBuf::from(export.strip_prefix("export BLOOM_AGENT_SOCK=").unwrap());
    let directory = socket.parent().unwrap();
    assert_eq!(directory.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    Introduction { export: export.clone(), token: token.clone(), watch: watch.clone(), socket }
}

/// What it complains of, but for the lifetime that the test itself asked for.
fn complaints(messages: &str) -> Vec<&str> {
    let of_the_lifetime = ["deviation=short_lifetime", "tokens live for a very short time"];
    messages.lines().filter(|line| !of_the_lifetime.iter().any(|part| line.contains(part))).collect()
}

/// A command in a shell that knows nothing but what was printed.
fn shell(introduction: &Introduction, line: &str) -> Command {
    let mut shell = bare(Command::new("sh"));
    shell.arg("-c").arg(format!("{}\nexec {line}", introduction.export));
    shell
}

fn cli(host: &Host, socket: &Path, user: Option<&User>, arguments: &[&str]) -> Output {
    let program = host.program("bloom-agent-cli");
    let mut command = user.map_or_else(|| Command::new(&program), |user| user.command(&program));
    command.arg("--socket").arg(socket).args(arguments).output().unwrap()
}

#[test]
fn both_printed_commands_work_as_they_stand_and_rotations_are_seen() {
    let host = programs();
    for (dialect, signal) in [("hydra", Signal::SIGINT), ("auth0", Signal::SIGTERM)] {
        let mut dev = Printing::spawn(dev(&host, &["--lifetime", "2s", "--dialect", dialect]));
        let introduction = introduction(&mut dev);
        let first = dev.line();
        assert!(first.starts_with("bloom: token ") && first.contains(" until "), "{first}");
        let token = shell(&introduction, &introduction.token).output().unwrap();
        assert!(token.status.success(), "{}", shown(&token));
        assert_eq!(printed(&token).split_whitespace().count(), 1);

        let mut watch = Printing::spawn(shell(&introduction, &introduction.watch));
        let mut seen = vec![watch.line()];
        while seen.len() < 3 {
            let rotation = dev.line();
            assert!(rotation.starts_with("bloom: token "), "{rotation}");
            seen.push(watch.line());
        }
        seen.dedup();
        assert_eq!(seen.len(), 3, "no generation twice: {seen:?}");
        let again = shell(&introduction, &introduction.token).output().unwrap();
        assert!(again.status.success() && printed(&again) != printed(&token), "{}", shown(&again));

        dev.signal(signal);
        let (status, _, messages) = dev.wait();
        assert_eq!((status.code(), complaints(&messages)), (Some(0), vec![]), "{dialect}");
        assert!(!introduction.socket.parent().unwrap().exists(), "its directory is left behind");
    }
}

#[test]
fn its_own_user_is_an_admin() {
    let host = programs();
    let mut dev = Printing::spawn(dev(&host, &[]));
    let introduction = introduction(&mut dev);
    let ask = |arguments: &[&str]| {
        let output = cli(&host, &introduction.socket, None, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", shown(&output));
        printed(&output)
    };
    let generation = || {
        let token: serde_json::Value = serde_json::from_str(&ask(&["token", "--format", "json"])).unwrap();
        token["generation"].as_str().unwrap().to_owned()
    };
    let first = generation();
    ask(&["refresh", "bloom"]);
    let second = generation();
    assert_ne!(first, second);
    // The current one: fetched anew, as soon as the floor of a second allows.
    let reported = ask(&["report-rejected", "bloom", "--generation", &second]);
    assert_eq!(reported, format!("bloom: {} (new)", generation()));
    assert_ne!(second, generation());
    assert!(ask(&["status"]).contains("bloom"));
    assert!(ask(&["metrics"]).ends_with("# EOF"));
    ask(&["reload"]);
}

#[test]
fn another_user_does_not_even_reach_the_socket_and_root_does() {
    if !is_root("an agent and callers of other uids") {
        return;
    }
    let host = programs();
    // Ids that no file of the host knows: no home, no name.
    let owner = User::new(1234, 1234, &[]);
    for user in [User::new(0, 0, &[]), owner] {
        let mut command = bare(user.command(&host.program("bloom-agent")));
        command.arg("dev");
        let mut dev = Printing::spawn(command);
        let introduction = introduction(&mut dev);
        for served in [user.clone(), User::new(0, 0, &[])] {
            let output = cli(&host, &introduction.socket, Some(&served), &["token", "bloom"]);
            assert!(output.status.success(), "{served:?}: {}", shown(&output));
        }
        for stranger in
            [User::new(2001, 2001, &[]), User::new(2001, user.gid, &[]), User::new(65_534, 65_534, &[])]
        {
            let output = cli(&host, &introduction.socket, Some(&stranger), &["token", "bloom"]);
            assert_eq!(output.status.code(), Some(77), "{stranger:?}: {}", shown(&output));
            assert!(messages(&output).contains("may not search a directory above"), "{}", shown(&output));
        }
        let status = cli(&host, &introduction.socket, Some(&user), &["status"]);
        assert!(status.status.success(), "{}", shown(&status));
        dev.signal(Signal::SIGTERM);
        assert_eq!(dev.wait().0.code(), Some(0));
        assert!(!introduction.socket.parent().unwrap().exists());
    }
}

#[test]
fn a_command_has_the_agent_and_its_output_is_alone() {
    let host = programs();
    let script = "echo one; \"$CLI\" token bloom >/dev/null && echo two; echo \"$BLOOM_AGENT_SOCK\"; echo three >&2; exit 7";
    let output =
        dev(&host, &["--", "sh", "-c", script]).env("CLI", host.program("bloom-agent-cli")).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", shown(&output));
    let lines: Vec<_> = printed(&output).lines().map(ToOwned::to_owned).collect();
    assert_eq!((&*lines[0], &*lines[1], lines.len()), ("one", "two", 3), "{}", shown(&output));
    assert_eq!(messages(&output), "three\n");
    assert!(lines[2].ends_with("/agent.sock") && !Path::new(&lines[2]).parent().unwrap().exists());
}

#[test]
fn it_ends_as_its_command_ends() {
    let host = programs();
    for (command, code) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 255"], 255),
        (&["sh", "-c", "kill -TERM $$"], 128 + 15),
        (&["sh", "-c", "kill -KILL $$"], 128 + 9),
        (&["no-such-command"], 127),
        (&["/etc/passwd"], 126),
    ] {
        let output = dev(&host, &[&["--"], command].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{command:?}: {}", shown(&output));
        assert!(output.stdout.is_empty(), "{}", shown(&output));
        assert_eq!(messages(&output).is_empty(), !matches!(code, 126 | 127), "{}", shown(&output));
    }
    // A signal that is sent to it alone is its command's.
    let mut running = Printing::spawn(dev(
        &host,
        &["--", "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"],
    ));
    assert_eq!(running.line(), "ready");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().0.code(), Some(9));
}

#[test]
fn a_command_has_its_callers_umask_and_limits() {
    let host = programs();
    let look = "umask; ulimit -c; ulimit -n; ulimit -l";
    let mut shell = bare(Command::new("sh"));
    let script = format!("umask 0027; {look}; exec \"$0\" dev -- sh -c '{look}'");
    let output = shell.arg("-c").arg(script).arg(host.program("bloom-agent")).output().unwrap();
    let lines: Vec<_> = printed(&output).lines().map(ToOwned::to_owned).collect();
    assert_eq!((output.status.code(), lines.len()), (Some(0), 8), "{}", shown(&output));
    assert_eq!(lines[..4], lines[4..]);
    assert_eq!(lines[0].trim_start_matches('0'), "27");
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let host = programs();
    let mut command = dev(&host, &["--lifetime", "2s"]);
    let mut dev = command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn().unwrap();
    let mut stdout = BufReader::new(dev.stdout.take().unwrap());
    let mut text = String::new();
    while !text.contains("BLOOM_AGENT_SOCK=") {
        assert_ne!(stdout.read_line(&mut text).unwrap(), 0, "{text}");
    }
    // The next rotation finds nobody who reads.
    drop(stdout);
    let output = dev.wait_with_output().unwrap();
    assert_eq!((output.status.code(), messages(&output).as_str()), (Some(0), ""));
    let socket = text.split("BLOOM_AGENT_SOCK=").nth(1).unwrap().trim();
    assert!(!Path::new(socket).parent().unwrap().exists());
}

#[test]
fn what_it_cannot_do_is_usage() {
    let host = programs();
    for arguments in [&["--lifetime", "1s"][..], &["--lifetime", "soon"], &["--dialect", "okta"], &["true"]] {
        let output = dev(&host, arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {}", shown(&output));
    }
}
