//! The agent as a whole, one file per story.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test says so by failing")]

mod architecture;
mod cli;
mod dev_command;
mod fake_agent;
mod host;
mod programs;
mod serving;
