//! How much memory a connection makes the agent hold, and all connections of a uid together, whatever it is made of:
//! header fields, bodies, tables, buffers, calls.
//!
//! Nobody counts these: every poll of a connection's tasks is weighed, by what this thread has allocated less what it has
//! freed ([`crate::wiping::held`]). What one of the tasks allocates and another frees comes out even, because both
//! are the connection's. What is allocated here and freed by somebody else (a line of the log) stays on the account until
//! the connection ends: hundreds of bytes now and then, where the bounds are MiB.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use super::connection::Connection;
use crate::wiping;

/// Without optimization a call is many times as large.
const SCALE: i64 = if cfg!(debug_assertions) { 8 } else { 1 };
/// What one connection may hold.
const MOST_OF_CONNECTION: i64 = SCALE * (6 << 20);
/// What the connections of a uid may hold. What the heap needs around it comes on top.
const MOST_OF_UID: i64 = SCALE * (18 << 20);
/// From here on no new call is begun.
const FULL: i64 = SCALE * (15 << 20);
/// What any connection may hold, whatever the others of its uid do.
const ORDINARY: i64 = SCALE * (40 << 10);

/// What one connection holds.
#[derive(Debug)]
pub(super) struct Account {
    own: AtomicI64,
    of_uid: Arc<AtomicI64>,
}

impl Account {
    /// `of_uid` is what all of the uid's connections hold.
    pub(super) const fn new(of_uid: Arc<AtomicI64>) -> Self {
        Self { own: AtomicI64::new(0), of_uid }
    }

    /// Does something on the connection's account.
    pub(super) fn weigh<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = wiping::held();
        let done = work();
        self.add(wiping::held() - before);
        done
    }

    /// Does something whose memory is not the connection's, in the midst of what is weighed.
    pub(super) fn unweighed<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = wiping::held();
        let done = work();
        self.add(before - wiping::held());
        done
    }

    fn add(&self, bytes: i64) {
        if bytes != 0 {
            self.own.fetch_add(bytes, Relaxed);
            self.of_uid.fetch_add(bytes, Relaxed);
        }
    }

    /// Whether the connection has to go.
    pub(super) fn is_overdrawn(&self) -> bool {
        let own = self.own.load(Relaxed);
        own > MOST_OF_CONNECTION || (own > ORDINARY && self.of_uid.load(Relaxed) > MOST_OF_UID)
    }

    /// Whether there is no room for another call.
    pub(super) fn is_full(&self) -> bool {
        self.of_uid.load(Relaxed) > FULL
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.of_uid.fetch_sub(*self.own.get_mut(), Relaxed);
    }
}

/// A task of a connection, on its account. What it is made of counts as long as it lives; the runtime's own box for it
/// is freed when nobody looks, and is not counted ([`Account::unweighed`]).
pub(super) struct Weighed<F> {
    connection: Arc<Connection>,
    /// None when it has ended: what it held is freed on the account too.
    task: Option<F>,
}

impl<F> Weighed<F> {
    /// What the runtime needs for a task beside the future.
    const SIZE: i64 = size_of::<Self>() as i64 + 128;

    pub(super) fn new(connection: Arc<Connection>, task: F) -> Self {
        connection.account().add(Self::SIZE);
        Self { connection, task: Some(task) }
    }
}

impl<F: Future + Unpin> Future for Weighed<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { connection, task } = self.get_mut();
        connection.account().weigh(|| {
            let Some(running) = task else { return Poll::Ready(()) };
            let ended = Pin::new(running).poll(cx).map(drop);
            if ended.is_ready() {
                *task = None;
            }
            ended
        })
    }
}

impl<F> Drop for Weighed<F> {
    fn drop(&mut self) {
        let task = self.task.take();
        let account = self.connection.account();
        account.weigh(|| drop(task));
        account.add(-Self::SIZE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_has_a_bound_and_a_uid_another_and_both_end_with_the_connection() {
        let uid = Arc::new(AtomicI64::new(0));
        let first = Account::new(Arc::clone(&uid));
        first.add(MOST_OF_CONNECTION);
        assert!(!first.is_overdrawn() && !first.is_full());
        first.add(1);
        assert!(first.is_overdrawn());
        let others: Vec<_> = (0..2).map(|_| Account::new(Arc::clone(&uid))).collect();
        for other in &others {
            other.add(MOST_OF_CONNECTION);
        }
        let small = Account::new(Arc::clone(&uid));
        small.add(ORDINARY);
        assert!(small.is_full() && !small.is_overdrawn(), "an ordinary one is never cut for the others");
        small.add(1);
        assert!(small.is_overdrawn());
        drop(first);
        assert!(!small.is_full() && !small.is_overdrawn());
        drop((small, others));
        assert_eq!(uid.load(Relaxed), 0);
    }
}
