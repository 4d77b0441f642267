//! Every task of the daemon, spawned here and nowhere else, and how each ended.

use std::{collections::HashMap, future::Future};

use tokio::task::{AbortHandle, Id, JoinSet};

use crate::token::ProfileName;

/// How a task ended, and which it was.
#[derive(Debug)]
pub enum End<T> {
    /// A task came to its end and left this.
    Done(T),
    /// A profile's rotator panicked.
    RotatorLost(ProfileName),
    /// Another task panicked: the agent cannot go on without it.
    Lost(&'static str),
}

#[derive(Clone, Debug)]
enum Which {
    Rotator(ProfileName),
    Other(&'static str),
}

/// The tasks. Dropping it aborts them all.
#[derive(Debug)]
pub struct Tasks<T> {
    set: JoinSet<T>,
    which: HashMap<Id, Which>,
}

impl<T: Send + 'static> Default for Tasks<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Send + 'static> Tasks<T> {
    /// No task yet.
    pub fn new() -> Self {
        Self { set: JoinSet::new(), which: HashMap::new() }
    }

    /// Spawns a profile's rotator.
    pub fn spawn_rotator(
        &mut self,
        name: &ProfileName,
        task: impl Future<Output = T> + Send + 'static,
    ) -> AbortHandle {
        let handle = self.set.spawn(task);
        self.which.insert(handle.id(), Which::Rotator(name.clone()));
        handle
    }

    /// Spawns anything else.
    pub fn spawn(&mut self, what: &'static str, task: impl Future<Output = T> + Send + 'static) {
        let handle = self.set.spawn(task);
        self.which.insert(handle.id(), Which::Other(what));
    }

    /// Ends them all; when it returns none of them runs any more.
    pub async fn shutdown(&mut self) {
        self.set.shutdown().await;
        self.which.clear();
    }

    /// Waits for the next end; `None` when no task is left. Aborted tasks are passed over. Cancel-safe.
    pub async fn next(&mut self) -> Option<End<T>> {
        loop {
            let (id, end) = match self.set.join_next_with_id().await? {
                Ok((id, value)) => (id, Some(End::Done(value))),
                Err(lost) if lost.is_cancelled() => (lost.id(), None),
                Err(lost) => {
                    let id = lost.id();
                    let end = match self.which.get(&id) {
                        Some(Which::Rotator(name)) => End::RotatorLost(name.clone()),
                        Some(Which::Other(what)) => End::Lost(what),
                        None => End::Lost("unknown"),
                    };
                    (id, Some(end))
                }
            };
            self.which.remove(&id);
            if let Some(end) = end {
                return Some(end);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_end_is_an_event_and_says_whose_it_was() {
        let mut tasks = Tasks::new();
        let name = ProfileName::parse("bloom").unwrap();
        tasks.spawn("server", async { 7 });
        assert!(matches!(tasks.next().await, Some(End::Done(7))));
        tasks.spawn_rotator(&name, async { panic!("on purpose") });
        assert!(matches!(tasks.next().await, Some(End::RotatorLost(lost)) if lost == name));
        tasks.spawn("server", async { panic!("on purpose") });
        assert!(matches!(tasks.next().await, Some(End::Lost("server"))));
        tasks.spawn_rotator(&name, std::future::pending()).abort();
        assert!(tasks.next().await.is_none() && tasks.which.is_empty());
    }

    #[tokio::test]
    async fn a_shutdown_waits_until_the_tasks_have_let_go() {
        let held = std::sync::Arc::new(());
        let mut tasks = Tasks::<()>::new();
        let theirs = std::sync::Arc::clone(&held);
        tasks.spawn("server", async move {
            let _held = theirs;
            std::future::pending::<()>().await;
        });
        tasks.shutdown().await;
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
        assert!(tasks.next().await.is_none() && tasks.which.is_empty());
    }
}
