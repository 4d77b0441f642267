//! One attempt to get a token: source → oauth2 → http. The only place where secret, protocol and network meet.
//!
//! A trait with one method, so that metrics, a fleet and scripted tests are wrappers of it. [`ProviderObtain`] is the
//! one that asks a provider.

mod attempt;
mod provider;
mod turn;

pub use attempt::{Attempt, Obtain, Obtained, Outcome};
pub use provider::{Deviates, Keep, ProviderObtain, ProviderParts};
