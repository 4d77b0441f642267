//! `bloom-agent-cli` as its users meet it: the shipped program as a process, before an agent that says what the case
//! wrote down. Most behaviours are rows of one table: arguments in; exit code, standard output and messages out.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests, and what they stand on")]

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::{net::UnixListener, process::CommandExt as _},
    path::Path,
    process::{Command, Output, Stdio},
};

use bloom_agent::pb;
use tonic::Code;

use crate::fake_agent::{Answers, FakeAgent, denied, failure, rotation, status_of, token};

fn cli(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bloom-agent-cli"));
    command.env_clear().env("PATH", "/usr/bin:/bin").env("BLOOM_AGENT_SOCK", socket).stdin(Stdio::null());
    command
}

fn run(socket: &Path, line: &str) -> Output {
    cli(socket).args(line.split_whitespace()).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

struct Row {
    sentence: &'static str,
    line: &'static str,
    answers: fn(&mut Answers),
    code: i32,
    stdout: &'static str,
    /// Parts of the messages; none means that there is no message.
    stderr: &'static [&'static str],
}

const TOKEN_JSON: &str = "{\"name\":\"bloom\",\"accessToken\":\"t-7\",\"tokenType\":\"Bearer\",\
    \"scopes\":[\"data-access:all\"],\"audience\":\"dev-api\",\"obtainedAt\":\"2026-11-22T13:05:00.005Z\",\
    \"expiresAt\":\"2026-11-22T14:05:00Z\",\"generation\":\"7\"}\n";

