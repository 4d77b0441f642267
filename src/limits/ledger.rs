//! The book that is kept of every uid: how many connections, calls and watches are open, and how fast it connects.
//!
//! - It counts and compares, nothing else. Who holds what open is the server's business: whatever was granted here is
//!   given back here, once.
//! - A uid that has nothing open and made no noise lately is forgotten, so the book is as large as the crowd.
//! - New limits hold from the next question on; what is open beyond them stays open.

use std::{collections::BTreeMap, time::Duration};

use super::Limits;
use crate::clock::Timestamp;

/// How long one mention of a uid keeps the next one of the same kind out of the log.
const MENTION_EVERY: Duration = Duration::from_secs(60);

/// Below so many entries nobody looks for forgotten ones.
const SWEEP_FROM: usize = 64;

/// The limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exceeded {
    /// `connections_total`.
    ConnectionsTotal,
    /// `connections`.
    Connections,
    /// `connects_per_second`.
    ConnectRate,
    /// `calls`.
    Calls,
    /// `watches`.
    Watches,
}

impl Exceeded {
    /// The key in `[limits]`.
    pub const fn key(self) -> &'static str {
        match self {
            Self::ConnectionsTotal => "connections_total",
            Self::Connections => "connections",
            Self::ConnectRate => "connects_per_second",
            Self::Calls => "calls",
            Self::Watches => "watches",
        }
    }

    /// When it is worth trying again (google.rpc.RetryInfo). Calls come and go in milliseconds; a watch is given up only
    /// by its holder.
    pub const fn retry_after(self) -> Duration {
        match self {
            Self::ConnectionsTotal | Self::Connections | Self::ConnectRate | Self::Calls => {
                Duration::from_secs(1)
            }
            Self::Watches => Duration::from_secs(10),
        }
    }
}

/// What the log says of a uid, each at most once a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mention {
    /// A connection was refused.
    Refused,
    /// A connection was cut.
    Cut,
    /// It wastes the agent's time and is served slowly.
    Slowed,
}

/// What is open, over all uids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Connections.
    pub connections: u32,
    /// Calls, watches among them.
    pub calls: u32,
    /// Watches.
    pub watches: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    limits: Limits,
    entries: BTreeMap<u32, Entry>,
    totals: Totals,
    sweep_at: usize,
}

#[derive(Debug, Default)]
struct Entry {
    connections: u32,
    calls: u32,
    watches: u32,
    /// The token bucket as one number (GCRA, ITU-T I.371): the moment at which it is full again.
    full_at: Timestamp,
    refused_mentioned: Option<Timestamp>,
    cut_mentioned: Option<Timestamp>,
    slowed_mentioned: Option<Timestamp>,
}

impl Ledger {
    /// An empty book.
    pub const fn new(limits: Limits) -> Self {
        let totals = Totals { connections: 0, calls: 0, watches: 0 };
        Self { limits, entries: BTreeMap::new(), totals, sweep_at: SWEEP_FROM }
    }

    /// The limits in force.
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Puts other limits in force.
    pub const fn replace(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// What is open.
    pub const fn totals(&self) -> Totals {
        self.totals
    }

    /// Grants a connection; [`Self::disconnect`] gives it back. A refusal costs the uid nothing.
    pub fn connect(&mut self, uid: u32, now: Timestamp) -> Result<(), Exceeded> {
        let limits = self.limits;
        if self.totals.connections >= limits.connections_total {
            return Err(Exceeded::ConnectionsTotal);
        }
        self.sweep(now);
        let entry = self.entries.entry(uid).or_default();
        if entry.connections >= limits.connections {
            return Err(Exceeded::Connections);
        }
        entry.full_at =
            charged(entry.full_at, limits.connects_per_second, now).ok_or(Exceeded::ConnectRate)?;
        entry.connections += 1;
        self.totals.connections += 1;
        Ok(())
    }

    /// Takes a connection back.
    pub fn disconnect(&mut self, uid: u32) {
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.connections = entry.connections.saturating_sub(1);
            self.totals.connections = self.totals.connections.saturating_sub(1);
        }
    }

    /// Grants a call; [`Self::close_call`] gives it back.
    pub fn open_call(&mut self, uid: u32) -> Result<(), Exceeded> {
        let entry = self.entries.entry(uid).or_default();
        if entry.calls >= self.limits.calls {
            return Err(Exceeded::Calls);
        }
        entry.calls += 1;
        self.totals.calls += 1;
        Ok(())
    }

