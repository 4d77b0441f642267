//! bloom-agent: see the README. (The map follows.)
pub mod access;
pub mod audit;
pub mod clock;
pub mod dev_issuer;
pub mod failure;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod oauth2;
pub mod source;
pub mod obtain;
pub mod pb;
pub mod secret;
pub mod store;
pub mod token;