const ROWS: &[Row] = &[
    Row {
        sentence: "a token is one word and a newline",
        line: "token bloom",
        answers: |_| {},
        code: 0,
        stdout: "t-7\n",
        stderr: &[],
    },
    Row {
        sentence: "a header is what curl -H @- reads",
        line: "token --format header",
        answers: |_| {},
        code: 0,
        stdout: "Authorization: Bearer t-7\n",
        stderr: &[],
    },
    Row {
        sentence: "env is one assignment",
        line: "token --format env",
        answers: |_| {},
        code: 0,
        stdout: "BLOOM_TOKEN=t-7\n",
        stderr: &[],
    },
    Row {
        sentence: "json is the proto's mapping",
        line: "token --format json",
        answers: |_| {},
        code: 0,
        stdout: TOKEN_JSON,
        stderr: &[],
    },
    Row {
        sentence: "a token with a newline in it is refused",
        line: "token",
        answers: |answers| answers.token = vec![Ok(token("t-7\nSet-Cookie: x", 7))],
        code: 70,
        stdout: "",
        stderr: &["not visible ASCII", "versions"],
    },
    Row {
        sentence: "a token that would steer a terminal is refused in every format",
        line: "token --format json",
        answers: |answers| answers.token = vec![Ok(token("t\u{1b}[2J", 7))],
        code: 70,
        stdout: "",
        stderr: &["not visible ASCII"],
    },
    Row {
        sentence: "a token that is valid for less than asked for is printed, with a note",
        line: "token --min-validity 3650d",
        answers: |_| {},
        code: 0,
        stdout: "t-7\n",
        stderr: &["note: this token is valid for"],
    },
    Row {
        sentence: "who is not allowed reads who he is and what to ask for",
        line: "token bloom",
        answers: |answers| {
            answers.token = vec![Err(denied())];
            answers.list = Ok(vec![status_of("partner", pb::TokenState::Valid)]);
        },
        code: 77,
        stdout: "",
        stderr: &["you are uid ", "groups ", "you may use: partner", "allow = [\"", "[tokens.bloom]"],
    },
    Row {
        sentence: "without a name the agent's list is shown",
        line: "token",
        answers: |answers| {
            answers.token = vec![Err(failure(Code::InvalidArgument, "NAME_REQUIRED", "name one", "a,b"))];
        },
        code: 64,
        stdout: "",
        stderr: &["you may use: a, b", "bloom-agent-cli token a"],
    },
    Row {
        sentence: "an unknown profile is answered with those that exist",
        line: "token blom",
        answers: |answers| {
            answers.token = vec![Err(failure(Code::NotFound, "UNKNOWN_PROFILE", "no such profile", ""))];
        },
        code: 64,
        stdout: "",
        stderr: &["no profile \"blom\"", "it has: bloom"],
    },
    Row {
        sentence: "no token right now is worth a later try",
        line: "token bloom",
        answers: |answers| {
            answers.token = vec![Err(failure(Code::Unavailable, "PROVIDER_UNREACHABLE", "x", ""))];
        },
        code: 75,
        stdout: "",
        stderr: &["no token for \"bloom\" right now", "does not reach", "in 12 s", "--wait"],
    },
    Row {
        sentence: "a deadline is explained by the profile's state",
        line: "token bloom",
        answers: |answers| {
            answers.token = vec![Err(failure(Code::DeadlineExceeded, "", "x", ""))];
            let mut status = status_of("bloom", pb::TokenState::Unavailable);
            status.set_last_failure(pb::FailureKind::ProviderRefused);
            answers.list = Ok(vec![status]);
        },
        code: 75,
        stdout: "",
        stderr: &["the provider refuses the client", "tell the operator"],
    },
    Row {
        sentence: "a limit says to slow down",
        line: "token bloom",
        answers: |answers| {
            answers.token = vec![Err(failure(Code::ResourceExhausted, "LIMIT", "too many", ""))];
        },
        code: 75,
        stdout: "",
        stderr: &["too many", "slow down"],
    },
    Row {
        sentence: "a failure of the agent is an internal one",
        line: "token bloom",
        answers: |answers| answers.token = vec![Err(failure(Code::Internal, "", "a defect", ""))],
        code: 70,
        stdout: "",
        stderr: &["a defect", "journalctl"],
    },
    Row {
        sentence: "the agent's words cannot steer a terminal",
        line: "token bloom",
        answers: |answers| {
            answers.token = vec![Err(failure(Code::Internal, "", "\u{1b}[2J\nfake: line", ""))];
        },
        code: 70,
        stdout: "",
        stderr: &["\\u{1b}[2J\\nfake: line"],
    },
    Row {
        sentence: "--wait tries again until there is a token",
        line: "token bloom --wait",
        answers: |answers| {
            let pending = || Err(failure(Code::Unavailable, "TOKEN_PENDING", "x", ""));
            answers.token = vec![pending(), pending(), Ok(token("t-8", 8))];
        },
        code: 0,
        stdout: "t-8\n",
        stderr: &[],
    },
    Row {
        sentence: "--wait ends with the last answer",
        line: "token bloom --wait 150ms",
        answers: |answers| answers.token = vec![Err(failure(Code::Unavailable, "TOKEN_PENDING", "x", ""))],
        code: 75,
        stdout: "",
        stderr: &["being fetched"],
    },
    Row {
        sentence: "--wait does not wait for a permission",
        line: "token --wait bloom",
        answers: |answers| answers.token = vec![Err(denied()), Ok(token("t-8", 8))],
        code: 77,
        stdout: "",
        stderr: &["allow = "],
    },
    Row {
        sentence: "a list is a table",
        line: "list",
        answers: |answers| answers.list = Ok(vec![status_of("bloom", pb::TokenState::Pending)]),
        code: 0,
        stdout: "NAME   STATE    EXPIRES  NEXT REFRESH  LAST FAILURE  SCOPES\nbloom  pending  -        now           -             -\n",
        stderr: &[],
    },
    Row {
        sentence: "an empty list says whom to ask",
        line: "list",
        answers: |answers| answers.list = Ok(vec![]),
        code: 0,
        stdout: "",
        stderr: &["no profile is yours", "uid "],
    },
    Row {
        sentence: "a list as JSON is the response's mapping",
        line: "list --json",
        answers: |answers| answers.list = Ok(vec![]),
        code: 0,
        stdout: "{\"tokens\":[]}\n",
        stderr: &[],
    },
    Row {
        sentence: "a status as JSON is the response's mapping",
        line: "status --json",
        answers: |_| {},
        code: 0,
        stdout: "{\"version\":\"0.1.0\",\"profiles\":[],\"connections\":0,\"watches\":0,\"degraded\":[],\"pid\":812,\"unitLookup\":\"\",\"confinement\":\"\"}\n",
        stderr: &[],
    },
    Row {
        sentence: "who is no admin reads how to become one",
        line: "status",
        answers: |answers| answers.status = Err(denied()),
        code: 77,
        stdout: "",
        stderr: &["admins", "sudo"],
    },
    Row {
        sentence: "a refresh tells the profile's state",
        line: "refresh bloom",
        answers: |_| {},
        code: 0,
        stdout: "bloom: valid, expires -\n",
        stderr: &[],
    },
    Row {
        sentence: "a refresh that brought nothing is worth a later try",
        line: "refresh bloom",
        answers: |answers| {
            let mut status = status_of("bloom", pb::TokenState::Degraded);
            status.set_last_failure(pb::FailureKind::ProviderError);
            answers.refresh = Ok(status);
        },
        code: 75,
        stdout: "bloom: degraded, expires -\n",
        stderr: &["no new token", "provider error"],
    },
    Row {
        sentence: "a reload tells what changed, and warns apart from it",
        line: "reload",
        answers: |answers| {
            answers.reload = Ok(pb::ReloadResponse {
                added: vec!["a".to_owned(), "b".to_owned()],
                removed: vec!["c".to_owned()],
                warnings: vec!["no such user: x".to_owned()],
                ..Default::default()
            });
        },
        code: 0,
        stdout: "reloaded\nadded: a, b\nremoved: c\n",
        stderr: &["warning: no such user: x"],
    },
    Row {
        sentence: "faults of the configuration come a line each",
        line: "reload",
        answers: |answers| answers.reload = Err(failure(Code::InvalidArgument, "", "f:1: one\nf:2: two", "")),
        code: 78,
        stdout: "",
        stderr: &["goes on with the old one", "\n  f:1: one\n  f:2: two\n", "bloom-agent check"],
    },
    Row {
        sentence: "a report tells the new generation",
        line: "report-rejected bloom --generation 7",
        answers: |_| {},
        code: 0,
        stdout: "bloom: 8 (new)\n",
        stderr: &[],
    },
    Row {
        sentence: "a report that brought nothing is worth a later try",
        line: "report-rejected bloom --json",
        answers: |answers| answers.report = Ok(pb::ReportRejectedResponse { generation: 7, is_new: false }),
        code: 75,
        stdout: "{\"generation\":\"7\",\"isNew\":false}\n",
        stderr: &["no newer token"],
    },
    Row {
        sentence: "metrics are the agent's text",
        line: "metrics",
        answers: |answers| answers.metrics = Ok("# HELP a b\na 1\n# EOF\n".to_owned()),
        code: 0,
        stdout: "# HELP a b\na 1\n# EOF\n",
        stderr: &[],
    },
    Row {
        sentence: "exec gives the token in the environment",
        line: "exec bloom -- printenv BLOOM_TOKEN",
        answers: |_| {},
        code: 0,
        stdout: "t-7\n",
        stderr: &[],
    },
    Row {
        sentence: "exec ends as its command does",
        line: "exec -- false",
        answers: |_| {},
        code: 1,
        stdout: "",
        stderr: &[],
    },
    Row {
        sentence: "exec waits for the first token",
        line: "exec -- printenv BLOOM_TOKEN",
        answers: |answers| {
            let pending = Err(failure(Code::Unavailable, "TOKEN_PENDING", "x", ""));
            answers.token = vec![pending, Ok(token("t-8", 8))];
        },
        code: 0,
        stdout: "t-8\n",
        stderr: &[],
    },
    Row {
        sentence: "exec of a command that is not there is env's 127",
        line: "exec -- no-such-command",
        answers: |_| {},
        code: 127,
        stdout: "",
        stderr: &["cannot run no-such-command"],
    },
    Row {
        sentence: "exec of what is no program is env's 126",
        line: "exec -- /etc/passwd",
        answers: |_| {},
        code: 126,
        stdout: "",
        stderr: &["cannot run /etc/passwd"],
    },
    Row {
        sentence: "watch --exec of a command that is not there is env's 127",
        line: "watch --exec no-such-command",
        answers: |_| {},
        code: 127,
        stdout: "",
        stderr: &["cannot run no-such-command"],
    },
    Row {
        sentence: "a word that is no verb is a usage error",
        line: "tokens",
        answers: |_| {},
        code: 64,
        stdout: "",
        stderr: &["tokens"],
    },
    Row {
        sentence: "a name that no profile can have is a usage error",
        line: "token Bloom",
        answers: |_| {},
        code: 64,
        stdout: "",
        stderr: &["not a profile's name"],
    },
    Row {
        sentence: "no verb shows the help, as an error",
        line: "",
        answers: |_| {},
        code: 64,
        stdout: "",
        stderr: &["Usage: bloom-agent-cli"],
    },
];

