//! The processes from outside, as root sees them: /proc, memory, system calls, and a panic.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    os::unix::fs::MetadataExt as _,
    process::{Command, Stdio},
};

use bloom_agent::{
    clock::SystemClock,
    log::{self, Format, LogConfig, Panics},
};
use nix::{sys::signal::Signal, unistd::Pid};

use super::{CLIENT_ID, Canary, Search, token_of};
use crate::host::{Agent, Host, Printing, User, is_root, shown};

/// What of a process any other may read, or an administrator sees at a glance.
fn assert_proc_is_clean(search: &Search, who: &str, pid: Pid) {
    let root = format!("/proc/{pid}");
    for file in ["cmdline", "environ", "maps", "status", "comm", "stat", "mountinfo"] {
        let path = format!("{root}/{file}");
        search.assert_none_in(&format!("{file} of {who}"), fs::read(&path).unwrap());
    }
    for task in fs::read_dir(format!("{root}/task")).unwrap() {
        // One that has ended meanwhile has no name.
        let Ok(name) = fs::read(task.unwrap().path().join("comm")) else { continue };
        search.assert_none_in(&format!("a thread's name of {who}"), name);
    }
    for descriptor in fs::read_dir(format!("{root}/fd")).unwrap() {
        let path = descriptor.unwrap().path();
        // One that is closed meanwhile is not kept open.
        let (Ok(target), Ok(metadata)) = (fs::read_link(&path), fs::metadata(&path)) else { continue };
        let target = target.to_string_lossy().into_owned();
        search.assert_none_in(&format!("an open file's name of {who}"), &target);
        if metadata.is_file() {
            assert!(!target.ends_with("/secret"), "{who} keeps {target} open");
            search.assert_none_in(&target, fs::read(&path).unwrap());
        }
    }
}

#[test]
fn proc_tells_nothing_of_the_daemon_or_of_a_caller_that_waits() {
    if !is_root("proc_tells_nothing_of_the_daemon_or_of_a_caller_that_waits") {
        return;
    }
    let secret = Canary::secret("the secret");
    let host = Host::new(&secret.text);
    host.config(&(host.agent_table("") + &host.profile("bloom", "")));
    let agent = host.run();
    let token = token_of(&host, "the token");
    let mut watch = Command::new(host.program("bloom-agent-cli"))
        .arg("--socket")
        .arg(host.path("agent.sock"))
        .args(["watch", "bloom", "--format", "raw"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    // Kept open to the end: `watch` ends when nobody reads it any more.
    let mut lines = BufReader::new(watch.stdout.take().unwrap());
    lines.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), token.text);

    let search = Search::new(CLIENT_ID, [&secret, &token]);
    assert_proc_is_clean(&search, "bloom-agent", agent.pid());
    assert_proc_is_clean(&search, "bloom-agent-cli watch", Pid::from_raw(i32::try_from(watch.id()).unwrap()));
    watch.kill().unwrap();
    watch.wait().unwrap();
    drop(lines);
    host.assert_only_holds(&search, &["secret"]);
}

