//! The agent as a whole, one file per story.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test says so by failing, and aloud that it was skipped"
)]

mod activation;
mod admin;
mod architecture;
mod audit;
mod callers;
mod check;
mod cli;
mod credential;
mod crowds;
mod demands;
mod dev;
mod dev_command;
mod fake_agent;
mod figures;
mod front;
mod health;
mod host;
mod leaks;
mod lost_rotator;
mod names;
mod outage;
mod programs;
mod reload;
mod requests;
mod secrets;
mod serving;
mod shutdown;
mod stored;
mod support;
mod swap;
mod uids;
mod units;
mod verbs;
mod waiting;