#[test]
fn every_behaviour_is_as_its_row_says() {
    for row in ROWS {
        let mut answers = Answers::default();
        (row.answers)(&mut answers);
        let agent = FakeAgent::start(answers);
        let watch = agent.expect_watch();
        watch.send(rotation("t-7", 7)).unwrap();
        let output = run(&agent.socket(), row.line);
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        let Row { sentence, line, .. } = row;
        assert_eq!(output.status.code(), Some(row.code), "{sentence}: {line}: {stdout}{stderr}");
        assert_eq!(stdout, row.stdout, "{sentence}: {line}: {stderr}");
        assert_eq!(stderr.is_empty(), row.stderr.is_empty(), "{sentence}: {line}: {stderr}");
        for part in row.stderr {
            assert!(stderr.contains(part), "{sentence}: {line}: {part:?} is not in {stderr}");
        }
        assert!(!stderr.contains("t-7"), "{sentence}: a token in a message: {stderr}");
    }
}

#[test]
fn help_and_version_are_answers() {
    let nowhere = Path::new("/nonexistent/agent.sock");
    for line in [
        "--help",
        "--version",
        "help",
        "token --help",
        "watch --help",
        "list --help",
        "status --help",
        "refresh --help",
        "reload --help",
        "report-rejected --help",
        "exec --help",
        "metrics --help",
    ] {
        let output = run(nowhere, line);
        assert_eq!(output.status.code(), Some(0), "{line}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{line}");
    }
    assert!(text(&run(nowhere, "exec --help").stdout).contains("Who can read an environment"));
    assert!(text(&run(nowhere, "report-rejected --help").stdout).contains("already new"));
}

