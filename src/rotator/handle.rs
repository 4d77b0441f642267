//! What a rotator is told: its task, and the commands of those who hold a handle.

use std::{future::Future, pin::Pin, sync::Arc};

use tokio::sync::{mpsc, oneshot};

use crate::{
    obtain::Obtain,
    refresh::{Answer, Demand, Policy},
    store::{Closed, Identity},
    stored::Mark,
    token::{ProfileName, Token},
};

use super::preserve::Preserve;

/// What a rotator works by. A reload gives it another.
#[derive(Clone)]
pub struct Task {
    /// The profile.
    pub name: ProfileName,
    /// What its tokens are for: another one makes the token in hand a stranger's.
    pub identity: Identity,
    /// When to refresh.
    pub policy: Policy,
    /// The audience that is asked for, as it stands in the served token.
    pub audience: Option<Box<str>>,
    /// Gets a token.
    pub obtain: Arc<dyn Obtain>,
    /// Tells when the secret changes, where its source can: awaited only while the profile is refused.
    pub secret_changes: Option<Arc<dyn Changes>>,
    /// Where its states are kept for the time after a restart, where there is such a place.
    pub preserve: Option<Arc<dyn Preserve>>,
    /// Makes what callers are sent of it, once per token and before it is served: no call need encode it.
    pub frame: Frame,
}

/// Gives a token its reply; what that looks like is nothing to a rotator.
pub type Frame = Arc<dyn Fn(Token) -> Token + Send + Sync>;

/// What [`Changes::changed`] returns.
pub type Changed<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Something that can tell that a profile's secret has changed.
pub trait Changes: Send + Sync {
    /// Resolves once the source holds another content than the one last read for a request; at once if it does already, so
    /// that no change is lost between that reading and this call. Dropping it stops the watching.
    fn changed(&self) -> Changed<'_>;

    /// The same for a process that has read nothing yet: against what `mark` was made of, before the restart.
    fn changed_since(&self, mark: Mark) -> Changed<'_>;
}

/// The way to a rotator. Clones are the same way; the rotator ends with the last of them.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) commands: mpsc::Sender<Command>,
}

impl Handle {
    /// Asks for a newer token, and says what becomes of it. To wait for it: [`crate::store::Reader::settled`].
    pub async fn demand(&self, demand: Demand) -> Result<Answer, Closed> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Demand(demand, reply)).await?;
        answer.await.map_err(|_| Closed)
    }

    /// Gives it another task for the same profile; returns when that is in force. With another identity the token is
    /// withdrawn, the request in flight dropped, and one fetch made at once. With the same the token stays; a profile that
    /// fails tries at once, as far as its provider's Retry-After allows.
    pub async fn reconfigure(&self, task: Task) -> Result<(), Closed> {
        let (reply, done) = oneshot::channel();
        self.send(Command::Reconfigure(Box::new(task), reply)).await?;
        done.await.map_err(|_| Closed)
    }

    /// Ends it, whoever else holds a handle. A request in flight is dropped.
    pub async fn stop(&self) {
        // One that has ended already is what was wanted.
        let _ended = self.send(Command::Stop).await;
    }

    /// Returns when the rotator has done what was asked before: a sign that it is alive.
    pub async fn pulse(&self) -> Result<(), Closed> {
        let (reply, beat) = oneshot::channel();
        self.send(Command::Pulse(reply)).await?;
        beat.await.map_err(|_| Closed)
    }

    async fn send(&self, command: Command) -> Result<(), Closed> {
        self.commands.send(command).await.map_err(|_| Closed)
    }
}

pub(super) enum Command {
    Demand(Demand, oneshot::Sender<Answer>),
    Reconfigure(Box<Task>, oneshot::Sender<()>),
    Pulse(oneshot::Sender<()>),
    Stop,
}
