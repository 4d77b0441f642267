//! How the cost of a call grows with what there is beside it: profiles, rules of a profile (the one that admits is the
//! last), connections that are open, and watchers.

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

/// Something that there may be more or less of.
struct Kind<'a> {
    name: &'static str,
    /// The config's profiles, for so many.
    profiles: &'a dyn Fn(&Host, usize) -> String,
    /// Who is there before anything is measured, for so many.
    crowd: &'a dyn Fn(&Bench, usize) -> Vec<Connection>,
}

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
    let one_profile = |host: &Host, _| host.profile(PROFILE, "");
    let nobody = |_: &Bench, _| Vec::new();
    let crowd_of = |call: fn(&str) -> Call| {
        move |bench: &Bench, count| {
            let (call, mut scratch) = (call(PROFILE), Scratch::new());
            let begin = |_| {
                let mut connection = Connection::open(&bench.socket()).unwrap();
                connection.begin(&call, &mut scratch).unwrap();
                connection
            };
            (0..count).map(begin).collect()
        }
    };
    let (callers, watchers) = (crowd_of(Call::get_token), crowd_of(Call::watch_token));
    let kinds = [
        Kind { name: "profiles", profiles: &with_profiles, crowd: &nobody },
        Kind { name: "rules of the profile", profiles: &with_rules, crowd: &nobody },
        Kind { name: "open connections", profiles: &one_profile, crowd: &callers },
        Kind { name: "watchers", profiles: &one_profile, crowd: &watchers },
    ];
    for Kind { name: kind, profiles, crowd } in kinds {
        let (mut warm, mut cold, mut memory) = (Vec::new(), Vec::new(), Vec::new());
        for size in SIZES {
            let bench = Bench::with(NO_LIMITS, |host| profiles(host, size));
            let agent = bench.start(&on("0"));
            let pid = pid(&agent);
            wait_for_tokens(&agent, if kind == "profiles" { size } else { 1 });
            let _crowd = crowd(&bench, size);
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
