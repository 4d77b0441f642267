//! What an operator's monitoring reads: counters and gauges, and their OpenMetrics text.
//!
//! - No caller is in any label, and every label has a bounded set of values: methods and codes are closed sets, profiles
//!   are those of the running config, everything else is a word of the code (`&'static str`).
//! - Counting a call is one atomic add: no lock, no hash, no allocation.
//! - The text is sorted, so that two scrapes of the same state are the same bytes.
//! - `build_info` is a gauge: node_exporter's textfile collector refuses a file with the type `info`, which the Prometheus
//!   text format does not have.

mod text;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

use prometheus_client::{encoding, registry::Registry};
use tonic::Code;

use crate::{
    access::Verb,
    clock::WallTime,
    failure::FailureKind,
    log::{DroppedLines, Panics},
    token::ProfileName,
};

/// The gRPC methods that are counted by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// TokenService.GetToken.
    GetToken,
    /// TokenService.WatchToken.
    WatchToken,
    /// TokenService.ListTokens.
    ListTokens,
    /// TokenService.ReportRejected.
    ReportRejected,
    /// AdminService.RefreshToken.
    RefreshToken,
    /// AdminService.Reload.
    Reload,
    /// AdminService.GetStatus.
    GetStatus,
    /// AdminService.GetMetrics.
    GetMetrics,
    /// grpc.health.v1.Health/Check.
    HealthCheck,
    /// grpc.health.v1.Health/Watch.
    HealthWatch,
    /// ServerReflectionInfo, v1 and v1alpha.
    Reflection,
    /// Every path that is none of these: a stranger chooses it, so it is never a label.
    Unknown,
}

impl Method {
    const ALL: [(Self, &'static str, &'static [&'static str]); 12] = [
        (Self::GetToken, "GetToken", &["/bloom.agent.v1.TokenService/GetToken"]),
        (Self::WatchToken, "WatchToken", &["/bloom.agent.v1.TokenService/WatchToken"]),
        (Self::ListTokens, "ListTokens", &["/bloom.agent.v1.TokenService/ListTokens"]),
        (Self::ReportRejected, "ReportRejected", &["/bloom.agent.v1.TokenService/ReportRejected"]),
        (Self::RefreshToken, "RefreshToken", &["/bloom.agent.v1.AdminService/RefreshToken"]),
        (Self::Reload, "Reload", &["/bloom.agent.v1.AdminService/Reload"]),
        (Self::GetStatus, "GetStatus", &["/bloom.agent.v1.AdminService/GetStatus"]),
        (Self::GetMetrics, "GetMetrics", &["/bloom.agent.v1.AdminService/GetMetrics"]),
        (Self::HealthCheck, "HealthCheck", &["/grpc.health.v1.Health/Check"]),
        (Self::HealthWatch, "HealthWatch", &["/grpc.health.v1.Health/Watch"]),
        (
            Self::Reflection,
            "ServerReflectionInfo",
            &[
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            ],
        ),
        (Self::Unknown, "unknown", &[]),
    ];

    /// The HTTP/2 `:path`s of each method.
    pub fn paths() -> impl Iterator<Item = (Self, &'static [&'static str])> {
        Self::ALL.iter().map(|(method, _, paths)| (*method, *paths))
    }
}

/// The 17 codes by number, as the gRPC specification writes them.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

const VERBS: [Verb; 7] =
    [Verb::Get, Verb::Watch, Verb::List, Verb::Report, Verb::Health, Verb::Credential, Verb::Admin];

const OUTCOMES: [&str; 5] = ["success", "unreachable", "provider_error", "refused", "secret_unreadable"];

/// All metrics of one agent. It is passed about in an [`Arc`].
pub struct Metrics {
    cells: Arc<Cells>,
    registry: Registry,
}

/// The numbers themselves: what the registry collects from.
#[derive(Debug)]
struct Cells {
    calls: [[AtomicU64; CODES.len()]; Method::ALL.len()],
    denied: [AtomicU64; VERBS.len()],
    serving: Mutex<Serving>,
    profiles: Mutex<BTreeMap<ProfileName, Arc<ProfileMetrics>>>,
    degraded: Mutex<BTreeMap<&'static str, u32>>,
    dropped_lines: DroppedLines,
    panics: Panics,
    version: &'static str,
}

/// The numbers of one profile: what its rotator counts on. Counting goes on unseen when the profile is gone.
#[derive(Debug, Default)]
pub struct ProfileMetrics {
    /// Seconds since 1970; 0: no token yet.
    expiry: AtomicI64,
    refreshes: [AtomicU64; OUTCOMES.len()],
    requests: AtomicU64,
    deviations: Mutex<BTreeMap<&'static str, u64>>,
}

/// What the server counts by itself, as of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// Open connections.
    pub connections: u64,
    /// Open WatchToken streams and health watches.
    pub watches: u64,
    /// Connections and calls refused for a limit, since the start.
    pub refused: u64,
    /// Connections cut since the start: floods, and clients that never said what they want.
    pub cut: u64,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Everything at zero. `dropped_lines` and `panics` are counted by [`crate::log`] and read at each scrape.
    pub fn new(version: &'static str, dropped_lines: DroppedLines, panics: Panics) -> Arc<Self> {
        let cells = Arc::new(Cells {
            calls: Default::default(),
            denied: Default::default(),
            serving: Mutex::default(),
            profiles: Mutex::default(),
            degraded: Mutex::default(),
            dropped_lines,
            panics,
            version,
        });
        let mut registry = Registry::with_prefix("bloom_agent");
        registry.register_collector(Box::new(Arc::clone(&cells)));
        Arc::new(Self { cells, registry })
    }