#[test]
fn a_call_carries_its_deadline_and_its_wishes() {
    for (line, call) in [
        ("token bloom", "GetToken \"bloom\" min_validity=0 timeout=5000000u"),
        ("token --min-validity 5m", "GetToken \"\" min_validity=300 timeout=5000000u"),
        ("report-rejected bloom --generation 9", "ReportRejected \"bloom\" 9 timeout=30000000u"),
        ("report-rejected bloom", "ReportRejected \"bloom\" 7 timeout=30000000u"),
        ("refresh bloom", "RefreshToken \"bloom\" timeout=30000000u"),
        ("watch bloom --json", "WatchToken \"bloom\" timeout=none"),
    ] {
        let agent = FakeAgent::start(Answers::default());
        run(&agent.socket(), line);
        let seen = agent.seen();
        assert!(seen.iter().any(|one| one == call), "{line}: {seen:?}");
    }
}

#[test]
fn no_agent_is_69_and_says_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let nothing = run(&socket, "token bloom");
    drop(UnixListener::bind(&socket).unwrap());
    let dead = run(&socket, "token bloom");
    let executed = run(&socket, "exec -- true");
    let waited = run(&socket, "token --wait 120ms");
    let listed = run(&socket, "list");
    for (output, why) in [
        (nothing, "there is no socket at"),
        (dead, "nobody listens at"),
        (executed, "nobody listens at"),
        (waited, "nobody listens at"),
        (listed, "nobody listens at"),
    ] {
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(69), "{stderr}");
        assert!(output.stdout.is_empty());
        assert_eq!(stderr.lines().count(), 3, "{stderr}");
        assert!(stderr.contains(why) && stderr.contains("systemctl start"), "{stderr}");
    }
}