    /// Takes a call back.
    pub fn close_call(&mut self, uid: u32) {
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.calls = entry.calls.saturating_sub(1);
            self.totals.calls = self.totals.calls.saturating_sub(1);
        }
    }

    /// Grants a watch; [`Self::close_watch`] gives it back.
    pub fn open_watch(&mut self, uid: u32) -> Result<(), Exceeded> {
        let entry = self.entries.entry(uid).or_default();
        if entry.watches >= self.limits.watches {
            return Err(Exceeded::Watches);
        }
        entry.watches += 1;
        self.totals.watches += 1;
        Ok(())
    }

    /// Takes a watch back.
    pub fn close_watch(&mut self, uid: u32) {
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.watches = entry.watches.saturating_sub(1);
            self.totals.watches = self.totals.watches.saturating_sub(1);
        }
    }

    /// Whether the log should say this of the uid now; asking marks it as said.
    pub fn mention(&mut self, uid: u32, what: Mention, now: Timestamp) -> bool {
        self.sweep(now);
        let entry = self.entries.entry(uid).or_default();
        let last = match what {
            Mention::Refused => &mut entry.refused_mentioned,
            Mention::Cut => &mut entry.cut_mentioned,
            Mention::Slowed => &mut entry.slowed_mentioned,
        };
        let due = last.is_none_or(|last| now.since(last) >= MENTION_EVERY);
        if due {
            *last = Some(now);
        }
        due
    }

    /// Forgets whom nothing is known of any more: each time the book has doubled since the last look, so that an entry
    /// costs a constant share of looks.
    fn sweep(&mut self, now: Timestamp) {
        if self.entries.len() < self.sweep_at {
            return;
        }
        self.entries.retain(|_, entry| !entry.is_forgettable(now));
        self.sweep_at = SWEEP_FROM.max(self.entries.len() * 2);
    }
}

impl Entry {
    fn is_forgettable(&self, now: Timestamp) -> bool {
        let quiet = |mention: Option<Timestamp>| mention.is_none_or(|last| now.since(last) >= MENTION_EVERY);
        self.connections == 0
            && self.calls == 0
            && self.watches == 0
            && self.full_at <= now
            && quiet(self.refused_mentioned)
            && quiet(self.cut_mentioned)
            && quiet(self.slowed_mentioned)
    }
}

