//! Waking ten thousand who watch, without anybody else waiting behind all of them.
//!
//! A wake puts a task at the end of the event loop's queue. Ten thousand at once would stand there before the next caller;
//! so those who watch are spread over some bells, and between two bells the loop goes round.

use std::{
    future::poll_fn,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    task::Poll,
};

use tokio::sync::{Notify, futures::Notified};

/// Ten thousand who watch are eighty at a bell.
const BELLS: usize = 128;

/// All bells of one cell.
#[derive(Debug)]
pub(super) struct Bells {
    bells: [Bell; BELLS],
    next: AtomicUsize,
    /// Whether something was published that they have not been rung for.
    owed: AtomicBool,
}

/// Some of those who watch listen to it.
#[derive(Debug)]
pub(super) struct Bell {
    notify: Notify,
    listeners: AtomicUsize,
}

/// One who listens.
pub(super) struct Listener<'a>(&'a Bell);

impl Bells {
    pub(super) fn new() -> Self {
        let bell = || Bell { notify: Notify::new(), listeners: AtomicUsize::new(0) };
        Self {
            bells: std::array::from_fn(|_| bell()),
            next: AtomicUsize::new(0),
            owed: AtomicBool::new(false),
        }
    }

    /// A place at one of them, in turn.
    pub(super) fn place(&self) -> usize {
        self.next.fetch_add(1, SeqCst) % BELLS
    }

    /// Listens at that place. What is published after this is rung for.
    pub(super) fn listen(&self, place: usize) -> Listener<'_> {
        let bell = &self.bells[place % BELLS];
        bell.listeners.fetch_add(1, SeqCst);
        Listener(bell)
    }

    /// There is something to ring for.
    pub(super) fn owe(&self) {
        self.owed.store(true, SeqCst);
    }

    /// Rings those that somebody listens to, one after the other, if there is something to ring for.
    pub(super) async fn ring(&self) {
        if !self.owed.load(SeqCst) {
            return;
        }
        for bell in self.bells.iter().filter(|bell| bell.listeners.load(SeqCst) > 0) {
            bell.notify.notify_waiters();
            // Once for those it has woken, once for the connections that these have written to.
            give_way().await;
            give_way().await;
        }
        self.owed.store(false, SeqCst);
    }

    /// Rings all at once, at the end.
    pub(super) fn ring_out(&self) {
        self.bells.iter().for_each(|bell| bell.notify.notify_waiters());
    }
}

impl<'a> Listener<'a> {
    /// The next ring, from when it is enabled on.
    pub(super) fn rung(&self) -> Notified<'a> {
        self.0.notify.notified()
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        self.0.listeners.fetch_sub(1, SeqCst);
    }
}

/// Goes to the end of the queue. (`tokio::task::yield_now` would have nothing to wait for but the next look at the sockets,
/// which is not behind those who are ready.)
async fn give_way() {
    let mut gave = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut gave, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, sync::Arc};

    use tokio::{sync::mpsc, task::JoinSet};

    use super::*;

    #[derive(Debug, PartialEq)]
    enum Turn {
        Watcher,
        PasserBy,
    }

    /// Enabled before it returns: the caller rings, and nothing is lost.
    async fn listening(bells: &Arc<Bells>, turns: &mpsc::UnboundedSender<Turn>, tasks: &mut JoinSet<()>) {
        let (bells, turns, (ready, is_ready)) =
            (Arc::clone(bells), turns.clone(), tokio::sync::oneshot::channel());
        tasks.spawn(async move {
            let listener = bells.listen(bells.place());
            let mut rung = pin!(listener.rung());
            rung.as_mut().enable();
            ready.send(()).expect("waited for");
            rung.await;
            turns.send(Turn::Watcher).expect("read");
        });
        is_ready.await.expect("it listens");
    }

    #[tokio::test]
    async fn whoever_passes_by_has_a_turn_between_any_two_bells() {
        let bells = Arc::new(Bells::new());
        let (turns, mut taken) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        for _ in 0..3 * BELLS {
            listening(&bells, &turns, &mut tasks).await;
        }
        let mut passers = JoinSet::new();
        passers.spawn(async move {
            while turns.send(Turn::PasserBy).is_ok() {
                give_way().await;
            }
        });
        bells.owe();
        bells.ring().await;
        while tasks.join_next().await.is_some() {}
        passers.shutdown().await;
        let mut waited = (0, 0);
        while let Ok(turn) = taken.try_recv() {
            waited =
                if turn == Turn::Watcher { (waited.0 + 1, waited.1) } else { (0, waited.0.max(waited.1)) };
        }
        assert!((1..=2 * 3).contains(&waited.1), "{} watchers before one who passes by", waited.1);
    }

    #[tokio::test]
    async fn it_rings_once_for_what_it_owes_and_not_for_nobody() {
        let bells = Arc::new(Bells::new());
        let (turns, mut taken) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        listening(&bells, &turns, &mut tasks).await;
        bells.ring().await;
        tokio::task::yield_now().await;
        assert!(taken.try_recv().is_err(), "nothing was published");
        bells.owe();
        bells.ring().await;
        assert_eq!(taken.recv().await, Some(Turn::Watcher));
        tasks.join_next().await.expect("one").expect("it ended");
        assert!(bells.bells.iter().all(|bell| bell.listeners.load(SeqCst) == 0));
        assert!(!bells.owed.load(SeqCst));
    }
}
