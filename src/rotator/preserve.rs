//! What a rotator leaves to the one that takes its place after a restart.

use std::sync::Arc;

use crate::{
    clock::Now,
    failure::Failure,
    refresh::Standing,
    store::Identity,
    stored::Mark,
    token::{ProfileName, Token},
};

/// How a profile stands after an attempt.
#[derive(Clone, Debug)]
pub struct State {
    /// For which identity.
    pub identity: Identity,
    /// The machine's part.
    pub standing: Standing,
    /// The token that [`Standing::held`] speaks of.
    pub token: Option<Arc<Token>>,
    /// Why the last attempt failed, and when.
    pub failure: Option<Arc<(Failure, Now)>>,
    /// The secrets that were refused, or could not be read.
    pub secret: Option<Mark>,
}

/// Where states go.
pub trait Preserve: Send + Sync {
    /// Has this state kept in the place of the last one. It never blocks, and whether it succeeds is not the rotator's
    /// concern.
    fn preserve(&self, profile: &ProfileName, state: State);
}

/// What a profile is made of besides its identity and its secrets (the proxy, the CA file …), compared with the time
/// before the restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settings {
    /// Nothing is different.
    Same,
    /// Something is: it may be what a failing profile waited for.
    Changed,
}
