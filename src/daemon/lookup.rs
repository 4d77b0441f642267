//! Looking up again who the users and groups of the rules are: one look-up at a time, for the config in force.

use tokio::sync::watch;

use super::{Daemon, Ended};
use crate::{
    access::{Directory, Lookup},
    names,
};

/// For which config a look-up was begun: the number of commits before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked(u64);

/// Look-ups asked for and done.
pub(super) struct Queue {
    is_under_way: bool,
    done: watch::Sender<u64>,
}

impl Queue {
    pub(super) fn new(done: watch::Sender<u64>) -> Self {
        Self { is_under_way: false, done }
    }
}

impl Daemon {
    /// Begins a look-up, unless one is under way.
    pub(super) fn look_names_up(&mut self) {
        if self.look_ups.is_under_way {
            return;
        }
        self.look_ups.is_under_way = true;
        let wanted = self.config.names();
        let asked = Asked(self.commits);
        self.tasks.spawn("look-up of names", async move {
            // After a look-up that panics, what was known stays.
            let found = tokio::task::spawn_blocking(move || names::resolve(&wanted)).await;
            Ended::Names(asked, found.ok())
        });
    }

    /// A look-up has come back. One that was begun for an earlier config is older than what is in force: it is begun anew.
    pub(super) fn names_found(&mut self, asked: Asked, found: Option<Lookup>) {
        self.look_ups.is_under_way = false;
        if asked != Asked(self.commits) {
            self.look_names_up();
            return;
        }
        let directory = found.map_or_else(|| self.directory.clone(), |found| self.directory_after(found));
        if directory != self.directory {
            self.directory = directory;
            self.swap();
            tracing::info!(
                "users or groups of the rules have changed on this host; every caller is judged anew"
            );
        }
        self.look_ups.done.send_modify(|done| *done += 1);
    }

    /// What is known after a look-up. What could not be asked is not thereby gone: a directory service that is down takes
    /// nobody's permission away.
    pub(super) fn directory_after(&self, found: Lookup) -> Directory {
        let mut directory = found.directory;
        for name in found.failed.keys() {
            if let Some(id) = self.directory.id(name) {
                // It was fit to be in the directory before.
                let _fit = directory.insert(name.clone(), id);
            }
        }
        directory
    }
}
