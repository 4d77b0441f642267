//! The words of one attempt: what asks for a token, and what comes of it. Without secret, protocol or network.

use std::{future::Future, pin::Pin};

use crate::{
    failure::Failure,
    stored::Mark,
    token::{AccessToken, Life, Scope},
};

/// A token as the provider gave it, before it has a generation.
#[derive(Debug)]
pub struct Obtained {
    /// The token itself, in locked pages where the host allows it.
    pub access_token: AccessToken,
    /// The scopes that were granted; those asked for, where the provider did not say (RFC 6749 §5.1).
    pub scopes: Vec<Scope>,
    /// From the moment that the request started.
    pub life: Life,
}

/// How one attempt ended.
#[derive(Debug)]
pub struct Outcome {
    /// The token, or why there is none.
    pub result: Result<Obtained, Failure>,
    /// Token requests that it took: 0 (no secret could be read, or no connection came about), 1 or 2 (the other
    /// secret). One without an answer counts: a token may have been minted.
    pub requests: u32,
    /// After a refusal, or where no secret could be read: what was read, so that another process can tell whether that
    /// has changed (`ProviderObtain::secret_changed_since`).
    pub refused: Option<Mark>,
}

/// What [`Obtain::obtain`] returns.
pub type Attempt<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// Gets a token.
pub trait Obtain: Send + Sync {
    /// Makes one attempt. It ends within the exchange's deadline (twice that with another secret to try), whatever the
    /// provider does; dropping it gives up.
    fn obtain(&self) -> Attempt<'_>;
}
