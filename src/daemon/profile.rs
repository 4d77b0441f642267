//! From one profile's config to what its rotator works by: sources, client, policy.

use std::{
    borrow::Cow,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::unistd::geteuid;

use super::Running;
use crate::{
    clock::{Clock, Now, SystemClock},
    config::{Profile, SecretSpec},
    files,
    http::{HttpClient, LookUps, Transport},
    locked::LockedPages,
    log::{DroppedLines, Panics},
    metrics::{Metrics, ProfileMetrics},
    oauth2::{self, ProxyUrl},
    obtain::{Attempt, Obtain, ProviderObtain, ProviderParts},
    refresh::{Policy, schedule::FLOOR},
    reply,
    rotator::{self, Changed, Changes, Preserve, Rotator, Task},
    source::{ReadSecret, Readings, Source},
    store::{self, Identity},
    stored::{self, Digest, Mark},
    timer::Time,
    token::ProfileName,
};

/// The largest `ca_file`, in bytes: three times what a whole distribution trusts.
const MAX_CA_BYTES: usize = 1024 * 1024;

/// Makes what profiles need; the same for all of them and for every version of the config.
pub struct Workshop {
    /// `$CREDENTIALS_DIRECTORY`, where systemd puts credentials.
    pub credentials: Option<PathBuf>,
    /// A secret that stands in for every source: `dev`'s, which lies in no file.
    pub secret: Option<Arc<dyn ReadSecret>>,
    /// Where tokens lie.
    pub pages: LockedPages,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where attempts are counted.
    pub metrics: Arc<Metrics>,
    /// Between two successful fetches.
    pub floor: Duration,
    /// What blocks, kept within bounds.
    pub blocking: Blocking,
}

/// What the profiles share in what blocks: neither a resolver nor a file system that hangs takes the other's threads, or
/// all of them.
#[derive(Clone, Default)]
pub struct Blocking {
    look_ups: LookUps,
    readings: Readings,
}

impl Blocking {
    /// With these look-ups. Public for the tests of the whole agent.
    pub fn with_look_ups(look_ups: LookUps) -> Self {
        Self { look_ups, ..Self::default() }
    }
}

/// What is wrong with a profile that only the host knows: by key, as for any fault of the config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildProblem {
    /// The profile's key.
    pub key: &'static str,
    /// What is wrong.
    pub wrong: Cow<'static, str>,
    /// What would be right.
    pub right: Cow<'static, str>,
}

/// What a rotator of one profile works by, but its name and identity. Clones share the parts.
#[derive(Clone)]
pub struct Built {
    config: Profile,
    transport: Transport,
    policy: Policy,
    provider: Arc<Provider>,
    pages: LockedPages,
}

impl Workshop {
    /// One for `check`: it obtains nothing, so nothing is counted or locked.
    pub fn for_check(credentials: Option<PathBuf>) -> Self {
        let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), DroppedLines::default(), Panics::default());
        Self {
            credentials,
            secret: None,
            pages: LockedPages::default(),
            clock: Arc::new(SystemClock),
            metrics,
            floor: FLOOR,
            blocking: Blocking::default(),
        }
    }

    /// Where a secret is read.
    pub fn source(&self, spec: &SecretSpec) -> Arc<dyn ReadSecret> {
        match (&self.secret, spec) {
            (Some(secret), _) => Arc::clone(secret),
            (None, SecretSpec::Credential(name)) => {
                Arc::new(Source::credential(name.clone(), self.credentials.clone()))
            }
            (None, SecretSpec::File(path)) => Arc::new(Source::file(path)),
        }
    }

    /// What the agent must do without on this host, in words; the gauges say the same.
    pub fn degraded(&self) -> Vec<String> {
        if !self.pages.is_degraded() {
            self.metrics.restore("mlock");
            return Vec::new();
        }
        self.metrics.degrade("mlock");
        vec!["tokens may be swapped to disk: their pages could not be locked; raise LimitMEMLOCK=".to_owned()]
    }

    /// Makes the parts of a profile, or keeps those of `before` where they would be the same, so that what they remember
    /// (which secret worked last) stays. Blocking: it reads `ca_file` or the system's trust store.
    pub fn build(
        &self,
        name: &ProfileName,
        profile: &Profile,
        before: Option<&Built>,
    ) -> Result<Built, BuildProblem> {
        let transport = transport(profile)?;
        let policy = profile.refresh.with_floor(self.floor);
        let same =
            before.filter(|before| before.transport == transport && asks_alike(&before.config, profile));
        let provider = match same {
            Some(before) => Arc::clone(&before.provider),
            None => Arc::new(self.provider(name, profile, &transport)?),
        };
        Ok(Built { config: profile.clone(), transport, policy, provider, pages: self.pages.clone() })
    }

    fn provider(
        &self,
        name: &ProfileName,
        profile: &Profile,
        transport: &Transport,
    ) -> Result<Provider, BuildProblem> {
        let http = client(transport)?.with_look_ups(self.blocking.look_ups.clone());
        let secret = self.source(&profile.secret);
        let next = profile.next_secret.as_ref().map(|spec| self.source(spec));
        let sources: Vec<_> = std::iter::once(&secret).chain(&next).map(|source| source.describe()).collect();
        let scope =
            if profile.require_scope { oauth2::ScopeRule::Require } else { oauth2::ScopeRule::Report };
        let pages = self.pages.clone();
        let (counted, counted_for) = (Arc::clone(&self.metrics), name.clone());
        let inner = ProviderObtain::new(ProviderParts {
            profile: name.clone(),
            client: profile.client.clone(),
            secret,
            secret_next: next,
            readings: self.blocking.readings.clone(),
            rules: oauth2::Rules { assumed_lifetime: profile.assumed_lifetime, scope },
            http: Arc::new(http),
            clock: Arc::clone(&self.clock),
            keep: Arc::new(move |bytes| pages.copy(bytes)),
            deviates: Arc::new(move |deviation| counted.profile(&counted_for).deviation(deviation.label())),
        });
        let secret_source = sources.join(", then ").into();
        Ok(Provider { inner, name: name.clone(), secret_source, metrics: Arc::clone(&self.metrics) })
    }
}

