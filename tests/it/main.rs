//! The agent as a whole, one file per story.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test says so by failing, and aloud that it was skipped"
)]

mod abuse;
mod activation;
mod admin;
mod architecture;
mod audit;
mod callers;
mod check;
mod cli;
mod clocks;
mod conformance;
mod connector;
mod crashes;
mod credential;
mod crowds;
mod demands;
mod dev;
mod dev_command;
mod fake_agent;
mod faults;
mod figures;
mod front;
mod health;
mod host;
mod host_faults;
mod invariants;
mod leaks;
mod lost_rotator;
mod matrix;
mod names;
mod outage;
mod peers;
mod programs;
mod reload;
mod requests;
mod secret_files;
mod secrets;
mod serving;
mod shutdown;
#[path = "../simulation/mod.rs"]
mod simulation;
mod stored;
mod supply;
mod support;
mod swap;
mod time_namespace;
mod uids;
mod units;
mod unsafe_code;
mod verbs;
mod waiting;
mod wall;
