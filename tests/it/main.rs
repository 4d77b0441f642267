//! The agent's parts together, in one process: a file per story.

mod serving;
