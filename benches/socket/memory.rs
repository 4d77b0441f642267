//! What the agent takes while it has nothing to do: memory, and wake-ups.

use std::{thread::sleep, time::Duration};

use crate::{
    agent::{Bench, NO_LIMITS, PROFILE, pid, wait_for_tokens},
    peers::OidcAgent,
    process::{anonymous, pin, pss, rss, sleeps},
    report::Report,
    throughput::Load,
    wire::{Call, Connection, Scratch},
};

const CONNECTIONS: usize = 1_000;
const PROFILES: usize = 100;
const IDLE: Duration = Duration::from_secs(30);
/// Until what comes after a start and after a client is over: code is let go, and memory is given back.
const SETTLED: Duration = Duration::from_secs(15);

pub(crate) fn measure(report: &mut Report) {
    let mut rows = Vec::new();
    let mut row = |report: &mut Report, what: &str, unit: &str, value: f64| {
        report.figure("memory", "agent", what, unit, &[value]);
        rows.push(vec![what.to_owned(), format!("{value:.1} {unit}")]);
    };
    pin(1);
    let bench = Bench::without_limits();
    let agent = bench.start(&[]);
    let pid = pid(&agent);
    row(report, "RSS with the first token, in the midst of the start", "kB", rss(pid));
    sleep(SETTLED);
    let first = rss(pid);
    row(report, "RSS after the first refresh", "kB", first);
    row(report, "of it anonymous", "kB", anonymous(pid));
    row(report, "PSS", "kB", pss(pid));
    let before = sleeps(pid);
    sleep(IDLE);
    row(report, "wake-ups in 30 s without a call", "", (sleeps(pid) - before) as f64);

    let before = rss(pid);
    let (call, mut scratch) = (Call::get_token(PROFILE), Scratch::new());
    let crowd: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let mut connection = Connection::open(&bench.socket()).unwrap();
            connection.call(&call, &mut scratch).unwrap();
            connection
        })
        .collect();
    row(report, "a connection that has called once", "kB", (rss(pid) - before) / CONNECTIONS as f64);
    drop(crowd);

    let mut load = Load::new(&bench.socket(), 16, 16);
    for millions in [1, 10] {
        while load.asked() < millions * 1_000_000 {
            load.run(Duration::from_millis(500));
        }
        row(report, &format!("RSS after {millions} million calls"), "kB", rss(pid));
    }
    drop((load, agent));

    let bench = Bench::with(NO_LIMITS, |host| {
        let others = (1..PROFILES).map(|number| host.profile(&format!("p{number}"), ""));
        host.profile(PROFILE, "") + &others.collect::<String>()
    });
    let agent = bench.start(&[]);
    let pid = crate::agent::pid(&agent);
    wait_for_tokens(&agent, PROFILES);
    sleep(SETTLED);
    row(report, "RSS with 100 profiles", "kB", rss(pid));
    row(report, "each further profile", "kB", (rss(pid) - first) / (PROFILES - 1) as f64);

    if let Some(peer) = OidcAgent::start() {
        let all: f64 = peer.pids().into_iter().map(rss).sum();
        row(report, "oidc-agent's two processes, RSS", "kB", all);
        let all: f64 = peer.pids().into_iter().map(pss).sum();
        row(report, "oidc-agent's two processes, PSS", "kB", all);
    }
    report.table("Memory and idleness", &["what", "figure"], &rows);
}
