//! `bloom-agent run` as an operator starts it: signals, reloads, its socket's place, and what it does without a log.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::{
        fd::AsFd as _,
        unix::{fs::FileTypeExt as _, net::UnixStream, process::CommandExt as _},
    },
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;

use crate::host::{Agent, Host, Printing, User, is_root, messages, printed, shown};

/// A word that stands in configs and must come out nowhere.
const CANARY: &str = "C4N4RY";

fn one_profile() -> Host {
    let host = Host::new("s3cret");
    host.config(&(host.agent_table("") + &host.profile("bloom", "")));
    host
}

#[test]
fn run_serves_a_token_over_tls_and_ends_with_0_when_told() {
    let host = one_profile();
    let agent = host.run();
    let output = host.cli(&["token", "bloom"]);
    assert!(output.status.success(), "{}\n{}", shown(&output), agent.log());
    assert!(host.issuer.control.is_live(&printed(&output)));
    agent.signal(Signal::SIGHUP);
    agent.wait_for_log("reloaded");
    let (status, out, log) = agent.stop();
    assert_eq!((status.code(), out.as_str()), (Some(0), ""), "{log}");
    assert!(!host.path("agent.sock").exists(), "the socket is left behind");
    assert_eq!(host.issuer.control.request_count(), 1);
}

#[test]
fn either_signal_drains_and_a_watcher_lives_through_the_restart() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let host = one_profile();
        let mut agent = host.run();
        let mut watch = Printing::spawn(host.cli_command(&["watch", "bloom"]));
        let first = watch.line();
        agent.signal(signal);
        let (status, _, log) = agent.wait();
        assert_eq!(status.code(), Some(0), "{signal}: {log}");
        assert!(!log.contains("connections are cut"), "{signal}: {log}");
        assert!(!host.path("agent.sock").exists(), "{signal}");

        let _again = host.run();
        let second = watch.line();
        assert!(first.starts_with("bloom ") && second.starts_with("bloom ") && first != second, "{second}");
        watch.signal(Signal::SIGTERM);
        let (_, more, messages) = watch.wait();
        assert!(more.is_empty(), "{more:?}");
        assert_eq!(messages.matches("trying again").count(), 1, "{messages}");
    }
}

/// An HTTP/2 client that begins a call and never ends it.
fn stuck_call(host: &Host) -> UnixStream {
    let mut stream = UnixStream::connect(host.path("agent.sock")).unwrap();
    let frame = |kind: u8, flags: u8, id: u8, payload: &[u8]| {
        let mut frame = vec![0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, id];
        frame.extend(payload);
        frame
    };
    // Literals without indexing: `:method POST`, `:scheme http`, `:path`, and gRPC's two headers.
    let headers = b"\x83\x86\x04\x25/bloom.agent.v1.TokenService/GetToken\
        \x0f\x10\x10application/grpc\x00\x02te\x08trailers";
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&frame(4, 0, 0, b"")).unwrap();
    stream.write_all(&frame(1, 4, 1, headers)).unwrap();
    stream.write_all(&frame(6, 0, 0, b"arrived?")).unwrap();
    // Frames are read in their order: the answer to the PING says that the call is open.
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let mut payload = vec![0; usize::from(head[2]) | usize::from(head[1]) << 8];
        stream.read_exact(&mut payload).unwrap();
        if (head[3], head[4]) == (6, 1) {
            assert_eq!(payload, b"arrived?");
            return stream;
        }
    }
}

#[test]
fn a_second_signal_ends_it_at_once_whoever_does_not_let_go() {
    let host = one_profile();
    let mut agent = host.run();
    let stuck = stuck_call(&host);
    agent.signal(Signal::SIGTERM);
    agent.wait_for_log("stopping");
    agent.signal(Signal::SIGINT);
    let (status, _, log) = agent.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("told to stop a second time"), "{log}");
    // It did not come to the end of its patience.
    assert!(!log.contains("connections are cut"), "{log}");
    assert!(!host.path("agent.sock").exists());
    drop(stuck);
}

