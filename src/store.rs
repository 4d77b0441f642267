//! Where the served token of one profile lies: one writer, any number of readers, no lock across an await.
//!
//! - Only a rotator holds a [`Publisher`]; a [`Reader`] is another type and can change nothing.
//! - A reader sees the present state, then later states: nothing is queued, so nothing can be lost and no buffer grows.
//! - Expiry is checked when a token is read: an expired one is never served, whoever forgot to take it away.
//! - A token belongs to the [`Identity`] it was obtained for; a reader asks for one and never gets another's. So a reload
//!   withdraws the old token in the instant in which it swaps the config, whatever the rotator is doing.
//! - Waiting changes nothing: a waiter that goes away cancels nothing, and all who wait share one outcome.

mod bells;

use std::{cmp::Ordering, pin::pin, sync::Arc};

use tokio::sync::watch;

use crate::{
    clock::{Clock, Now, Timestamp, WallTime},
    failure::Failure,
    refresh::Health,
    token::Token,
};
use bells::Bells;

/// What a token is for: endpoint, client, audience, resource, scopes and method, as a number that the daemon gives anew
/// whenever one of them changes. A later one is greater: so a waiter knows whether the rotator is still to come to its
/// identity, or has left it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(pub u64);

/// How the refreshing of one profile stands.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// When the last token of this identity expires, or expired.
    pub expires: Option<WallTime>,
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
        expires: None,
    });
    let bells = Arc::new(Bells::new());
    let place = bells.place();
    let publisher =
        Publisher { token: token_sender, attempts: attempts_sender, ringer: Ringer(Arc::clone(&bells)) };
    (publisher, Reader { token, attempts, bells, place })
}

/// The writer's end: a rotator's, and nobody else's. Dropping it ends every wait of its readers with [`Closed`].
#[derive(Debug)]
pub struct Publisher {
    token: watch::Sender<Option<Published>>,
    attempts: watch::Sender<Attempts>,
    /// After the token: who is woken by its end finds the cell closed.
    ringer: Ringer,
}

#[derive(Debug)]
struct Ringer(Arc<Bells>);

impl Drop for Ringer {
    fn drop(&mut self) {
        self.0.ring_out();
    }
}

impl Publisher {
    /// Serves `token` from now on, for `identity`. It is a rotation: [`Self::ring`] wakes those who wait for one.
    pub fn publish(&self, identity: Identity, token: Arc<Token>) {
        self.token.send_replace(Some(Published { identity, token }));
        self.ringer.0.owe();
    }

    /// Serves `token`, the served one with another life (a server that caches gave the same token again). It is no
    /// rotation, and nobody wakes.
    pub fn prolong(&self, identity: Identity, token: Arc<Token>) {
        self.token.send_if_modified(|published| {
            *published = Some(Published { identity, token });
            false
        });
    }

    /// Serves nothing: the token has expired, or its identity is gone. [`Self::ring`] wakes whoever waits for a rotation,
    /// though there is nothing to send: a health watch has something to say.
    pub fn withdraw(&self) {
        if self.token.send_if_modified(|published| published.take().is_some()) {
            self.ringer.0.owe();
        }
    }