#[test]
fn a_core_file_is_not_written_and_the_same_user_reads_no_memory() {
    let name = "a_core_file_is_not_written_and_the_same_user_reads_no_memory";
    if !is_root(name) {
        return;
    }
    let uid = 50_123;
    // No group of root's for a socket of somebody else's.
    let group = "socket_group = \"root\"";
    let user = User::new(uid, uid, &[]);
    let host = Host::new("s3cret");
    #[allow(clippy::disallowed_methods, reason = "files of the test's own")]
    for file in [".", "secret", "ca.pem"] {
        std::os::unix::fs::chown(host.path(file), Some(uid), Some(uid)).unwrap();
    }
    host.config(&(host.agent_table(group).replace(group, "") + &host.profile("bloom", "")));
    #[allow(clippy::disallowed_methods, reason = "files of the test's own")]
    std::os::unix::fs::chown(host.path("config.toml"), Some(uid), Some(uid)).unwrap();
    let mut command = user.command(&host.program("bloom-agent"));
    command.arg("run").arg("--config").arg(host.path("config.toml"));
    let agent = Agent::spawn(command);
    agent.wait_for_log("serving");

    let limits = fs::read_to_string(format!("/proc/{}/limits", agent.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    // The soft limit is the one that counts, see src/hardening.rs.
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    // proc(5): the files of a process that is not dumpable belong to root.
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    assert!(status.contains(&format!("Uid:\t{uid}\t{uid}")), "{status}");
    assert_eq!(fs::metadata(format!("/proc/{}/mem", agent.pid())).unwrap().uid(), 0);
    for file in ["mem", "environ", "maps"] {
        let path = format!("/proc/{}/{file}", agent.pid());
        let output = user.command("/bin/cat".as_ref()).arg(&path).output().unwrap();
        assert!(!output.status.success(), "its own user reads {path}: {}", shown(&output));
        // Of a process that is dumpable it could: the test can fail.
        let output = user.command("/bin/cat".as_ref()).arg("/proc/self/environ").output().unwrap();
        assert!(output.status.success(), "{}", shown(&output));
    }
}

/// Where each needle is in the memory that the process can write: by needle and mapping, how often.
fn in_memory(search: &Search, pid: Pid) -> Result<BTreeMap<(String, String), usize>, std::io::Error> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut memory = fs::File::open(format!("/proc/{pid}/mem"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut copies = BTreeMap::new();
    for line in maps.lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [range, rights, ..] = fields[..] else { continue };
        if !rights.starts_with("rw") {
            continue;
        }
        let locked = status
            .split(range)
            .nth(1)
            .and_then(|rest| rest.lines().find(|line| line.starts_with("VmFlags:")))
            .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "lo"));
        let (start, end) = range.split_once('-').unwrap();
        let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        memory.seek(SeekFrom::Start(start))?;
        memory.read_exact(&mut bytes)?;
        let place = match fields.get(5) {
            _ if locked => "locked pages".to_owned(),
            Some(name) => (*name).to_owned(),
            None => "an anonymous mapping (a thread's stack, or malloc's)".to_owned(),
        };
        for (_, name) in search.found(&bytes) {
            *copies.entry((name.to_owned(), place.clone())).or_default() += 1;
        }
    }
    Ok(copies)
}

/// How many whole copies of each canary there are, and where.
fn copies(canaries: &[&Canary], pid: Pid) -> BTreeMap<(String, String), usize> {
    in_memory(&Search::of_wholes(canaries.iter().copied()), pid).unwrap()
}

