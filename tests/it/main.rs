//! The agent as a whole, one file per story.

mod architecture;
mod cli;
mod fake_agent;
mod serving;
