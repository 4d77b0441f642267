//! The agent as a whole, one file per story.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test says so by failing")]
#![allow(clippy::print_stderr, reason = "a test that cannot run says so")]

mod architecture;
mod check;
mod cli;
mod dev;
mod fake_agent;
mod host;
mod programs;
mod serving;
mod uids;
mod verbs;
