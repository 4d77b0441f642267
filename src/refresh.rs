//! One token's life as a state machine without I/O: when to fetch, how long to serve, when to try again.
//!
//! In the form of quinn-proto: facts go in with the time (`handle_*`), and what to do comes out ([`Refresh::poll_action`],
//! [`Refresh::poll_timeout`]). It reads no clock, draws from the generator it was given, and never sees a token's value.
//! Single flight, serving until expiry, invalidation by generation and adoption all fall out of it.

pub mod backoff;
pub mod schedule;
