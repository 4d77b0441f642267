//! What goes into the machine and what comes out of it, but for tokens' lives and failures.

use std::time::Duration;

use crate::{clock::Timestamp, token::Generation};

/// What the driver is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start one attempt, and report its end by [`Refresh::handle_granted`](super::Refresh::handle_granted) or [`Refresh::handle_failed`](super::Refresh::handle_failed).
    Fetch,
    /// Serve nothing from now on: the token has expired.
    Expire,
}

/// What somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// A caller needs a token that is valid for so long.
    MinValidity(Duration),
    /// A caller's API refused the token of this generation.
    Rejected(Generation),
    /// The operator wants a new token now, past back-off, Retry-After and floor.
    Operator,
}

/// What becomes of a [`Demand`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing is fetched for it: the token there is will do, or is the best to be had.
    Unneeded,
    /// An attempt serves it.
    Joined {
        /// The attempt's number: it has ended once [`Refresh::settled`](super::Refresh::settled) is no less.
        attempt: u64,
        /// When it starts, or, if it is in flight, started.
        starts: Timestamp,
    },
    /// Callers have asked for as many refreshes as the profile allows.
    Exhausted {
        /// From when on the next one is allowed.
        retry: Timestamp,
    },
}

/// How a granted token compares with the one held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Novelty {
    /// Other bytes, or none were held.
    New,
    /// The same bytes: the provider caches.
    Same,
}

/// What becomes of a granted token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// A rotation: it is served under this generation.
    Rotated(Generation),
    /// The held token goes on, with the life that was granted now.
    Prolonged(Generation),
    /// It had expired when it arrived, and is dropped. The attempt counts as a transient failure.
    Late,
}

/// What becomes of a token that was obtained elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// It is served.
    Served,
    /// It has expired, or the one held lasts no less, or its clock is not this boot's: it is dropped.
    Unneeded,
}

/// How a profile does, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// No token yet, and no attempt has failed.
    Pending,
    /// A valid token, and the last attempt succeeded.
    Valid,
    /// A valid token, but the last attempt failed.
    Degraded,
    /// No valid token, and the last attempt failed.
    Unavailable,
}

impl Health {
    /// Of the valid token, if there is one, and what made the last attempt fail, if it did.
    pub fn of<T, F>(token: Option<&T>, failure: Option<&F>) -> Self {
        match (token, failure) {
            (Some(_), None) => Self::Valid,
            (Some(_), Some(_)) => Self::Degraded,
            (None, None) => Self::Pending,
            (None, Some(_)) => Self::Unavailable,
        }
    }
}
