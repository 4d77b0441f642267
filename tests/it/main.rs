//! One binary for all stories: each file is one.

mod cli;
mod fake_agent;
