//! The agent as a whole, one file per story.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test says so by failing")]

mod admin;
mod architecture;
mod audit;
mod callers;
mod cli;
mod crowds;
mod demands;
mod fake_agent;
mod health;
mod lost_rotator;
mod names;
mod outage;
mod reload;
mod requests;
mod secrets;
mod serving;
mod shutdown;
mod support;
mod waiting;