#[test]
fn the_explicit_socket_beats_the_variable_and_nothing_falls_through() {
    let agent = FakeAgent::start(Answers::default());
    let socket = agent.socket();
    let explicit =
        cli(Path::new("/nonexistent/a")).arg("--socket").arg(&socket).arg("token").output().unwrap();
    assert_eq!(explicit.status.code(), Some(0));
    let after = cli(Path::new("/nonexistent/a")).args(["token", "--socket"]).arg(&socket).output().unwrap();
    assert_eq!(after.status.code(), Some(0));
    let wrong = cli(&socket).args(["--socket", "/nonexistent/b", "token"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(69));
    assert!(text(&wrong.stderr).contains("/nonexistent/b"));
}

#[test]
fn who_hangs_up_or_speaks_something_else_is_no_agent() {
    let dir = tempfile::tempdir().unwrap();
    for (name, greeting) in [("mute", &b""[..]), ("other", b"SSH-2.0-OpenSSH\r\n")] {
        let socket = dir.path().join(name);
        let listener = UnixListener::bind(&socket).unwrap();
        let stranger = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            std::io::Write::write_all(&mut peer, greeting).unwrap();
        });
        let output = run(&socket, "token bloom");
        stranger.join().unwrap();
        assert_eq!(output.status.code(), Some(69), "{name}: {}", text(&output.stderr));
        assert_eq!(text(&output.stderr).lines().count(), 3, "{name}: {}", text(&output.stderr));
    }
}

#[test]
fn a_socket_that_the_caller_may_not_write_to_is_77_with_the_group_to_join() {
    let agent = FakeAgent::start(Answers::default());
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    #[expect(clippy::disallowed_methods, reason = "a path in a directory of ours")]
    std::fs::set_permissions(agent.socket(), mode).unwrap();
    let mut command = cli(&agent.socket());
    command.arg("token");
    if nix::unistd::geteuid().is_root() {
        command.uid(4_242).gid(4_242);
    } else {
        // Past the test runner, which keeps what a passing test prints to itself.
        let _loud = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("SKIPPED: only root can try another uid's way to a socket\n"),
        );
        return;
    }
    let output = command.output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(77), "{stderr}");
    for part in ["uid 4242, groups 4242", "mode 0600, owner 0 (root), group 0 (root)", "into the group root"]
    {
        assert!(stderr.contains(part), "{part:?} is not in {stderr}");
    }
}

#[test]
fn a_closed_output_ends_quietly_with_0() {
    let agent = FakeAgent::start(Answers::default());
    for line in ["token", "list", "status", "metrics", "--help"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = cli(&agent.socket()).args(line.split(' ')).stdout(writer).output().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""), "{line}");
    }
}

#[test]
fn an_output_that_takes_nothing_is_71() {
    let agent = FakeAgent::start(Answers::default());
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = cli(&agent.socket()).arg("token").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(71));
    assert!(text(&output.stderr).contains("cannot be written"));
}

