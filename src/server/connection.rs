//! One open connection, as its calls see it. It is put into every request's extensions as an `Arc<Connection>`.

use std::{
    any::Any,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::sync::OnceCell;

use super::{
    account::Account,
    limits::{Book, Standing, WatchPermit},
    turns::{Seat, Waste},
};
use crate::{
    access::{Peer, Placement, SliceName},
    limits::{Exceeded, Mention},
    units::Origin,
};

/// See the module.
pub struct Connection {
    id: u64,
    peer: Peer,
    /// Until it is known where the peer belongs.
    origin: Mutex<Option<Arc<Origin>>>,
    placed: OnceCell<Placed>,
    book: Arc<Book>,
    calls: AtomicU32,
    /// Calls since the start; it wraps.
    begun: AtomicU32,
    standing: Arc<Standing>,
    account: Account,
    kept: Mutex<Option<Arc<dyn Any + Send + Sync>>>,
}

/// Where a peer belongs.
enum Placed {
    /// To no unit.
    Nowhere,
    /// There; and the peer with that unit, for those to whom the slice is one where units count. In a box: few are.
    There(Box<(Placement, Peer)>),
}

impl Connection {
    pub(super) fn new(
        id: u64,
        peer: Peer,
        origin: Origin,
        book: Arc<Book>,
        standing: Arc<Standing>,
    ) -> Arc<Self> {
        let (origin, placed) = (Mutex::new(Some(Arc::new(origin))), OnceCell::new());
        let account = Account::new(Arc::clone(&standing.held), book.limits());
        let (calls, begun) = (AtomicU32::new(0), AtomicU32::new(0));
        let kept = Mutex::new(None);
        Arc::new(Self { id, peer, origin, placed, book, calls, begun, standing, account, kept })
    }

    /// Its number; no two connections of a run have the same.
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Who connected, by the kernel's word at accept; without its unit.
    pub const fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The same, with its unit if that is known and lies in one of `slices`.
    pub fn peer_in(&self, slices: &[SliceName]) -> &Peer {
        match self.placed.get() {
            Some(Placed::There(there)) if there.0.unit_within(slices).is_some() => &there.1,
            _ => &self.peer,
        }
    }

    /// Whether it is known where the peer belongs, be it nowhere.
    pub fn is_placed(&self) -> bool {
        self.placed.initialized()
    }

    /// Finds out where the peer belongs, by asking once with where it came from, however many calls want to know. An error
    /// is not kept: the next to want it asks again.
    pub async fn place<E, F>(&self, ask: impl FnOnce(Arc<Origin>) -> F + Send) -> Result<(), E>
    where
        E: Send,
        F: Future<Output = Result<Option<Placement>, E>> + Send,
    {
        let placed = self.placed.get_or_try_init(|| async {
            let origin = self.origin.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Some(origin) = origin else { return Ok(Placed::Nowhere) };
            Ok(match ask(origin).await? {
                Some(placement) => {
                    let peer = Peer { unit: Some(placement.unit.clone()), ..self.peer.clone() };
                    Placed::There(Box::new((placement, peer)))
                }
                None => Placed::Nowhere,
            })
        });
        placed.await?;
        // Its descriptor, if it has one, is free from here on.
        let _done = self.origin.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(())
    }

    /// Calls that are open on it.
    pub fn calls(&self) -> u32 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Counts one more watch of this uid. A watch is a call too, and was counted as one already.
    pub fn watch(&self) -> Result<WatchPermit, Exceeded> {
        self.book.watch(self.peer.uid)
    }

    /// What the service keeps for this connection, if that is a `T`: the decisions made for it and the version of the
    /// config they belong to, so that each is made once.
    pub fn kept<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
        kept?.downcast().ok()
    }

    /// Keeps this in the place of what was kept.
    pub fn keep<T: Any + Send + Sync>(&self, value: Arc<T>) {
        // The old one is dropped after the lock.
        let _old = self.kept.lock().unwrap_or_else(PoisonError::into_inner).replace(value);
    }

    /// The memory that it holds.
    pub(super) const fn account(&self) -> &Account {
        &self.account
    }

    /// Its place among the connections of its uid.
    pub(super) fn seat(&self) -> Seat {
        Seat::new(self.id, Arc::clone(&self.standing.turns))
    }

    /// It does not want to read now.
    pub(super) fn pass_turn(&self) {
        self.standing.turns.pass(self.id);
    }

    /// Calls since the start, refused ones too; it wraps.
    pub(super) fn begun(&self) -> u32 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Charges its uid with work that led to no answer.
    pub(super) fn charge(&self, waste: Waste) {
        let Some(at) = self.standing.turns.charge(waste) else { return };
        let Peer { uid, pid, .. } = self.peer;
        if self.book.mention(uid, Mention::Slowed, at) {
            tracing::warn!(
                uid,
                pid,
                "the uid is served slowly: it has the agent work for calls that it gives up or may not make"
            );
        }
    }

    pub(super) fn open_call(self: &Arc<Self>) -> Result<CallPermit, Exceeded> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        if self.account.is_full() {
            self.book.count_refused();
            return Err(Exceeded::Calls);
        }
        self.book.open_call(self.peer.uid)?;
        self.calls.fetch_add(1, Ordering::Relaxed);
        Ok(CallPermit { connection: Arc::clone(self) })
    }

    pub(super) const fn book(&self) -> &Arc<Book> {
        &self.book
    }
}

