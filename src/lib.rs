//! bloom-agent: see the README. (The map follows.)
pub mod access;
pub mod clock;
pub mod failure;
pub mod files;
pub mod hardening;
pub mod limits;
pub mod locked;
pub mod oauth2;
pub mod obtain;
pub mod pb;
pub mod secret;
pub mod source;
pub mod store;
pub mod token;
pub mod wiping;
