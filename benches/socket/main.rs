//! What a call to the agent costs, against the floors under it: a bare socket, and tonic's own server with nothing behind it.
//!
//! `cargo bench --bench socket` measures everything, `cargo bench --bench socket -- WHAT…` some of it: the names are in
//! [`BENCHES`]. Tables go to standard output; each figure, with all its rounds, is a line of JSON in
//! `target/socket-bench.jsonl`. Figures that are compared are taken in turns, in one run, of programs of one profile; times
//! need a quiet machine with two CPUs. `instructions` needs valgrind and no quiet; `start` takes oidc-agent and ssh-agent for
//! peers where they are installed; `fan-out` opens 10,000 connections of two users: as root, under `ulimit -Hn 20000` or more.

#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a program that measures: it shares its host with the tests, prints, and ends at the first thing that is wrong"
)]

mod agent;
mod fan_out;
mod growth;
#[path = "../../tests/it/host.rs"]
mod host;
mod instructions;
mod latency;
mod memory;
mod peers;
mod plot;
mod process;
mod report;
mod servers;
mod start;
mod throughput;
mod wire;

use std::path::Path;

use report::Report;

/// A bench and what it is asked for by.
type Bench = (&'static str, fn(&mut Report));

const BENCHES: [Bench; 9] = [
    ("instructions", instructions::measure),
    ("latency", latency::measure),
    ("throughput", throughput::measure),
    ("start", start::programs),
    ("cold", start::cold),
    ("fan-out", fan_out::measure),
    ("memory", memory::measure),
    ("scaling", throughput::scale),
    ("growth", growth::measure),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["serve", role, socket, reply] = words.as_slice() {
        return servers::serve(role, Path::new(socket), Path::new(reply));
    }
    if let Some(unknown) = words.iter().find(|word| BENCHES.iter().all(|(name, _)| name != *word)) {
        let known = BENCHES.map(|(name, _)| name).join(", ");
        eprintln!("{unknown}: there are {known}");
        std::process::exit(64);
    }
    let mut report = Report::open();
    for (name, measure) in BENCHES {
        if words.is_empty() || words.contains(&name) {
            measure(&mut report);
        }
    }
}