#[test]
fn a_watch_ends_as_soon_as_its_reader_is_gone() {
    let agent = FakeAgent::start(Answers::default());
    let watch = agent.expect_watch();
    watch.send(rotation("t-7", 7)).unwrap();
    let mut child = cli(&agent.socket()).args(["watch", "bloom"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "bloom 7 2026-11-22T14:05:00Z\n");
    // The reader is dropped, and no rotation comes.
    assert_eq!(child.wait().unwrap().code(), Some(0));
    drop(watch);
}

#[test]
fn a_watch_shows_each_generation_once_over_all_its_streams() {
    for (line, expected) in [
        ("watch", "bloom 7 2026-11-22T14:05:00Z\nbloom 8 2026-11-22T14:05:00Z\n"),
        (
            "watch --json",
            "{\"name\":\"bloom\",\"generation\":\"7\",\"expiresAt\":\"2026-11-22T14:05:00Z\"}\n\
             {\"name\":\"bloom\",\"generation\":\"8\",\"expiresAt\":\"2026-11-22T14:05:00Z\"}\n",
        ),
        ("watch bloom --format header", "Authorization: Bearer t-7\nAuthorization: Bearer t-8\n"),
    ] {
        let agent = FakeAgent::start(Answers::default());
        let first = agent.expect_watch();
        first.send(rotation("t-7", 7)).unwrap();
        let mut shutting_down = failure(Code::Unavailable, "SHUTTING_DOWN", "restarting", "");
        shutting_down = tonic::Status::new(shutting_down.code(), shutting_down.message());
        first.send(Err(shutting_down)).unwrap();
        let second = agent.expect_watch();
        second.send(rotation("t-7", 7)).unwrap();
        second.send(rotation("t-8", 8)).unwrap();
        second.send(Err(denied())).unwrap();
        let output = run(&agent.socket(), line);
        let stderr = text(&output.stderr);
        assert_eq!(text(&output.stdout), expected, "{line}: {stderr}");
        assert_eq!(output.status.code(), Some(77), "{line}: {stderr}");
        assert!(stderr.contains("restarting") && stderr.contains("trying again"), "{line}: {stderr}");
    }
}

#[test]
fn a_watch_outlives_the_agent() {
    let agent = FakeAgent::start(Answers::default());
    let watch = agent.expect_watch();
    watch.send(rotation("t-7", 7)).unwrap();
    let mut child = cli(&agent.socket())
        .args(["watch", "--format", "raw"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "t-7");

    let dir = agent.end();
    let mut told = BufReader::new(child.stderr.take().unwrap());
    let mut message = String::new();
    told.read_line(&mut message).unwrap();
    assert!(message.contains("trying again"), "{message}");

    let successor = FakeAgent::start_in(dir, Answers::default());
    let watch = successor.expect_watch();
    watch.send(rotation("t-8", 8)).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "t-8");
    watch.send(Err(denied())).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(77));
}

#[test]
fn watch_exec_runs_one_at_a_time_with_the_token_on_its_input() {
    let agent = FakeAgent::start(Answers::default());
    let watch = agent.expect_watch();
    // Held open at both ends: what is written waits for its reader, whoever comes first. A child of another test that has a
    // copy of one end until its exec(2) would be a reader else, and take what is written with it.
    let fifo = |name: &str| {
        let path = agent.dir().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        (path, file)
    };
    let ((started_path, started), (go_path, mut go_file)) = (fifo("started"), fifo("go"));
    // Each run says that it has started, and ends when it is told to: two at a time would mix their lines.
    let script = "read token; echo \"+$BLOOM_TOKEN_GENERATION $token $BLOOM_TOKEN_NAME $BLOOM_TOKEN_EXPIRES_AT $1\"; \
                  echo > \"$2\"; read go < \"$3\"; echo \"-$BLOOM_TOKEN_GENERATION\"; exit 3";
    let mut child = cli(&agent.socket())
        .args(["watch", "bloom", "--exec", "sh", "-c", script, "sh", "--json"])
        .args([&started_path, &go_path])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut started = BufReader::new(started).lines();
    let mut read = || started.next().unwrap().unwrap();
    let mut go = || std::io::Write::write_all(&mut go_file, b"go\n").unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);

    watch.send(rotation("t-7", 7)).unwrap();
    assert_eq!(lines.next().unwrap(), "+7 t-7 bloom 2026-11-22T14:05:00Z --json");
    read();
    watch.send(rotation("t-8", 8)).unwrap();
    go();
    assert_eq!(lines.next().unwrap(), "-7");
    assert_eq!(lines.next().unwrap(), "+8 t-8 bloom 2026-11-22T14:05:00Z --json");
    read();
    go();
    assert_eq!(lines.next().unwrap(), "-8");
    watch.send(Err(denied())).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(77));
    let mut told = String::new();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(told.contains("exit status: 3"), "{told}");
    assert!(lines.next().is_none());
}
