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
use crate::{limits::Limits, wiping};

/// Without optimization a call is many times as large.
const SCALE: i64 = if cfg!(debug_assertions) { 16 } else { 1 };
/// What any connection may hold, whatever the others of its uid do.
const ORDINARY: i64 = SCALE * (40 << 10);

/// What may be held. It follows from `[limits]`: who raises them wants more to be held.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// By one connection: 6 KiB for each of its streams.
    connection: i64,
    /// By all of a uid before no new call is begun: 12 KiB for each connection and 2.25 for each call.
    full: i64,
    /// By all of a uid before those that hold the most have to go. What the heap needs around it comes on top.
    uid: i64,
}

impl Bounds {
    fn of(limits: Limits) -> Self {
        let connection = SCALE * (6 << 10) * i64::from(limits.streams_per_connection);
        let full = SCALE * (i64::from(limits.connections) * (12 << 10) + i64::from(limits.calls) * (9 << 8));
        Self { connection, full, uid: full + full / 5 }
    }
}

/// What one connection holds.
#[derive(Debug)]
pub(super) struct Account {
    own: AtomicI64,
    of_uid: Arc<AtomicI64>,
    bounds: Bounds,
}

impl Account {
    /// `of_uid` is what all of the uid's connections hold; `limits` are those of the moment of the connect.
    pub(super) fn new(of_uid: Arc<AtomicI64>, limits: Limits) -> Self {
        Self { own: AtomicI64::new(0), of_uid, bounds: Bounds::of(limits) }
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
        own > self.bounds.connection || (own > ORDINARY && self.of_uid.load(Relaxed) > self.bounds.uid)
    }

    /// Whether there is no room for another call.
    pub(super) fn is_full(&self) -> bool {
        self.of_uid.load(Relaxed) > self.bounds.full
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
        let account = || Account::new(Arc::clone(&uid), Limits::default());
        let of_connection = SCALE * (6 << 20);
        let first = account();
        first.add(of_connection);
        assert!(!first.is_overdrawn() && !first.is_full());
        first.add(1);
        assert!(first.is_overdrawn());
        let others = [account(), account()];
        for other in &others {
            other.add(of_connection);
        }
        let small = account();
        small.add(ORDINARY);
        assert!(small.is_full() && !small.is_overdrawn(), "an ordinary one is never cut for the others");
        small.add(1);
        assert!(small.is_overdrawn());
        drop(first);
        assert!(!small.is_full() && !small.is_overdrawn());
        drop((small, others));
        assert_eq!(uid.load(Relaxed), 0);
    }

    #[test]
    fn what_may_be_held_follows_from_the_limits() {
        let usual = Bounds::of(Limits::default());
        let mib = |bytes: i64| bytes / SCALE / (1 << 20);
        assert_eq!((mib(usual.connection), mib(usual.full), mib(usual.uid)), (6, 15, 18));
        let large = Limits {
            connections: 100_000,
            calls: 1_000_000,
            streams_per_connection: 1_000_000,
            ..Limits::default()
        };
        let large = Bounds::of(large);
        assert!(large.full > 100 * usual.full && large.connection > 900 * usual.connection);
        assert!(Bounds::of(Limits { connections: 1_000_000, calls: 1_000_000, ..Limits::default() }).uid > 0);
    }
}
