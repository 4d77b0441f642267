//! bloom-agent: see the README. (The map follows.)
pub mod access;
pub mod clock;
pub mod failure;
pub mod limits;
pub mod oauth2;
pub mod obtain;
pub mod pb;
pub mod refresh;
pub mod rotator;
pub mod secret;
pub mod source;
pub mod store;
pub mod timer;
pub mod token;
