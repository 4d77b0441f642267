//! `[limits]`: the numbers, and the book that is kept of every uid. Pure: time is an argument.

pub mod ledger;

pub use ledger::{Exceeded, Ledger, Mention, Totals};

/// `[limits]` of the config; per uid unless it says total. Root is counted too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of all uids together.
    pub connections_total: u32,
    /// Connections.
    pub connections: u32,
    /// Streams of one connection: HTTP/2's SETTINGS_MAX_CONCURRENT_STREAMS.
    pub streams_per_connection: u32,
    /// Open streams over all connections, counted before a body is read.
    pub calls: u32,
    /// Open WatchToken and health Watch streams.
    pub watches: u32,
    /// Connects per second; the burst is twice that.
    pub connects_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_total: 4096,
            connections: 512,
            streams_per_connection: 1024,
            calls: 4096,
            watches: 512,
            connects_per_second: 200,
        }
    }
}
