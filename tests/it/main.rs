//! The agent as a whole, one file per story.

mod architecture;
