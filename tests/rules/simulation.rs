//! The simulation as a test, so that mutants of the rules meet it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

extern crate bloom_agent_rules as bloom_agent;

#[path = "../simulation/mod.rs"]
mod simulation;