#[test]
fn a_reload_is_all_or_nothing_and_says_what_is_wrong_without_a_value() {
    let host = one_profile();
    let agent = host.run();
    let token = printed(&host.cli(&["token", "bloom"]));
    let good = host.agent_table("") + &host.profile("bloom", "") + &host.profile("second", "");
    let bad = format!("{good}scopes = \"{CANARY}\"\nclient_secert = \"{CANARY}\"\n");
    host.config(&bad);
    let line_of = |key: &str| 1 + bad.lines().position(|line| line.starts_with(key)).unwrap();
    let config = host.path("config.toml");
    let faults = [
        format!("{}:{}: tokens.second.scopes: ", config.display(), line_of("scopes")),
        format!("{}:{}: tokens.second.client_secert: ", config.display(), line_of("client_secert")),
    ];
    agent.signal(Signal::SIGHUP);
    agent.wait_for_log("not reloaded");
    for fault in &faults {
        agent.wait_until_logged(fault);
    }
    let told = host.cli(&["reload"]);
    assert_eq!(told.status.code(), Some(78), "{}", shown(&told));
    for fault in &faults {
        assert!(messages(&told).contains(fault), "{fault} is not in\n{}", shown(&told));
    }
    assert_eq!(printed(&host.cli(&["token", "bloom"])), token, "the running config stays");
    let unknown = host.cli(&["token", "second"]);
    assert_eq!(unknown.status.code(), Some(64), "{}", shown(&unknown));

    host.config(&good);
    let told = host.cli(&["reload"]);
    assert_eq!(
        (told.status.code(), printed(&told).as_str()),
        (Some(0), "reloaded\nadded: second"),
        "{}",
        shown(&told)
    );
    assert!(host.cli(&["token", "second"]).status.success());
    assert_eq!(printed(&host.cli(&["token", "bloom"])), token, "nothing of it changed");
    assert_eq!(host.issuer.control.request_count(), 2);
    let (_, _, log) = agent.stop();
    assert!(!format!("{log}{}", shown(&told)).contains(CANARY), "{log}");
}

#[test]
fn a_reload_does_not_move_the_socket() {
    let host = one_profile();
    let agent = host.run();
    let text = fs::read_to_string(host.path("config.toml")).unwrap();
    let elsewhere = text.replace("agent.sock", "other.sock");
    for changed in [elsewhere, text.replace("ca_file", "socket_mode = \"0600\"\nca_file")] {
        assert_ne!(changed, text);
        host.config(&changed);
        let told = host.cli(&["reload"]);
        assert_eq!(told.status.code(), Some(78), "{}", shown(&told));
        assert!(messages(&told).contains("agent.socket"), "{}", shown(&told));
        assert!(messages(&told).contains("restart"), "{}", shown(&told));
        agent.signal(Signal::SIGHUP);
        agent.wait_for_log("not reloaded");
    }
    assert!(host.cli(&["token", "bloom"]).status.success());
    assert!(!host.path("other.sock").exists());
}

#[test]
fn a_second_agent_is_refused_and_the_first_one_serves_on() {
    let host = one_profile();
    let agent = host.run();
    let second = host.run_to_its_end();
    assert_eq!(second.status.code(), Some(71), "{}", shown(&second));
    assert!(messages(&second).contains("another agent runs there"), "{}", shown(&second));
    assert!(messages(&second).lines().count() >= 3, "what, why, what to do: {}", shown(&second));
    assert!(host.cli(&["token", "bloom"]).status.success(), "{}", agent.log());
    // It came to no token request.
    assert_eq!(host.issuer.control.request_count(), 1);
}

#[test]
fn what_a_killed_agent_leaves_is_taken_over() {
    let host = one_profile();
    let mut agent = host.run();
    agent.signal(Signal::SIGKILL);
    agent.wait();
    assert!(fs::metadata(host.path("agent.sock")).unwrap().file_type().is_socket());
    let gone = host.cli(&["token", "bloom"]);
    assert_eq!(gone.status.code(), Some(69), "{}", shown(&gone));
    assert!(messages(&gone).contains("nobody listens"), "{}", shown(&gone));
    let again = host.run();
    let output = host.cli(&["token", "bloom"]);
    assert!(output.status.success(), "{}\n{}", shown(&output), again.log());
}

#[test]
fn what_others_made_in_the_sockets_place_stays() {
    let host = one_profile();
    host.write("agent.sock", "precious", 0o644);
    let refused = host.run_to_its_end();
    assert_eq!(refused.status.code(), Some(71), "{}", shown(&refused));
    assert!(messages(&refused).contains("something that is no socket"), "{}", shown(&refused));
    assert_eq!(fs::read_to_string(host.path("agent.sock")).unwrap(), "precious");

    fs::remove_file(host.path("agent.sock")).unwrap();
    std::os::unix::fs::symlink(host.path("elsewhere"), host.path("agent.sock")).unwrap();
    let refused = host.run_to_its_end();
    assert_eq!(refused.status.code(), Some(71), "{}", shown(&refused));
    assert!(!host.path("elsewhere").exists(), "the link was followed");

    fs::remove_file(host.path("agent.sock")).unwrap();
    host.chmod(".", 0o777);
    let refused = host.run_to_its_end();
    assert!(matches!(refused.status.code(), Some(71 | 78)), "{}", shown(&refused));
    assert!(messages(&refused).contains("chmod"), "{}", shown(&refused));
}

