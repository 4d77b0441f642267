//! The book of every uid, shared by all connections, and the permits that keep it true: what was granted is given back
//! when its permit is dropped, whatever ended it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use super::turns::Turns;
use crate::{
    clock::{Clock, Timestamp},
    limits::{Exceeded, Ledger, Limits, Mention, Totals},
};

/// The book. The daemon makes one, gives it to the server, puts new limits into it at a reload, and reads what the metrics
/// say of connections.
#[derive(Debug)]
pub struct Book {
    /// Held for a few comparisons, never across an await.
    ledger: Mutex<Ledger>,
    /// Of every uid that has a connection, or owes something.
    standings: Mutex<Standings>,
    refused: AtomicU64,
    cut: AtomicU64,
    panics: AtomicU64,
    starved: AtomicBool,
}

/// What the connections of one uid have in common.
#[derive(Debug)]
pub(super) struct Standing {
    /// When each may read.
    pub(super) turns: Arc<Turns>,
    /// Bytes that all of them hold.
    pub(super) held: Arc<AtomicI64>,
}

#[derive(Debug)]
struct Standings {
    of: BTreeMap<u32, Arc<Standing>>,
    sweep_at: usize,
}

/// Below so many uids nobody looks for those that have gone.
const SWEEP_FROM: usize = 64;

/// What the metrics say of the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// What is open now.
    pub open: Totals,
    /// Connections and calls refused since the start.
    pub refused: u64,
    /// Connections cut since the start: floods, and clients that never said what they want.
    pub cut: u64,
    /// Handlers that panicked since the start.
    pub panics: u64,
    /// Whether accept(2) lacks descriptors or memory now: a degraded mode.
    pub starved: bool,
}

impl Book {
    /// An empty book.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            ledger: Mutex::new(Ledger::new(limits)),
            standings: Mutex::new(Standings { of: BTreeMap::new(), sweep_at: SWEEP_FROM }),
            refused: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            starved: AtomicBool::new(false),
        })
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.ledger().limits()
    }

    /// Puts other limits in force. What is open beyond them stays open, and `streams_per_connection` holds for
    /// connections to come: HTTP/2 has told the others.
    pub fn replace(&self, limits: Limits) {
        self.ledger().replace(limits);
    }

    /// What the metrics say.
    pub fn census(&self) -> Census {
        Census {
            open: self.ledger().totals(),
            refused: self.refused.load(Ordering::Relaxed),
            cut: self.cut.load(Ordering::Relaxed),
            panics: self.panics.load(Ordering::Relaxed),
            starved: self.starved.load(Ordering::Relaxed),
        }
    }

    pub(super) fn connect(self: &Arc<Self>, uid: u32, now: Timestamp) -> Result<ConnectionPermit, Exceeded> {
        self.granted(|ledger| ledger.connect(uid, now))
            .map(|()| ConnectionPermit { book: Arc::clone(self), uid })
    }

    /// How a uid stands. As long as it has a connection, or owes something, it is the same.
    pub(super) fn standing(&self, uid: u32, clock: &Arc<dyn Clock>) -> Arc<Standing> {
        let mut standings = self.standings.lock().unwrap_or_else(PoisonError::into_inner);
        if standings.of.len() >= standings.sweep_at {
            standings.of.retain(|_, standing| Arc::strong_count(standing) > 1 || !standing.turns.is_even());
            standings.sweep_at = SWEEP_FROM.max(standings.of.len() * 2);
        }
        let made = || {
            let held = Arc::default();
            Arc::new(Standing { turns: Turns::new(Arc::clone(clock)), held })
        };
        Arc::clone(standings.of.entry(uid).or_insert_with(made))
    }

    pub(super) fn open_call(&self, uid: u32) -> Result<(), Exceeded> {
        self.granted(|ledger| ledger.open_call(uid))
    }

    pub(super) fn close_call(&self, uid: u32) {
        self.ledger().close_call(uid);
    }

    pub(super) fn watch(self: &Arc<Self>, uid: u32) -> Result<WatchPermit, Exceeded> {
        self.granted(|ledger| ledger.open_watch(uid)).map(|()| WatchPermit { book: Arc::clone(self), uid })
    }

    pub(super) fn mention(&self, uid: u32, what: Mention, now: Timestamp) -> bool {
        self.ledger().mention(uid, what, now)
    }

    pub(super) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_cut(&self) {
        self.cut.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes whether accept(2) is starved; the answer is what it was before.
    pub(super) fn starve(&self, starved: bool) -> bool {
        self.starved.swap(starved, Ordering::Relaxed)
    }

    fn granted(&self, ask: impl FnOnce(&mut Ledger) -> Result<(), Exceeded>) -> Result<(), Exceeded> {
        let answer = ask(&mut self.ledger());
        if answer.is_err() {
            self.count_refused();
        }
        answer
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Nothing in there panics; if it did, counts would be better than none.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One open connection.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    book: Arc<Book>,
    uid: u32,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.book.ledger().disconnect(self.uid);
    }
}

/// One open watch: a stream that stays open and says something now and then. Keep it as long as that.
#[derive(Debug)]
pub struct WatchPermit {
    book: Arc<Book>,
    uid: u32,
}

impl Drop for WatchPermit {
    fn drop(&mut self) {
        self.book.ledger().close_watch(self.uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::SystemClock, server::turns::Waste};

    #[test]
    fn a_uid_without_connections_and_debts_is_forgotten_and_others_are_not() {
        let (book, clock) = (Book::new(Limits::default()), Arc::new(SystemClock) as Arc<dyn Clock>);
        let kept = book.standing(7, &clock);
        book.standing(8, &clock).turns.charge(Waste::Calls(u32::MAX));
        for uid in 1_000..2_000 {
            book.standing(uid, &clock);
        }
        let standings = book.standings.lock().expect("whole");
        assert!(standings.of.len() <= SWEEP_FROM);
        assert!(Arc::ptr_eq(&standings.of[&7], &kept));
        assert!(standings.of.contains_key(&8), "in disgrace, and it would connect again");
    }

    #[test]
    fn permits_give_back_what_they_took_and_refusals_are_counted() {
        let now = Timestamp::default();
        let book = Book::new(Limits { connections: 1, watches: 1, ..Limits::default() });
        let connection = book.connect(7, now).expect("granted");
        assert_eq!(book.connect(7, now).expect_err("refused"), Exceeded::Connections);
        let watch = book.watch(7).expect("granted");
        assert_eq!(book.watch(7).expect_err("refused"), Exceeded::Watches);
        assert_eq!(book.census().open, Totals { connections: 1, calls: 0, watches: 1 });
        drop((connection, watch));
        assert_eq!(book.census(), Census { refused: 2, ..Census::default() });
        assert!(book.connect(7, now).is_ok());
    }
}
