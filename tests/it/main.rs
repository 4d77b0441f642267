//! The agent's parts together, in one process: a file per story.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test says so by failing")]

mod serving;
