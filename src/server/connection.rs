//! One open connection, as its calls see it. It is put into every request's extensions as an `Arc<Connection>`.

use std::{
    any::Any,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use super::limits::{Book, WatchPermit};
use crate::{access::Peer, limits::Exceeded};

/// See the module.
pub struct Connection {
    id: u64,
    peer: Peer,
    book: Arc<Book>,
    calls: AtomicU32,
    kept: Mutex<Option<Arc<dyn Any + Send + Sync>>>,
}

impl Connection {
    pub(super) fn new(id: u64, peer: Peer, book: Arc<Book>) -> Arc<Self> {
        Arc::new(Self { id, peer, book, calls: AtomicU32::new(0), kept: Mutex::new(None) })
    }

    /// Its number; no two connections of a run have the same.
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Who connected, by the kernel's word at accept.
    pub const fn peer(&self) -> &Peer {
        &self.peer
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

    pub(super) fn open_call(self: &Arc<Self>) -> Result<CallPermit, Exceeded> {
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
    use crate::limits::Limits;

    fn connection(limits: Limits) -> Arc<Connection> {
        let peer = Peer { uid: 7, gid: 7, groups: Vec::new(), pid: 1, unit: None };
        Connection::new(1, peer, Book::new(limits))
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
