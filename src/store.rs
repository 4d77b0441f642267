//! Where the served token of one profile lies: one writer, any number of readers, no lock across an await.
//!
//! - Only a rotator holds a [`Publisher`]; a [`Reader`] is another type and can change nothing.
//! - A reader sees the present state, then later states: nothing is queued, so nothing can be lost and no buffer grows.
//! - Expiry is checked when a token is read: an expired one is never served, whoever forgot to take it away.
//! - A token belongs to the [`Identity`] it was obtained for; a reader asks for one and never gets another's. So a reload
//!   withdraws the old token in the instant in which it swaps the config, whatever the rotator is doing.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    clock::{Now, Timestamp},
    failure::Failure,
    token::Token,
};

/// What a token is for: endpoint, client, audience, resource, scopes and method, as a number that the daemon gives anew
/// whenever one of them changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity(pub u64);

/// How the refreshing of one profile stands.
#[derive(Clone, Debug)]
pub struct Attempts {
    /// For which identity.
    pub identity: Identity,
    /// What happens now.
    pub phase: Phase,
    /// Attempts that came to an end, for this identity and all before: a waiter waits for it to grow.
    pub settled: u64,
    /// Token requests sent (an attempt may take two: the other secret).
    pub requests: u64,
    /// Failed attempts since the last success.
    pub consecutive_failures: u32,
    /// The last attempt's failure and its moment; none if it succeeded, or before the first.
    pub last_failure: Option<Arc<(Failure, Now)>>,
}

/// What a rotator does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A request is under way.
    InFlight,
    /// The next one starts then.
    Idle {
        /// The moment.
        next: Timestamp,
    },
}

#[derive(Clone, Debug)]
struct Published {
    identity: Identity,
    token: Arc<Token>,
}

/// Makes the cell of one profile. Its first attempt is due now.
pub fn cell(identity: Identity, now: Now) -> (Publisher, Reader) {
    let (token_sender, token) = watch::channel(None);
    let (attempts_sender, attempts) = watch::channel(Attempts {
        identity,
        phase: Phase::Idle { next: now.boot },
        settled: 0,
        requests: 0,
        consecutive_failures: 0,
        last_failure: None,
    });
    (Publisher { token: token_sender, attempts: attempts_sender }, Reader { token, attempts })
}

/// The writer's end: a rotator's, and nobody else's. Dropping it ends every wait of its readers with [`Closed`].
#[derive(Debug)]
pub struct Publisher {
    token: watch::Sender<Option<Published>>,
    attempts: watch::Sender<Attempts>,
}

impl Publisher {
    /// Serves `token` from now on, for `identity`. It is a rotation: every watcher wakes.
    pub fn publish(&self, identity: Identity, token: Arc<Token>) {
        self.token.send_replace(Some(Published { identity, token }));
    }

    /// Serves `token`, the served one with another life (a server that caches gave the same token again). It is no
    /// rotation, and nobody wakes.
    pub fn prolong(&self, identity: Identity, token: Arc<Token>) {
        self.token.send_if_modified(|published| {
            *published = Some(Published { identity, token });
            false
        });
    }

    /// Serves nothing: the token has expired, or its identity is gone. Nobody wakes: there is nothing to send.
    pub fn withdraw(&self) {
        self.token.send_if_modified(|published| {
            *published = None;
            false
        });
    }

    /// Changes what the readers see of the attempts.
    pub fn attempts(&self, change: impl FnOnce(&mut Attempts)) {
        self.attempts.send_modify(change);
    }
}

/// The profile is gone: its rotator has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the profile's rotator has ended")]
pub struct Closed;

/// A reader's end. Clones are independent: each has its own mark of what it has seen.
#[derive(Clone, Debug)]
pub struct Reader {
    token: watch::Receiver<Option<Published>>,
    attempts: watch::Receiver<Attempts>,
}

impl Reader {
    /// The token that may be served at `now` to a caller who was admitted to `identity`.
    pub fn current(&self, identity: Identity, now: Timestamp) -> Option<Arc<Token>> {
        servable(self.token.borrow().as_ref(), identity, now)
    }

    /// The same, and marks it as seen: the next [`Self::rotated`] waits for another.
    pub fn current_and_mark(&mut self, identity: Identity, now: Timestamp) -> Option<Arc<Token>> {
        servable(self.token.borrow_and_update().as_ref(), identity, now)
    }

    /// Waits for a rotation later than the one last marked.
    pub async fn rotated(&mut self) -> Result<(), Closed> {
        self.token.changed().await.map_err(|_| Closed)
    }

    /// How the refreshing stands.
    pub fn attempts(&self) -> Attempts {
        self.attempts.borrow().clone()
    }

    /// Waits until the attempts are such that `ready` says so, and returns them.
    pub async fn attempts_until(&mut self, ready: impl FnMut(&Attempts) -> bool) -> Result<Attempts, Closed> {
        self.attempts.wait_for(ready).await.map(|attempts| attempts.clone()).map_err(|_| Closed)
    }
}

fn servable(published: Option<&Published>, identity: Identity, now: Timestamp) -> Option<Arc<Token>> {
    let published = published?;
    (published.identity == identity && now < published.token.life.served_until())
        .then(|| Arc::clone(&published.token))
}