/// What is kept belongs to the service and is not printed.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.id).field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// One open call.
#[derive(Debug)]
pub(super) struct CallPermit {
    connection: Arc<Connection>,
}

impl CallPermit {
    pub(super) const fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for CallPermit {
    fn drop(&mut self) {
        self.connection.calls.fetch_sub(1, Ordering::Relaxed);
        self.connection.book.close_call(self.connection.peer.uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::UnitName,
        clock::{Clock, SystemClock},
        limits::Limits,
    };

    fn connection(limits: Limits) -> Arc<Connection> {
        let peer = Peer { uid: 7, gid: 7, groups: Vec::new(), pid: 1, unit: None };
        let book = Book::new(limits);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let standing = book.standing(7, &clock);
        Connection::new(1, peer, Origin::Gone, book, standing)
    }

    #[tokio::test]
    async fn where_a_peer_belongs_is_asked_until_it_is_answered_and_then_never_again() {
        let connection = connection(Limits::default());
        let slices = |text| vec![SliceName::parse(text).expect("a slice")];
        let placement = Placement {
            unit: UnitName::parse("loans.service").expect("a unit"),
            slice: SliceName::parse("system-a.slice").expect("a slice"),
        };
        let held = Arc::downgrade(connection.origin.lock().expect("whole").as_ref().expect("an origin"));
        assert_eq!(connection.place(|_| async { Err::<Option<Placement>, _>("down") }).await, Err("down"));
        assert!(!connection.is_placed() && held.strong_count() == 1);
        assert_eq!(connection.peer_in(&slices("system.slice")).unit, None);
        let answer = placement.clone();
        assert_eq!(connection.place(|_| async { Ok::<_, &str>(Some(answer)) }).await, Ok(()));
        assert_eq!(connection.place(|_| async { Err::<Option<Placement>, _>("asked again") }).await, Ok(()));
        // A pidfd is closed then.
        assert!(connection.is_placed() && held.strong_count() == 0);
        let unit = |text| connection.peer_in(&slices(text)).unit.clone();
        assert_eq!(unit("system.slice"), Some(placement.unit.clone()));
        assert_eq!(unit("system-a.slice"), Some(placement.unit));
        assert_eq!((unit("apps.slice"), connection.peer().unit.clone()), (None, None));
    }

    #[test]
    fn calls_are_counted_for_the_connection_and_for_the_uid() {
        let connection = connection(Limits { calls: 2, ..Limits::default() });
        let first = connection.open_call().expect("granted");
        let second = connection.open_call().expect("granted");
        assert_eq!(connection.open_call().expect_err("refused"), Exceeded::Calls);
        assert_eq!((connection.calls(), connection.book.census().open.calls), (2, 2));
        drop(first);
        assert_eq!((connection.calls(), connection.book.census().open.calls), (1, 1));
        drop(second);
        assert_eq!((connection.calls(), connection.book.census().open.calls), (0, 0));
    }

    #[test]
    fn what_is_kept_comes_back_as_what_it_was() {
        let connection = connection(Limits::default());
        assert_eq!(connection.kept::<String>(), None);
        connection.keep(Arc::new(String::from("version 1")));
        assert_eq!(connection.kept::<u32>(), None);
        connection.keep(Arc::new(String::from("version 2")));
        assert_eq!(*connection.kept::<String>().expect("kept"), "version 2");
    }
}
