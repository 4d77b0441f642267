//! From one profile's config to what its rotator works by: sources, client, policy.

use std::{borrow::Cow, io, path::PathBuf, sync::Arc, time::Duration};

use super::Running;
use crate::{
    clock::{Clock, Now},
    config::{Profile, SecretSpec},
    failure::Failure,
    files,
    http::{HttpClient, Transport},
    locked::LockedPages,
    metrics::{Metrics, ProfileMetrics},
    oauth2,
    obtain::{Attempt, Obtain, ProviderObtain, Secrets},
    refresh::Policy,
    rotator::{self, Changes, Rotator, Task},
    source::{ReadSecret, Source},
    store::{self, Identity},
    timer::Time,
    token::{ProfileName, Token},
};
