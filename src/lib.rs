//! bloom-agent: see the README. (The map follows.)
pub mod access;
pub mod clock;
pub mod failure;
pub mod http;
pub mod limits;
pub mod oauth2;
pub mod source;
pub mod obtain;
pub mod pb;
pub mod secret;
pub mod store;
pub mod token;
