//! bloom-agent: OAuth2 access tokens for the services of a Linux host, and never a secret.
//!
//! One small daemon per host holds the Client Secrets, keeps one fresh access token per profile (client_credentials
//! grant, RFC 6749 §4.4), and hands tokens to the local callers that may have them, over gRPC on a Unix socket.
//! Services in Rust use [`client`]; everybody else the API in `proto/`. This page is the map of the code.
//!
//! # Layers: an arrow may only point down
//!
//! ```text
//! L4 faces  client · cli · arguments · exit · bin/bloom-agent · bin/bloom-agent-cli (· fuzzing, of no program)
//! L3 life   daemon (composes, reloads, shuts down) · server (accept loop, limits, drain) · service (gRPC handlers)
//!           credential (tokens as systemd credentials)
//!           rotator (the task of one token) · obtain (source → oauth2 → http) · store (Publisher / Reader)
//! L2 edges  http · source · files · names · peer · units · timer · locked · sealed · hardening · wall · wiping · resident · log ·
//!           audit · metrics ·
//!           systemd (what the manager hands over and is told) · dev_issuer
//! L1 rules  oauth2 · refresh · access · limits · config · stored · reply
//! L0 words  secret · token · failure · clock · pb (generated)
//! ```
//!
//! # Four invariants
//!
//! 1. **The part that talks to strangers cannot name the part that holds secrets.** [`service`], [`server`] and
//!    [`credential`] never import [`secret`], [`source`], [`http`] or [`obtain`]. Secret, protocol and network meet in
//!    [`obtain`] only (`check` reads secrets too, to judge them, and sends none).
//! 2. **L0 and L1 contain no async, no tokio, no file system, no clock.** Time and randomness are arguments. Only
//!    [`clock`] reads a clock.
//! 3. **Only a rotator holds a [`store::Publisher`].** A token is replaced only by a success, by one owner. Readers hold
//!    a [`store::Reader`]: a different type.
//! 4. **A client secret lives for one exchange.** It is read from its source for each token request and wiped after it; once more after
//!    the restart of a refused profile, to see whether it has changed ([`stored::Mark`]).
//!    (The one exception is `dev`, which makes its secret up.)
//!
//! `tests/it/architecture.rs` reads the sources and holds the first three to be so; `tests/it/leaks` looks into the memory of
//! a running agent for the fourth.
//!
//! # Two flows
//!
//! *GetToken*: accept → observe the peer once ([`peer`]) → decide ([`access`]) → [`store::Reader`] (one borrow, no lock,
//! no await when a token is there) → else wait for the shared outcome until the caller's deadline → audit → answer.
//!
//! *Refresh*: sleep until the machine says so ([`refresh`]) → read the secret → build the request (pure) → one POST →
//! read the response (pure) → publish, or note the failure with the old token still served.

pub mod access;
pub mod arguments;
pub mod audit;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod credential;
pub mod daemon;
pub mod dev_issuer;
pub mod exit;
pub mod failure;
pub mod files;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod hardening;
pub mod http;
pub mod limits;
pub mod locked;
pub mod log;
pub mod metrics;
pub mod names;
pub mod oauth2;
pub mod obtain;
pub mod pb;
pub mod peer;
pub mod refresh;
pub mod reply;
pub mod resident;
pub mod rotator;
pub mod sealed;
pub mod secret;
pub mod server;
pub mod service;
pub mod source;
pub mod store;
pub mod stored;
pub mod systemd;
pub mod timer;
pub mod token;
pub mod units;
pub mod wall;
pub mod wiping;

/// The README's Rust compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
