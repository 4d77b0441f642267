//! `[limits]`: the numbers, and the book that is kept of every uid. Pure: time is an argument.

pub mod ledger;

use std::ops::RangeInclusive;

pub(crate) use ledger::charged;
pub use ledger::{Exceeded, Ledger, Mention, Totals};

/// What any number of `[limits]` may be. 0 would serve nobody; the upper end is far above the descriptors that a
/// process can have, and keeps sums and bursts within `u32`.
pub const RANGE: RangeInclusive<u32> = 1..=1_000_000;

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

/// A number that is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a number from 1 to 1000000")]
pub struct NotALimit;

/// Checks one number against [`RANGE`].
pub fn number(value: i64) -> Result<u32, NotALimit> {
    u32::try_from(value).ok().filter(|value| RANGE.contains(value)).ok_or(NotALimit)
}

/// Two limits that work, but not as somebody may have meant them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Oddity {
    /// `connections` is above `connections_total`.
    #[error("is above connections_total, so one uid can take every connection")]
    ConnectionsAboveTotal,
    /// `watches` is not below `streams_per_connection`.
    #[error(
        "is not below streams_per_connection, so watches can fill a connection and a call on it then waits for ever"
    )]
    WatchesFillAConnection,
    /// `watches` is not below `calls`.
    #[error("is not below calls, so the watches of a uid can take all of its calls")]
    WatchesFillTheCalls,
}

impl Oddity {
    /// The key that is odd.
    pub fn key(self) -> &'static str {
        match self {
            Self::ConnectionsAboveTotal => "connections",
            Self::WatchesFillAConnection | Self::WatchesFillTheCalls => "watches",
        }
    }
}

/// Descriptors for what is there once: the socket, the log, the event loop, the timers, and the secret files that are
/// being read.
const OWN_DESCRIPTORS: u64 = 64;
/// And for each profile: its timer, its connection to the provider, the watches of its two secrets.
const DESCRIPTORS_PER_PROFILE: u64 = 4;

/// `connections_total` asks for more than the process can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "limits.connections_total is {configured}, but this process may have {descriptors} files open, which is enough for \
     {admitted} connections: so many are admitted, {of_one} of one uid; raise LimitNOFILE= of the unit to {wanted}, or \
     lower connections_total"
)]
pub struct Capped {
    /// What the config says.
    pub configured: u32,
    /// What is in force.
    pub admitted: u32,
    /// Of these, of one uid.
    pub of_one: u32,
    /// What the process may have.
    pub descriptors: u64,
    /// What it would have to have.
    pub wanted: u64,
}

impl Limits {
    /// With as many connections as a process with `descriptors` has room for, beside what it needs itself for so many
    /// `profiles`: whoever is admitted takes `each` descriptors, and a secret that cannot be opened for want of one is
    /// everybody's loss. At least one connection, since none would be no agent. One uid has half of the room at most: where
    /// it would have all, nobody else could connect.
    #[must_use]
    pub fn within(self, descriptors: u64, profiles: usize, each: u64) -> (Self, Option<Capped>) {
        let profiles = u64::try_from(profiles).unwrap_or(u64::MAX);
        let own = OWN_DESCRIPTORS.saturating_add(profiles.saturating_mul(DESCRIPTORS_PER_PROFILE));
        let configured = self.connections_total;
        let each = each.max(1);
        let room = (descriptors.saturating_sub(own) / each).max(1);
        let admitted = u32::try_from(room).map_or(configured, |room| room.min(configured));
        if admitted == configured {
            return (self, None);
        }
        let wanted = own.saturating_add(each.saturating_mul(u64::from(configured)));
        let of_one = self.connections.min((admitted / 2).max(1));
        let capped = Capped { configured, admitted, of_one, descriptors, wanted };
        (Self { connections_total: admitted, connections: of_one, ..self }, Some(capped))
    }

    /// What is worth a warning.
    pub fn oddities(&self) -> impl Iterator<Item = Oddity> + use<> {
        let odd = [
            (self.connections > self.connections_total, Oddity::ConnectionsAboveTotal),
            (self.watches >= self.streams_per_connection, Oddity::WatchesFillAConnection),
            (self.watches >= self.calls, Oddity::WatchesFillTheCalls),
        ];
        odd.into_iter().filter(|(odd, _)| *odd).map(|(_, which)| which)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_at_least_one_and_at_most_a_million() {
        for good in [1, 2, 4096, 1_000_000] {
            assert_eq!(number(good).map(i64::from), Ok(good));
        }
        for bad in [i64::MIN, -1, 0, 1_000_001, i64::from(u32::MAX), i64::from(u32::MAX) + 2, i64::MAX] {
            assert_eq!(number(bad), Err(NotALimit), "{bad}");
        }
    }

    #[test]
    fn there_are_no_more_connections_than_the_process_has_descriptors_for() {
        let usual = Limits::default();
        for (descriptors, profiles, admitted, wanted) in [
            (524_288, 10, 4096, None),
            (u64::MAX, usize::MAX, 1, Some(u64::MAX)),
            (4096 + 64, 0, 4096, None),
            (4096 + 63, 0, 4095, Some(4096 + 64)),
            (4096 + 64 + 40, 10, 4096, None),
            (4096 + 64 + 39, 10, 4095, Some(4096 + 64 + 40)),
            (1024, 2, 952, Some(4168)),
            (64, 0, 1, Some(4160)),
            (0, 1, 1, Some(4164)),
        ] {
            let (limits, capped) = usual.within(descriptors, profiles, 1);
            let connections = usual.connections.min((admitted / 2).max(1));
            let expected = Limits { connections_total: admitted, connections, ..usual };
            assert_eq!(limits, expected, "{descriptors} {profiles}");
            assert_eq!(capped.map(|capped| capped.wanted), wanted, "{descriptors} {profiles}");
        }
        let few = Limits { connections_total: 1, ..usual };
        assert_eq!(few.within(0, 0, 1), (few, None));
        // One more for each, where its process is held by one.
        for (descriptors, admitted, wanted) in
            [(64 + 2 * 4096, 4096, None), (64 + 2 * 4096 - 1, 4095, Some(64 + 2 * 4096))]
        {
            let (limits, capped) = usual.within(descriptors, 0, 2);
            assert_eq!((limits.connections_total, capped.map(|capped| capped.wanted)), (admitted, wanted));
        }
        let told = usual.within(1024, 2, 1).1.unwrap().to_string();
        assert_eq!(
            told,
            "limits.connections_total is 4096, but this process may have 1024 files open, which is enough for 952 \
             connections: so many are admitted, 476 of one uid; raise LimitNOFILE= of the unit to 4168, or lower \
             connections_total"
        );
    }

    #[test]
    fn the_defaults_are_not_odd_and_each_oddity_is_found_alone() {
        let odd = |limits: Limits| limits.oddities().collect::<Vec<_>>();
        let usual = Limits::default();
        assert!(odd(usual).is_empty());
        assert_eq!(odd(Limits { connections_total: 511, ..usual }), [Oddity::ConnectionsAboveTotal]);
        assert_eq!(odd(Limits { streams_per_connection: 512, ..usual }), [Oddity::WatchesFillAConnection]);
        assert_eq!(odd(Limits { calls: 512, ..usual }), [Oddity::WatchesFillTheCalls]);
    }
}
