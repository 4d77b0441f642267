//! How the cost of a call grows with what the config holds: profiles, and rules of a profile. The one that admits is the last.

use std::time::Duration;

use crate::{
    agent::{Bench, NO_LIMITS, PROFILE, pid, wait_for_tokens},
    host::Host,
    process::{cpu_us, on, pin, rss},
    report::{Report, exponent, median},
    throughput::Load,
    wire::{Call, Connection, Scratch},
};

const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_millis(400);
const SIZES: [usize; 4] = [1, 10, 100, 1_000];

/// The config's profiles, so many of something.
type Profiles<'a> = &'a dyn Fn(&Host, usize) -> String;

pub(crate) fn measure(report: &mut Report) {
    pin(1);
    let mut rows = Vec::new();
    let with_profiles = |host: &Host, count: usize| {
        // A name that stands in their middle.
        let others = (1..count).map(|number| host.profile(&format!("a{number}"), ""));
        others.collect::<String>() + &host.profile(PROFILE, "")
    };
    let with_rules = |host: &Host, count: usize| {
        let rules = (1..count).map(|number| format!("\"uid:{}\", ", 10_000 + number));
        let own = nix::unistd::geteuid();
        host.profile(PROFILE, &format!("allow = [{}\"uid:{own}\"]", rules.collect::<String>()))
    };
    let kinds: [(&str, Profiles<'_>); 2] =
        [("profiles", &with_profiles), ("rules of the profile", &with_rules)];
    for (kind, make) in kinds {
        let (mut warm, mut cold, mut memory) = (Vec::new(), Vec::new(), Vec::new());
        for size in SIZES {
            let bench = Bench::with(NO_LIMITS, |host| make(host, size));
            let agent = bench.start(&on("0"));
            let pid = pid(&agent);
            wait_for_tokens(&agent, if kind == "profiles" { size } else { 1 });
            memory.push(rss(pid));
            let mut load = Load::new(&bench.socket(), 1, 64);
            load.run(ROUND);
            let cpu = |calls: &mut dyn FnMut() -> usize| {
                let rounds: Vec<_> = (0..ROUNDS)
                    .map(|_| {
                        let before = cpu_us(pid);
                        let calls = calls();
                        (cpu_us(pid) - before) / calls as f64
                    })
                    .collect();
                median(&rounds)
            };
            warm.push(cpu(&mut || load.run(ROUND).0.len()));
            cold.push(cpu(&mut || {
                let (call, mut scratch) = (Call::get_token(PROFILE), Scratch::new());
                for _ in 0..500 {
                    Connection::open(&bench.socket()).unwrap().call(&call, &mut scratch).unwrap();
                }
                500
            }));
        }
        for (what, unit, values) in [
            ("server CPU of a call", "us", warm),
            ("server CPU of a connection and its first call", "us", cold),
            ("RSS", "kB", memory),
        ] {
            for (size, value) in SIZES.iter().zip(&values) {
                report.figure("growth", &format!("{size} {kind}"), what, unit, &[*value]);
            }
            let points: Vec<_> = SIZES.iter().map(|size| *size as f64).zip(values.iter().copied()).collect();
            let mut row = vec![format!("{what}, by {kind}")];
            row.extend(values.iter().map(|value| format!("{value:.1} {unit}")));
            row.push(format!("{:.2}", exponent(&points)));
            rows.push(row);
        }
    }
    report.table("Growth", &["what", "1", "10", "100", "1,000", "exponent"], &rows);
}
