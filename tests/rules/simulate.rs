//! All of the simulation, with its figures.
//!
//! `cargo run -p bloom-agent-rules --profile simulation --bin simulate -- --seeds 1000 --years 10 [--json FILE]`
//!
//! Replays a seed, and prints what happened before it failed: `… -- --seed 17 --years 10 [--machine]`.

// A measuring program says what it measures, and ends where it cannot.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used)]

extern crate bloom_agent_rules as bloom_agent;

#[path = "../simulation/mod.rs"]
mod simulation;

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use simulation::{DAY, HOUR, REPLAY, all, machine, rotator_seed, tally::Tally, weather, world::UP};

struct Options {
    first: u64,
    seeds: u64,
    years: u32,
    seed: Option<u64>,
    machine_only: bool,
    json: Option<String>,
}

fn options() -> Result<Options, String> {
    let mut options =
        Options { first: 0, seeds: 1_000, years: 10, seed: None, machine_only: false, json: None };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} takes a value"));
        let number = |text: String| text.parse::<u64>().map_err(|why| format!("{text}: {why}"));
        match &*arg {
            "--first" => options.first = number(value()?)?,
            "--seeds" => options.seeds = number(value()?)?,
            "--years" => {
                let years = number(value()?)?;
                options.years = u32::try_from(years).map_err(|why| format!("{years}: {why}"))?;
            }
            "--seed" => options.seed = Some(number(value()?)?),
            "--machine" => options.machine_only = true,
            "--json" => options.json = Some(value()?),
            _ => {
                return Err(format!(
                    "{arg} is none of --seeds N, --years N, --first N, --seed N, --machine, --json FILE"
                ));
            }
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let span = 365 * DAY * options.years;
    if let Some(seed) = options.seed {
        return replay(seed, span, options.machine_only);
    }
    let Options { first, seeds, years, .. } = *options;
    let failed = |flag: &'static str| {
        move |(seed, what): (u64, String)| {
            format!("seed {seed}: {what}\nreplay it: {REPLAY} --seed {seed} --years {years}{flag}")
        }
    };
    let machine = all(first, seeds, |seed| machine::a_seed(seed, span)).map_err(failed(" --machine"))?;
    println!("the machine, {seeds} seeds of {years} years: no rule broken\n{}", machine.text());
    let short =
        all(first, seeds, |seed| machine::a_short_seed(seed, 24 * HOUR)).map_err(failed(" --machine"))?;
    println!("the machine, {seeds} seeds of a day with lives of 1 to 59 s: no rule broken\n{}", short.text());
    if options.machine_only {
        return Ok(());
    }
    let rotator = all(first, seeds, |seed| rotator_seed(seed, span)).map_err(failed(""))?;
    println!("the rotator, {seeds} seeds of {years} years: no rule broken\n{}", rotator.text());
    let rate = rotator.of("token requests") as f64 / (rotator.of("hours") as f64 / 24.0);
    println!("token requests per profile-day: {rate:.2}");
    println!("expired tokens served: 0");
    println!("longest time {UP}: {:.3} s", longest(&rotator, UP).as_secs_f64());
    if let Some(path) = &options.json {
        let json = format!(
            "{{\"seeds\":{seeds},\"years\":{years},\"requests_per_profile_day\":{rate:.4},\"machine\":{},\"machine_short_lives\":{},\"rotator\":{}}}\n",
            json(&machine),
            json(&short),
            json(&rotator)
        );
        std::fs::write(path, json).map_err(|why| format!("{path}: {why}"))?;
    }
    Ok(())
}

fn longest(tally: &Tally, name: &str) -> Duration {
    tally.longest.get(name).copied().unwrap_or_default()
}

fn replay(seed: u64, span: Duration, machine_only: bool) -> Result<(), String> {
    if machine_only {
        let tally = machine::a_seed(seed, span).and(machine::a_short_seed(seed, 24 * HOUR))?;
        println!("{}", tally.text());
        return Ok(());
    }
    let run = weather::a_seed(seed, span, true);
    println!("{}\nthe moments of all requests: {:016x}", run.tally.text(), run.digest);
    run.fault.map_or(Ok(()), Err)
}

/// For machines: one JSON object.
fn json(tally: &Tally) -> String {
    let numbers = |map: &BTreeMap<&'static str, u64>| {
        map.iter().map(|(name, count)| format!("\"{name}\":{count}")).collect::<Vec<_>>().join(",")
    };
    let longest: Vec<_> =
        tally.longest.iter().map(|(name, time)| format!("\"{name}\":{:.3}", time.as_secs_f64())).collect();
    format!(
        "{{\"faults\":{{{}}},\"counts\":{{{}}},\"most\":{{{}}},\"longest_seconds\":{{{}}}}}",
        numbers(&tally.faults),
        numbers(&tally.counts),
        numbers(&tally.most),
        longest.join(",")
    )
}