    /// Counts a call that was answered: one atomic add.
    pub fn call(&self, method: Method, code: Code) {
        let row = self.cells.calls.get(method as usize);
        if let Some(cell) = row.and_then(|row| row.get(usize::try_from(code as i32).unwrap_or(2))) {
            cell.fetch_add(1, Relaxed);
        }
    }

    /// Counts a denial.
    pub fn denied(&self, verb: Verb) {
        if let Some(index) = VERBS.iter().position(|of| *of == verb)
            && let Some(cell) = self.cells.denied.get(index)
        {
            cell.fetch_add(1, Relaxed);
        }
    }

    /// Says what the server has counted: before [`Self::text`].
    pub fn serving(&self, serving: Serving) {
        *lock(&self.cells.serving) = serving;
    }

    /// Says which profiles there are, at start and at each reload: new ones begin at zero, those that stay keep their
    /// numbers, the others vanish.
    pub fn set_profiles<'a>(&self, names: impl IntoIterator<Item = &'a ProfileName>) {
        let mut profiles = lock(&self.cells.profiles);
        let mut before = std::mem::take(&mut *profiles);
        for name in names {
            let numbers = before.remove(name).unwrap_or_default();
            profiles.insert(name.clone(), numbers);
        }
    }

    /// The numbers of one profile, for its rotator to keep. A name that [`Self::set_profiles`] did not say is counted
    /// where nobody looks.
    pub fn profile(&self, name: &ProfileName) -> Arc<ProfileMetrics> {
        lock(&self.cells.profiles).get(name).map_or_else(Arc::default, Arc::clone)
    }

    /// Says that the agent must do without `what` on this host: a short word such as `mlock`.
    pub fn degrade(&self, what: &'static str) {
        lock(&self.cells.degraded).insert(what, 1);
    }

    /// Says that `what` is there. The series stays, at 0.
    pub fn restore(&self, what: &'static str) {
        lock(&self.cells.degraded).insert(what, 0);
    }

    /// The OpenMetrics text, sorted, ending in `# EOF` and a newline.
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(4096);
        match encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing to a String cannot fail; a text that was cut off would be worse than an empty one.
            Err(fmt::Error) => "# EOF\n".to_owned(),
        }
    }
}

impl ProfileMetrics {
    /// Counts an attempt that ended, and the token requests that it took.
    pub fn attempt(&self, outcome: Result<(), FailureKind>, requests: u32) {
        let [success, unreachable, provider_error, refused, secret_unreadable] = &self.refreshes;
        let cell = match outcome {
            Ok(()) => success,
            Err(FailureKind::Unreachable) => unreachable,
            Err(FailureKind::ProviderError) => provider_error,
            Err(FailureKind::Refused) => refused,
            Err(FailureKind::SecretUnreadable) => secret_unreadable,
        };
        cell.fetch_add(1, Relaxed);
        self.requests.fetch_add(u64::from(requests), Relaxed);
    }

    /// Says when the token that is served expires; `None` when one was withdrawn. An expired token's time stays, so that
    /// an alert on it keeps firing.
    pub fn token_expires(&self, at: Option<WallTime>) {
        self.expiry.store(at.map_or(0, |at| at.unix_millis().div_euclid(1000)), Relaxed);
    }

    /// Counts an answer that was taken although it departs from the RFC in the way `kind` says.
    pub fn deviation(&self, kind: &'static str) {
        *lock(&self.deviations).entry(kind).or_default() += 1;
    }
}

/// A panic while one of these was held leaves a map of numbers that is as good as before.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
