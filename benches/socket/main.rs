//! What a call to the agent costs, against the floors under it: a bare socket, and tonic's own server with nothing behind it.
//!
//! `cargo bench --bench socket` measures everything; `cargo bench --bench socket -- WHAT…` some of it. WHAT is one of
//! `instructions`, `latency`, `throughput`.
//! Figures of two programs that are compared are taken in turns, in one run. It needs a quiet machine, and root or not does
//! not matter; `instructions` needs valgrind.

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
#[path = "../../tests/it/host.rs"]
mod host;
mod instructions;
mod servers;
mod timing;
mod wire;

use std::{path::Path, pin::Pin};

use bloom_agent::pb;

type Replies =
    Pin<Box<dyn tokio_stream::Stream<Item = Result<pb::WatchTokenResponse, tonic::Status>> + Send>>;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", role, socket, reply] => servers::serve(role, Path::new(socket), Path::new(reply)),
        what => {
            let wants = |name| what.is_empty() || what.contains(&name);
            if wants("instructions") {
                instructions::measure();
            }
            if wants("latency") {
                timing::latency();
            }
            if wants("throughput") {
                timing::throughput();
            }
        }
    }
}