/// What is freed is wiped (src/wiping.rs); what TLS and HTTP keep is theirs, and with a connection per exchange ends with it.
/// What lives is counted by [`the_copies_of_what_lives_are_counted`].
#[test]
fn an_old_secret_is_nowhere_in_memory() {
    let name = "an_old_secret_is_nowhere_in_memory";
    if !is_root(name) {
        return;
    }
    for method in ["client_secret_post", "client_secret_basic"] {
        let (old, new) = (Canary::secret("the old secret"), Canary::secret("the new secret"));
        let host = Host::new(&old.text);
        let lines = format!("auth_method = \"{method}\"");
        host.config(&(host.agent_table("") + &host.profile("bloom", &lines)));
        let agent = host.run();
        let old_token = token_of(&host, "the old token");
        host.write("secret", &new.text, 0o600);
        host.issuer.control.set_secrets([new.text.clone()]);
        for _ in 0..2 {
            let output = host.cli(&["refresh", "bloom"]);
            assert!(output.status.success(), "{}", shown(&output));
        }
        let token = token_of(&host, "the token");

        let secrets = Search::new(CLIENT_ID, [&old, &new]);
        let copies = match in_memory(&secrets, agent.pid()) {
            Ok(copies) => copies,
            Err(error) => {
                // Past the test runner, which keeps what a passing test prints to itself.
                let _loud = std::io::Write::write_fmt(
                    &mut std::io::stderr(),
                    format_args!(
                        "SKIPPED: {name} cannot read /proc/PID/mem ({error}): no CAP_SYS_PTRACE here?\n"
                    ),
                );
                return;
            }
        };
        // The scan sees what is there: the secret during an exchange, and the token that is served.
        host.issuer.control.push_fault(bloom_agent::dev_issuer::Fault::none().held());
        let asked = host.issuer.control.request_count() + 1;
        let mut refresh = Command::new(host.program("bloom-agent-cli"))
            .arg("--socket")
            .arg(host.path("agent.sock"))
            .args(["refresh", "bloom"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(host.issuer.control.wait_for_request(asked));
        let during = in_memory(&secrets, agent.pid()).unwrap();
        assert!(during.keys().any(|(name, _)| name.starts_with("the new secret")), "{method}: {during:#?}");
        assert!(!during.keys().any(|(name, _)| name.starts_with("the old secret")), "{method}: {during:#?}");
        let tokens = in_memory(&Search::new(CLIENT_ID, [&token, &old_token]), agent.pid()).unwrap();
        let live = tokens
            .iter()
            .filter(|((name, place), _)| name.starts_with("the token") && place == "locked pages");
        assert!(live.count() > 0, "the scan does not see the token that is served: {tokens:#?}");
        assert!(copies.is_empty(), "{method}: {copies:#?}");
        assert!(!tokens.keys().any(|(name, _)| name.starts_with("the old token")), "{method}: {tokens:#?}");
        host.issuer.control.release();
        assert!(refresh.wait().unwrap().success());
    }
}

/// Between exchanges there is no secret. During one it is there as it was read and as it was encoded; in a header once more,
/// as that is written to the connection. A token is there once, in locked pages; and up to twice on the heap for each
/// connection that it went out by, in the buffers of HTTP/2, which end with the connection.
#[test]
fn the_copies_of_what_lives_are_counted() {
    if !is_root("the_copies_of_what_lives_are_counted") {
        return;
    }
    for (method, most) in [("client_secret_post", 2), ("client_secret_basic", 3)] {
        let secret = Canary::secret("the secret");
        let host = Host::new(&secret.text);
        host.config(&(host.agent_table("") + &host.profile("bloom", &format!("auth_method = \"{method}\""))));
        let agent = host.run();
        let token = token_of(&host, "the token");
        let both = [&secret, &token];
        // Until the agent has nobody but who asks it for that.
        let alone = || while !shown(&host.cli(&["status", "--json"])).contains("\"connections\":1,") {};
        alone();
        let at_rest = copies(&both, agent.pid());
        let mut watch = Printing::spawn(host.cli_command(&["watch", "bloom", "--format", "raw"]));
        assert_eq!(watch.line(), token.text);
        let watched = copies(&both, agent.pid());
        host.issuer.control.push_fault(bloom_agent::dev_issuer::Fault::none().held());
        let asked = host.issuer.control.request_count() + 1;
        let mut refresh = host.cli_command(&["refresh", "bloom"]).stdout(Stdio::null()).spawn().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(host.issuer.control.wait_for_request(asked));
        let exchanging = copies(&both, agent.pid());
        host.issuer.control.release();
        assert!(refresh.wait().unwrap().success());
        eprintln!("{method}\nat rest: {at_rest:#?}\nwatched: {watched:#?}\nexchanging: {exchanging:#?}");
        let one_token = BTreeMap::from([(("the token (plain)".to_owned(), "locked pages".to_owned()), 1)]);
        assert_eq!(at_rest, one_token, "{method}");
        let on_heap = watched
            .iter()
            .filter(|((name, place), _)| name == "the token (plain)" && place != "locked pages");
        assert!(on_heap.map(|(_, n)| n).sum::<usize>() <= 2, "{method}: with a watcher {watched:#?}");
        // With the watcher goes what was in its buffers.
        drop(watch);
        let last = token_of(&host, "the last token");
        alone();
        let left = copies(&[&secret, &token, &last], agent.pid());
        let one = BTreeMap::from([(("the last token (plain)".to_owned(), "locked pages".to_owned()), 1)]);
        assert_eq!(left, one, "{method}: after the watcher");
        let secrets: usize =
            exchanging.iter().filter(|((name, _), _)| name.starts_with("the secret")).map(|(_, n)| n).sum();
        assert!((1..=most).contains(&secrets), "{method}: {exchanging:#?}");
    }
}

/// A variable that makes the test binary, started anew, panic with this in the message.
const PANIC_WITH: &str = "BLOOM_AGENT_TEST_PANIC_WITH";

#[test]
fn a_panic_says_where_and_not_what() {
    if let Ok(canary) = std::env::var(PANIC_WITH) {
        // As the programs begin, then as `run` and `dev` go on.
        log::withhold_panic_messages("a program");
        let of_a_string = canary.clone();
        assert!(std::thread::spawn(move || panic!("the token is {of_a_string}")).join().is_err());
        let config = LogConfig { level: tracing::Level::TRACE, format: Format::Text, ..LogConfig::default() };
        let log = log::init(config, std::sync::Arc::new(SystemClock), log::stderr()).unwrap();
        let panics = Panics::default();
        log::install_panic_hook(panics.clone());
        let of_a_string = canary.clone();
        let threads = [
            std::thread::spawn(move || panic!("the token is {of_a_string}")),
            std::thread::spawn(move || std::panic::panic_any(canary)),
        ];
        assert!(threads.into_iter().all(|thread| thread.join().is_err()));
        assert_eq!(panics.count(), 2);
        drop(log);
        return;
    }
    let canary = Canary::plain("what was worked on");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["leaks::process::a_panic_says_where_and_not_what", "--exact", "--nocapture"])
        .env(PANIC_WITH, &canary.text)
        .env("RUST_BACKTRACE", "full")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", shown(&output));
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(log.matches("place=tests/it/leaks/process.rs:").count(), 2, "{log}");
    assert_eq!(log.matches("a program: panicked at tests/it/leaks/process.rs:").count(), 1, "{log}");
    let search = Search::new(CLIENT_ID, [&canary]);
    search.assert_none_in("stderr", &output.stderr);
    search.assert_none_in("stdout", &output.stdout);
}

#[test]
fn the_secret_goes_to_no_file_and_to_the_network_inside_of_tls_only() {
    let name = "the_secret_goes_to_no_file_and_to_the_network_inside_of_tls_only";
    if !is_root(name) {
        return;
    }
    if Command::new("strace").arg("--version").output().is_err() {
        // Past the test runner, which keeps what a passing test prints to itself.
        let _loud = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("SKIPPED: {name} needs strace(1), to see every write\n"),
        );
        return;
    }
    let secret = Canary::plain("the secret");
    let host = Host::new(&secret.text);
    host.config(
        &("[log]\nlevel = \"trace\"\n".to_owned() + &host.agent_table("") + &host.profile("bloom", "")),
    );
    let mut command = Command::new("strace");
    command
        // Every call: a path, an argument or a thread's name leaks as well as what is written. A file for each thread, so
        // that none cuts another's line in two.
        .args(["-ff", "-q", "-yy", "-s", "100000"])
        .arg("-o")
        .arg(host.path("trace"))
        .arg(host.program("bloom-agent"))
        .args(["run", "--config"])
        .arg(host.path("config.toml"));
    let mut agent = Agent::spawn(command);
    agent.wait_for_log("serving");
    let token = token_of(&host, "the token");
    let output = host.cli(&["refresh", "bloom"]);
    assert!(output.status.success(), "{}", shown(&output));
    let last = token_of(&host, "the last token");
    let pid = agent.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    nix::sys::signal::kill(Pid::from_raw(children.trim().parse().unwrap()), Signal::SIGTERM).unwrap();
    let (status, _, log) = agent.wait();
    assert_eq!(status.code(), Some(0), "{log}");

    let files = fs::read_dir(host.directory()).unwrap().map(|entry| entry.unwrap());
    let traces = files.filter(|entry| entry.file_name().to_string_lossy().starts_with("trace."));
    let trace: String = traces.map(|entry| fs::read_to_string(entry.path()).unwrap()).collect();
    let secrets = Search::new(CLIENT_ID, [&secret]);
    let tokens = Search::new(CLIENT_ID, [&token, &last]);
    let source = format!("<{}>", host.path("secret").display());
    let (mut read, mut answered, mut sent) = (0, 0, 0);
    for line in trace.lines() {
        let holds_secret = !secrets.found(line.as_bytes()).is_empty();
        let is_source =
            ["read(", "pread64("].iter().any(|call| line.starts_with(call)) && line.contains(&source);
        let holds_token = !tokens.found(line.as_bytes()).is_empty();
        let is_socket = ["<UNIX-STREAM:", "<UNIX:"].iter().any(|kind| line.contains(kind));
        assert!(!holds_secret || is_source, "the secret is in {line}");
        assert!(!holds_token || is_socket, "a token is in {line}");
        read += u32::from(holds_secret);
        answered += u32::from(holds_token);
        sent += u32::from(line.contains("<TCP:"));
    }
    // The test can fail: it saw the file read twice, the token answered twice, and something sent.
    assert!(read >= 2 && answered >= 2 && sent >= 4, "{read} {answered} {sent}");
}