/// Takes one token out of a bucket that holds two seconds' worth: when it will be full again, or nothing if it is empty.
/// A rate of zero admits nobody.
pub(crate) fn charged(full_at: Timestamp, per_second: u32, now: Timestamp) -> Option<Timestamp> {
    let one = Duration::from_secs(1).checked_div(per_second)?;
    let full_at = full_at.max(now) + one;
    (full_at.since(now) <= one.saturating_mul(per_second.saturating_mul(2))).then_some(full_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: u32 = 1000;
    const BOB: u32 = 1001;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_boot(Duration::from_millis(1_000_000 + millis))
    }

    fn small() -> Limits {
        Limits {
            connections_total: 4,
            connections: 3,
            streams_per_connection: 1024,
            calls: 2,
            watches: 1,
            connects_per_second: 100,
        }
    }

    #[test]
    fn a_uid_at_its_cap_takes_nothing_from_another() {
        let mut book = Ledger::new(small());
        for _ in 0..3 {
            assert_eq!(book.connect(ALICE, at(0)), Ok(()));
        }
        assert_eq!(book.connect(ALICE, at(0)), Err(Exceeded::Connections));
        assert_eq!(book.connect(BOB, at(0)), Ok(()));
        assert_eq!(book.connect(BOB, at(0)), Err(Exceeded::ConnectionsTotal));
        book.disconnect(ALICE);
        assert_eq!(book.connect(BOB, at(0)), Ok(()));
        assert_eq!(book.totals().connections, 4);
    }

    #[test]
    fn calls_and_watches_are_counted_apart_and_come_back() {
        let mut book = Ledger::new(small());
        assert_eq!(book.open_call(ALICE), Ok(()));
        assert_eq!(book.open_call(ALICE), Ok(()));
        assert_eq!(book.open_call(ALICE), Err(Exceeded::Calls));
        assert_eq!(book.open_call(BOB), Ok(()));
        assert_eq!(book.open_watch(ALICE), Ok(()));
        assert_eq!(book.open_watch(ALICE), Err(Exceeded::Watches));
        assert_eq!(book.totals(), Totals { connections: 0, calls: 3, watches: 1 });
        book.close_call(ALICE);
        book.close_watch(ALICE);
        assert_eq!(book.open_call(ALICE), Ok(()));
        assert_eq!(book.open_watch(ALICE), Ok(()));
    }

    #[test]
    fn giving_back_more_than_was_granted_does_not_wrap() {
        let mut book = Ledger::new(small());
        book.disconnect(ALICE);
        book.close_call(ALICE);
        book.close_watch(ALICE);
        assert_eq!(book.totals(), Totals::default());
        assert_eq!(book.connect(ALICE, at(0)), Ok(()));
    }

    #[test]
    fn the_connect_rate_has_a_burst_of_two_seconds() {
        let limits =
            Limits { connections: 10_000, connections_total: 10_000, connects_per_second: 200, ..small() };
        let mut book = Ledger::new(limits);
        let burst = (0..1000).filter(|_| book.connect(ALICE, at(0)).is_ok()).count();
        assert_eq!(burst, 400);
        assert_eq!(book.connect(ALICE, at(4)), Err(Exceeded::ConnectRate));
        assert_eq!(book.connect(ALICE, at(5)), Ok(()), "one token every 5 ms");
        assert_eq!(book.connect(ALICE, at(5)), Err(Exceeded::ConnectRate));
        let second = (0..1000).filter(|_| book.connect(ALICE, at(1005)).is_ok()).count();
        assert_eq!(second, 200, "refusals cost nothing");
        assert_eq!(book.connect(BOB, at(1005)), Ok(()), "each uid has a bucket of its own");
    }

    #[test]
    fn a_rate_of_zero_admits_nobody() {
        let mut book = Ledger::new(Limits { connects_per_second: 0, ..small() });
        assert_eq!(book.connect(ALICE, at(0)), Err(Exceeded::ConnectRate));
    }

    #[test]
    fn new_limits_hold_from_the_next_question_on() {
        let mut book = Ledger::new(small());
        for _ in 0..3 {
            assert_eq!(book.connect(ALICE, at(0)), Ok(()));
        }
        book.replace(Limits { connections: 1, ..small() });
        assert_eq!(book.totals().connections, 3, "nothing is thrown out");
        assert_eq!(book.connect(ALICE, at(0)), Err(Exceeded::Connections));
        book.replace(Limits { connections: 4, ..small() });
        assert_eq!(book.connect(ALICE, at(0)), Ok(()));
    }

    #[test]
    fn the_log_hears_of_a_uid_once_a_minute_for_each_kind() {
        let mut book = Ledger::new(small());
        assert!(book.mention(ALICE, Mention::Refused, at(0)));
        assert!(!book.mention(ALICE, Mention::Refused, at(59_999)));
        assert!(book.mention(ALICE, Mention::Cut, at(59_999)));
        assert!(book.mention(BOB, Mention::Refused, at(59_999)));
        assert!(book.mention(ALICE, Mention::Refused, at(60_000)));
    }

    #[test]
    fn idle_uids_are_forgotten_and_busy_ones_are_not() {
        let limits = Limits { connections_total: 1_000_000, ..small() };
        let mut book = Ledger::new(limits);
        assert_eq!(book.connect(7, at(0)), Ok(()));
        for uid in 100..100_000 {
            // Each long after the one before, so that its bucket is full again.
            let now = at(u64::from(uid) * 1000);
            assert_eq!(book.connect(uid, now), Ok(()));
            book.disconnect(uid);
            assert!(book.entries.len() <= SWEEP_FROM, "{} entries", book.entries.len());
        }
        assert_eq!(book.entries[&7].connections, 1);
        assert_eq!(book.totals().connections, 1);
    }

    #[test]
    fn a_bucket_is_not_forgotten_before_it_is_full() {
        let mut book =
            Ledger::new(Limits { connections_total: 1_000_000, connects_per_second: 1, ..small() });
        for _ in 0..2 {
            assert_eq!(book.connect(ALICE, at(0)), Ok(()));
            book.disconnect(ALICE);
        }
        for uid in 10_000..11_000 {
            assert_eq!(book.connect(uid, at(0)), Ok(()));
            book.disconnect(uid);
        }
        assert_eq!(book.connect(ALICE, at(0)), Err(Exceeded::ConnectRate));
    }
}