/// How a profile's provider is reached. Blocking.
pub(super) fn transport(profile: &Profile) -> Result<Transport, BuildProblem> {
    let ca_file = profile.ca_file.as_deref().map(read_ca_file).transpose()?;
    Ok(Transport { ca_file, proxy: profile.proxy.clone() })
}

fn read_ca_file(path: &Path) -> Result<Arc<[u8]>, BuildProblem> {
    let contents = files::read(path, files::Rules::ca_file(geteuid()), MAX_CA_BYTES);
    contents.map(|contents| Arc::from(contents.bytes.as_slice())).map_err(|fault| BuildProblem {
        key: "ca_file",
        wrong: format!("{}: {}", fault.what, fault.why).into(),
        right: fault.remedy.into(),
    })
}

/// What is wrong with a `ca_file`, whoever names it. Blocking.
pub(super) fn judge_ca_file(path: &Path) -> Result<(), BuildProblem> {
    client(&Transport { ca_file: Some(read_ca_file(path)?), proxy: None }).map(drop)
}

/// The HTTP client for it. Blocking.
pub(super) fn client(transport: &Transport) -> Result<HttpClient, BuildProblem> {
    HttpClient::new(transport).map_err(|fault| BuildProblem {
        key: "ca_file",
        wrong: fault.to_string().into(),
        right: "name a PEM file with the certificate of the provider's issuer".into(),
    })
}

/// Whether two profiles would send the same requests and read the answers alike.
fn asks_alike(one: &Profile, other: &Profile) -> bool {
    one.client == other.client
        && one.secret == other.secret
        && one.next_secret == other.next_secret
        && one.assumed_lifetime == other.assumed_lifetime
        && one.require_scope == other.require_scope
}

impl Built {
    /// The task of the profile's rotator.
    pub(super) fn task(
        &self,
        name: &ProfileName,
        identity: Identity,
        preserve: Option<Arc<dyn Preserve>>,
    ) -> Task {
        let pages = self.pages.clone();
        Task {
            name: name.clone(),
            identity,
            policy: self.policy,
            audience: self.audience(),
            obtain: Arc::clone(&self.provider) as Arc<dyn Obtain>,
            secret_changes: Some(Arc::clone(&self.provider) as Arc<dyn Changes>),
            preserve,
            frame: Arc::new(move |token| reply::framed(token, |bytes| pages.copy(bytes))),
        }
    }

    /// What its tokens are for, comparable with what they were for in another process.
    pub(super) fn identity(&self) -> Digest {
        stored::identity(&self.config.client)
    }

    /// All of the config besides, that a failing profile may have waited for: a reload has such a one try at once, and so
    /// has a restart.
    pub(super) fn settings(&self) -> Digest {
        let Transport { ca_file, proxy } = &self.transport;
        let life = self.config.assumed_lifetime.as_nanos().to_be_bytes();
        let parts: [&[u8]; 6] = [
            &[u8::from(ca_file.is_some()), u8::from(proxy.is_some())],
            ca_file.as_deref().unwrap_or_default(),
            proxy.as_ref().map_or("", ProxyUrl::as_str).as_bytes(),
            self.provider.secret_source.as_bytes(),
            &life,
            &[u8::from(self.config.require_scope)],
        ];
        Digest::of(parts)
    }

    /// The audience of its tokens.
    pub(super) fn audience(&self) -> Option<Box<str>> {
        self.config.client.audience.clone()
    }

    /// Where the secrets are read, for admins.
    pub(super) fn secret_source(&self) -> Box<str> {
        self.provider.secret_source.clone()
    }
}

/// A provider, counted.
struct Provider {
    inner: ProviderObtain,
    name: ProfileName,
    secret_source: Box<str>,
    metrics: Arc<Metrics>,
}

impl Obtain for Provider {
    fn obtain(&self) -> Attempt<'_> {
        Box::pin(async {
            let outcome = self.inner.obtain().await;
            let counted: Arc<ProfileMetrics> = self.metrics.profile(&self.name);
            let kind = outcome.result.as_ref().map(drop).map_err(|failure| failure.kind);
            counted.attempt(kind, outcome.requests);
            outcome
        })
    }
}

impl Changes for Provider {
    fn changed(&self) -> Changed<'_> {
        Box::pin(self.inner.secret_changed())
    }

    fn changed_since(&self, mark: Mark) -> Changed<'_> {
        Box::pin(self.inner.secret_changed_since(mark))
    }
}

/// Makes the rotator of a profile and its cell.
pub(super) fn rotator(
    name: &ProfileName,
    identity: Identity,
    built: Built,
    preserve: Option<Arc<dyn Preserve>>,
    time: &Arc<dyn Time>,
    now: Now,
) -> io::Result<(Running, Rotator)> {
    let (publisher, reader) = store::cell(identity, now);
    let task = built.task(name, identity, preserve);
    let (rotator, handle) = rotator::rotator(task, Arc::clone(time), publisher, rand::random())?;
    Ok((Running { identity, built, reader, rotator: handle }, rotator))
}