#[test]
fn a_dead_socket_of_another_user_is_not_removed() {
    if !is_root("a socket of another user") {
        return;
    }
    let host = one_profile();
    drop(std::os::unix::net::UnixListener::bind(host.path("agent.sock")).unwrap());
    host.give("agent.sock", 1234);
    let refused = host.run_to_its_end();
    assert_eq!(refused.status.code(), Some(71), "{}", shown(&refused));
    assert!(messages(&refused).contains("a socket of uid 1234"), "{}", shown(&refused));
    assert!(fs::metadata(host.path("agent.sock")).unwrap().file_type().is_socket());
}

#[test]
fn a_group_that_cannot_be_given_ends_it_with_71() {
    let host = one_profile();
    host.config(&(host.agent_table("socket_group = \"no-such-group\"") + &host.profile("bloom", "")));
    let refused = host.run_to_its_end();
    assert_eq!(refused.status.code(), Some(71), "{}", shown(&refused));
    for part in ["no-such-group", "groupadd", "agent.socket_group"] {
        assert!(messages(&refused).contains(part), "{part} is not in\n{}", shown(&refused));
    }
    assert!(!host.path("agent.sock").exists());
}

#[test]
fn a_group_that_only_root_could_give_ends_it_with_71() {
    if !is_root("an agent of another user") {
        return;
    }
    let host = one_profile();
    host.config(&(host.plain_agent_table("socket_group = \"root\"") + &host.profile("bloom", "")));
    let mut agent = host.start_as(&User::new(1234, 1234, &[]));
    let (status, _, log) = agent.wait();
    assert_eq!(status.code(), Some(71), "{log}");
    assert!(log.contains("only root can give a file to a group"), "{log}");
    assert!(!host.path("agent.sock").exists(), "half a socket is left behind");
}

