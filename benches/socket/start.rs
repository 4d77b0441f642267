//! Programs from their start: the CLI as a whole process, the agent until it serves, and a thousand of the one before the
//! other has a token.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use bloom_agent::dev_issuer::Fault;

use crate::{
    agent::{Bench, NO_LIMITS, PROFILE},
    peers::{OidcAgent, SshAgent},
    report::{Report, median, quantile},
};

const ROUNDS: usize = 200;

/// The CLI as the package has it: linked statically.
const STATIC_CLI: &str = "BENCH_STATIC_CLI";

/// `bloom-agent-cli token` and its peers, each from start to end, in turns.
pub(crate) fn programs(report: &mut Report) {
    let bench = Bench::new();
    let _agent = bench.start(&[]);
    let (oidc, ssh) = (OidcAgent::start(), SshAgent::start());
    let token = |program: PathBuf| {
        let mut command = Command::new(program);
        command.arg("--socket").arg(bench.socket()).args(["token", PROFILE]);
        command
    };
    let mut programs = vec![("true".to_owned(), Command::new("true"))];
    programs.extend(oidc.iter().map(|oidc| ("oidc-token".to_owned(), oidc.token())));
    programs.extend(ssh.iter().map(|ssh| ("ssh-add -l".to_owned(), ssh.list())));
    programs
        .push(("bloom-agent-cli token, dynamic".to_owned(), token(bench.host.program("bloom-agent-cli"))));
    // So many as are named, to compare.
    let packaged = env::var_os(STATIC_CLI);
    for (number, program) in packaged.iter().flat_map(env::split_paths).enumerate() {
        let name = format!("bloom-agent-cli token, static ({})", program.display());
        // As it is installed: how a file was written decides how the kernel maps it, by a tenth of all that is measured.
        let installed = bench.host.path(&format!("static-{number}"));
        let status =
            Command::new("install").args(["-m", "0755"]).arg(program).arg(&installed).status().unwrap();
        assert!(status.success(), "{name} cannot be installed");
        programs.push((name, token(installed)));
    }
    if packaged.is_none() {
        eprintln!("{STATIC_CLI} names no program: packaging/deb leaves one in target/deb/bin");
    }
    let mut took = vec![Vec::new(); programs.len()];
    for _ in 0..ROUNDS {
        for ((name, command), took) in programs.iter_mut().zip(&mut took) {
            took.push(whole(name, command));
        }
    }
    let of = |wanted: &str| {
        let index = programs.iter().position(|(name, _)| name == wanted)?;
        Some(median(&took[index]))
    };
    let (floor, peer) = (of("true"), of("oidc-token"));
    let ratio = |ms: f64, to: Option<f64>| to.map_or("-".to_owned(), |to| format!("{:.2}", ms / to));
    let mut rows = Vec::new();
    for ((name, _), took) in programs.iter().zip(&took) {
        let ms = report.figure("start", name, "wall", "ms", took);
        let p90 = quantile(took, 0.9);
        rows.push(vec![
            name.clone(),
            format!("{ms:.2}"),
            format!("{p90:.2}"),
            ratio(ms, floor),
            ratio(ms, peer),
        ]);
    }
    let heads = ["program", "median ms", "p90 ms", "x true", "x oidc-token"];
    report.table("A whole process, from start to end", &heads, &rows);
}

/// How long it runs, in milliseconds.
fn whole(name: &str, command: &mut Command) -> f64 {
    let start = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
    let took = start.elapsed().as_secs_f64() * 1000.0;
    assert!(status.success(), "{name}: {status}");
    took
}

const HERD: usize = 1_000;
const STARTS: usize = 15;

/// From exec to serving and to the first token; and a thousand clients that come before there is one.
pub(crate) fn cold(report: &mut Report) {
    let bench = Bench::with(NO_LIMITS, |host| host.profile(PROFILE, ""));
    let (mut serving, mut token) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let start = Instant::now();
        let agent = bench.host.start();
        agent.wait_for_log("serving");
        serving.push(start.elapsed().as_secs_f64() * 1000.0);
        bench.reply();
        token.push(start.elapsed().as_secs_f64() * 1000.0);
        agent.stop();
    }
    let before = bench.host.issuer.control.request_count();
    let (clients, requests) = herd(&bench);
    let requests = requests - before;
    let mut rows = Vec::new();
    for (what, unit, rounds) in [
        ("exec to serving", "ms", &serving),
        ("exec to the first token, the provider on this host", "ms", &token),
        ("1,000 cold clients, first start to last end", "ms", &vec![clients]),
        ("their token requests", "requests", &vec![requests as f64]),
    ] {
        let median = report.figure("cold", "agent", what, unit, rounds);
        rows.push(vec![what.to_owned(), format!("{median:.1} {unit}")]);
    }
    report.table("From nothing", &["what", "median"], &rows);
}

/// The provider answers when all clients have been started: some wait at the socket, some have called.
fn herd(bench: &Bench) -> (f64, u64) {
    let provider = &bench.host.issuer.control;
    provider.set_rule(None);
    provider.push_fault(Fault::none().held());
    let agent = bench.host.run();
    let start = Instant::now();
    let clients: Vec<_> = (0..HERD)
        .map(|_| {
            let mut command = bench.host.cli_command(&["token", PROFILE, "--wait", "30s"]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    provider.release();
    for mut client in clients {
        assert!(client.wait().unwrap().success());
    }
    let took = start.elapsed().as_secs_f64() * 1000.0;
    agent.stop();
    (took, provider.request_count())
}
