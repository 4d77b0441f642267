//! One version of the config, as the handlers see it: who may do what, and where each profile's token is read.
//!
//! The daemon swaps it whole; a handler that waited looks again, so that a decision belongs to one version.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    access::AccessRules,
    clock::WallTime,
    rotator::Handle,
    store::{Identity, Reader},
    token::{ProfileName, Scope},
};

/// One version of the config.
#[derive(Debug)]
pub struct Snapshot {
    /// Grows by one with each swap.
    pub version: u64,
    /// When the config was read.
    pub configured_at: WallTime,
    /// Who may do what.
    pub access: AccessRules,
    /// All profiles.
    pub profiles: BTreeMap<ProfileName, Arc<Profile>>,
}

/// One profile of one version.
#[derive(Debug)]
pub struct Profile {
    /// Its name.
    pub name: ProfileName,
    /// What its token must have been obtained for.
    pub identity: Identity,
    /// The rules as they were written, for admins.
    pub allow: Vec<Box<str>>,
    /// The scopes that are asked for.
    pub scopes: Vec<Scope>,
    /// The audience that is asked for.
    pub audience: Option<Box<str>>,
    /// The token endpoint, for admins; without its query, which may hold a credential.
    pub token_url: Box<str>,
    /// Where the secret is read, for admins.
    pub secret_source: Box<str>,
    /// Its token and how refreshing it goes.
    pub reader: Reader,
    /// Its rotator.
    pub rotator: Handle,
}