    /// Tells all who wait for a rotation, if there was one, and lets others have their turn between them. Dropped before its
    /// end it has told some: call it again.
    pub async fn ring(&self) {
        self.ringer.0.ring().await;
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

/// Why there is nothing more to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Left {
    /// A reload changed the profile's identity: look it up again, and decide again who may have it.
    #[error("the profile has been reconfigured")]
    Superseded,
    /// The profile, or the agent, is gone.
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// Why there is no valid token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoToken {
    /// The last attempt failed.
    #[error("the last attempt to get a token failed")]
    Failed {
        /// How, and when.
        failure: Arc<(Failure, Now)>,
        /// When the next attempt starts; none if one is in flight.
        next: Option<Timestamp>,
    },
    /// No attempt has failed: the first is still to end, or the last token's life was too short for the next.
    #[error("the token is being fetched")]
    Pending {
        /// When the next attempt starts; none if one is in flight.
        next: Option<Timestamp>,
    },
    /// It will never be this one.
    #[error(transparent)]
    Left(#[from] Left),
}

/// A reader's end. Clones are independent: each has its own mark of what it has seen.
#[derive(Debug)]
pub struct Reader {
    token: watch::Receiver<Option<Published>>,
    attempts: watch::Receiver<Attempts>,
    bells: Arc<Bells>,
    place: usize,
}

impl Clone for Reader {
    fn clone(&self) -> Self {
        Self {
            token: self.token.clone(),
            attempts: self.attempts.clone(),
            bells: Arc::clone(&self.bells),
            place: self.bells.place(),
        }
    }
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

    /// Waits until it is told of a rotation later than the one last marked: see [`Publisher::ring`].
    pub async fn rotated(&mut self) -> Result<(), Closed> {
        loop {
            // Before the look: what is published after it rings.
            let listener = self.bells.listen(self.place);
            let mut rung = pin!(listener.rung());
            rung.as_mut().enable();
            if self.token.has_changed().map_err(|_| Closed)? {
                return Ok(());
            }
            rung.await;
        }
    }

    /// How the refreshing stands.
    pub fn attempts(&self) -> Attempts {
        self.attempts.borrow().clone()
    }

    /// The token, once there is one; at once if there is. Without a valid one it waits for the attempt that is in flight, or
    /// due by `deadline`, and shares its outcome, failure included; if the next attempt is later it fails at once.
    ///
    /// It holds no timer: whoever calls it drops it at the deadline, and then says why with [`Self::no_token`].
    pub async fn wait(
        &self,
        identity: Identity,
        clock: &dyn Clock,
        deadline: Timestamp,
    ) -> Result<Arc<Token>, NoToken> {
        let mut attempts = self.attempts.clone();
        let mut joined = None;
        loop {
            // First the attempts, then the token: the rotator publishes them in the other order.
            let (of, phase, settled) = {
                let seen = attempts.borrow_and_update();
                (seen.identity, seen.phase, seen.settled)
            };
            if let Some(token) = self.current(identity, clock.now().boot) {
                return Ok(token);
            }
            if of > identity {
                return Err(Left::Superseded.into());
            }
            // An identity that the rotator has still to come to has its first attempt at once.
            if of == identity {
                let is_later = matches!(phase, Phase::Idle { next } if next > deadline);
                if is_later || settled > *joined.get_or_insert(settled) {
                    return Err(self.no_token(identity));
                }
            }
            attempts.changed().await.map_err(|_| Left::Closed(Closed))?;
        }
    }

    /// Why there is no token now, for a caller that has found none.
    pub fn no_token(&self, identity: Identity) -> NoToken {
        let attempts = self.attempts.borrow();
        let next = match attempts.phase {
            Phase::InFlight => None,
            Phase::Idle { next } => Some(next),
        };
        match (attempts.identity.cmp(&identity), &attempts.last_failure) {
            (Ordering::Greater, _) => Left::Superseded.into(),
            (Ordering::Less, _) => NoToken::Pending { next: None },
            (Ordering::Equal, Some(failure)) => NoToken::Failed { failure: Arc::clone(failure), next },
            (Ordering::Equal, None) => NoToken::Pending { next },
        }
    }

    /// Waits until the attempt of this number ([`crate::refresh::Answer::Joined`]) has ended, and says how the refreshing
    /// stands then.
    pub async fn settled(&self, identity: Identity, attempt: u64) -> Result<Attempts, Left> {
        let mut attempts = self.attempts.clone();
        // A rotator that has still to come to this identity drops the attempt, and gives its number to the first of the new.
        let ended = |seen: &Attempts| {
            seen.identity > identity || seen.identity == identity && seen.settled >= attempt
        };
        let seen = attempts.wait_for(ended).await.map_err(|_| Closed)?;
        if seen.identity == identity { Ok(seen.clone()) } else { Err(Left::Superseded) }
    }

    /// How the profile does, for people.
    pub fn health(&self, identity: Identity, now: Timestamp) -> Health {
        let attempts = self.attempts.borrow();
        let failure = attempts.last_failure.as_deref().filter(|_| attempts.identity == identity);
        Health::of(self.current(identity, now).as_deref(), failure)
    }

    /// Waits until there is something new to say of the token or of the attempts.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        let changed = tokio::select! {
            changed = self.token.changed() => changed,
            changed = self.attempts.changed() => changed,
        };
        changed.map_err(|_| Closed)
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
