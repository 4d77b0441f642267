//! The agent's rules without the agent: layers L0 and L1, the rotator over them, and the file check. See Cargo.toml.

// Not everything here uses everything there.
#![allow(dead_code, unused_imports, unreachable_pub, missing_docs, rustdoc::broken_intra_doc_links)]

#[path = "../../src"]
mod sources {
    pub mod access;
    pub mod clock;
    pub mod failure;
    pub mod refresh;
    pub mod token;

    #[cfg(feature = "oauth2")]
    pub mod oauth2;
    #[cfg(feature = "oauth2")]
    pub mod secret;

    #[cfg(feature = "files")]
    pub mod files;
    #[cfg(feature = "files")]
    pub mod hardening;
    #[cfg(feature = "files")]
    pub mod names;

    #[cfg(feature = "rotator")]
    pub mod config;
    #[cfg(feature = "rotator")]
    pub mod limits;
    #[cfg(feature = "rotator")]
    #[path = "obtain/attempt.rs"]
    pub mod obtain;
    #[cfg(feature = "rotator")]
    pub mod rotator;
    #[cfg(feature = "rotator")]
    pub mod store;
    #[cfg(feature = "rotator")]
    pub mod stored;
    #[cfg(feature = "rotator")]
    pub mod timer;
}

pub use sources::*;