#[test]
fn the_faults_of_all_files_are_told_at_once() {
    let host = one_profile();
    let none = Command::new(host.program("bloom-agent"))
        .args(["run", "--config"])
        .arg(host.path("none.toml"))
        .output()
        .unwrap();
    assert_eq!(none.status.code(), Some(78), "{}", shown(&none));
    assert!(messages(&none).contains("none.toml"), "{}", shown(&none));

    fs::create_dir(host.path("config.d")).unwrap();
    host.chmod("config.d", 0o755);
    host.config(&(host.agent_table("sokcet = \"x\"") + &host.profile("bloom", "")));
    host.write("config.d/a.toml", &host.profile("a", "allow = [\"uid:61184\"]"), 0o644);
    host.write("config.d/b.toml", &(host.profile("bloom", "") + "[agent]\nroot = \"always\"\n"), 0o644);
    host.write("config.d/c.toml", &host.profile("c", ""), 0o666);
    host.write("config.d/d.toml", &format!("[tokens.d\nclient_secret = \"{CANARY}\"\n"), 0o644);
    let refused = host.run_to_its_end();
    assert_eq!(refused.status.code(), Some(78), "{}", shown(&refused));
    let text = messages(&refused);
    let main = fs::read_to_string(host.path("config.toml")).unwrap();
    let line = 1 + main.lines().position(|line| line.starts_with("sokcet")).unwrap();
    let unknown_key = format!("config.toml:{line}: agent.sokcet: ");
    for part in [
        &unknown_key,
        "config.d/a.toml:6: tokens.a.allow[0]: ",
        "config.d/b.toml:1: tokens.bloom: ",
        "config.d/b.toml:7: agent: ",
        "config.d/c.toml",
        "chmod",
        "config.d/d.toml:1:",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(!text.contains(CANARY), "{text}");
}

#[test]
fn each_package_can_bring_its_own_profile() {
    let host = one_profile();
    fs::create_dir(host.path("config.d")).unwrap();
    host.chmod("config.d", 0o755);
    host.write("config.d/20-loans.toml", &host.profile("loans", ""), 0o644);
    host.write("config.d/10-cards.toml", &host.profile("cards", ""), 0o644);
    // What editors and package managers leave is not read.
    host.write("config.d/10-cards.toml.dpkg-old", "nonsense", 0o644);
    host.write("config.d/.hidden.toml", "nonsense", 0o644);
    let agent = host.run();
    for name in ["bloom", "cards", "loans"] {
        let output = host.cli(&["token", name]);
        assert!(output.status.success(), "{}\n{}", shown(&output), agent.log());
    }
    fs::remove_file(host.path("config.d/20-loans.toml")).unwrap();
    assert_eq!(printed(&host.cli(&["reload"])), "reloaded\nremoved: loans");
}

#[test]
fn a_secret_that_cannot_be_read_is_one_profiles_failure_and_heals_by_its_remedy() {
    let host = Host::new("s3cret");
    host.write("open", "s3cret", 0o640);
    let open = host.profile("open", "").replace("/secret\"", "/open\"");
    let none = host.profile("none", "").replace("/secret\"", "/none\"");
    host.config(&(host.agent_table("") + &host.profile("good", "") + &open + &none));
    let agent = host.run();
    let good = host.cli(&["token", "good"]);
    assert!(good.status.success(), "{}\n{}", shown(&good), agent.log());
    let remedy = format!("chmod 600 {}", host.path("open").display());
    agent.wait_until_logged(&remedy);
    for name in ["open", "none"] {
        // It fails at once: the next attempt is further away than anybody waits.
        let refused = host.cli(&["token", name]);
        assert_eq!(refused.status.code(), Some(75), "{}\n{}", shown(&refused), agent.log());
        assert!(messages(&refused).contains("secret"), "{}", shown(&refused));
        assert!(!messages(&refused).contains(&remedy), "callers are not told of the agent's files");
    }
    let status = host.cli(&["status"]);
    assert!(printed(&status).contains(&remedy), "{}", shown(&status));
    assert!(printed(&host.cli(&["list", "--json"])).contains("FAILURE_KIND_SECRET_UNREADABLE"));

    // The file is watched meanwhile: whoever waits has the token as soon as the operator did as told.
    for (name, mend) in [("open", "chmod"), ("none", "make")] {
        let mut waiting = Printing::spawn(host.cli_command(&["token", name, "--wait", "60s"]));
        match mend {
            "chmod" => host.chmod("open", 0o600),
            _ => {
                host.write("new", "s3cret", 0o600);
                fs::rename(host.path("new"), host.path("none")).unwrap();
            }
        }
        let token = waiting.line();
        assert!(host.issuer.control.is_live(&token), "{name}");
        assert_eq!(waiting.wait().0.code(), Some(0));
    }
    assert_eq!(host.issuer.control.request_count(), 3, "an unreadable secret costs no request");
}

#[test]
fn without_a_stderr_it_serves_as_ever() {
    let host = one_profile();
    // The shell's way to close a descriptor; the log must not find its way into a socket that gets its number.
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" run --config \"$1\" 2>&-"]);
    command.arg(host.program("bloom-agent")).arg(host.path("config.toml"));
    let mut agent = Agent::spawn(command);
    let output = host.cli(&["token", "bloom", "--wait", "60s"]);
    assert!(output.status.success(), "{}", shown(&output));
    for _ in 0..3 {
        let output = host.cli(&["status"]);
        assert!(output.status.success(), "{}", shown(&output));
    }
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait().0.code(), Some(0));
}

#[test]
fn a_stderr_that_nobody_reads_costs_lines_and_no_call() {
    let host = one_profile();
    let (reader, writer) = std::io::pipe().unwrap();
    // One page: the smallest that the kernel gives.
    nix::fcntl::fcntl(reader.as_fd(), nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let mut agent = host.daemon(&["run"]);
    let mut agent =
        agent.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).process_group(0).spawn().unwrap();
    assert!(host.cli(&["token", "bloom", "--wait", "60s"]).status.success());

    // A line for each fault: far more than may wait.
    let mut bad = fs::read_to_string(host.path("config.toml")).unwrap();
    bad.extend((0..10_000).map(|n| format!("unknown-{n} = 1\n")));
    host.config(&bad);
    assert_eq!(host.cli(&["reload"]).status.code(), Some(78));
    let metrics = printed(&host.cli(&["metrics"]));
    let dropped = metrics.lines().find_map(|line| line.strip_prefix("bloom_agent_log_lines_dropped_total "));
    let dropped: u64 = dropped.unwrap().parse().unwrap();
    assert!(dropped > 0, "the queue has no end");
    assert!(host.cli(&["token", "bloom"]).status.success());
    let pid = nix::unistd::Pid::from_raw(i32::try_from(agent.id()).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(agent.wait().unwrap().code(), Some(0));
    drop(reader);
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
