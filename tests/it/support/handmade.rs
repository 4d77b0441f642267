//! What the daemon would have put together, put together by hand: a config's cell, a token's, and a socket that serves them.
//! For what happens below the daemon, with nothing in between.

use std::{collections::BTreeMap, convert::Infallible, io, path::PathBuf, sync::Arc, time::Duration};

use bloom_agent::{
    access::{AccessRules, Directory, Peer, Policy, RootAccess, Rules, Selector},
    audit::Audit,
    clock::{Clock as _, Now},
    limits::Limits,
    log::{DroppedLines, Panics},
    metrics::Metrics,
    obtain::{Attempt, Obtain},
    refresh, reply,
    rotator::{self, Handle, Rotator, Task},
    server::{self, Address, AtOnce, Book, Bound, Patience, Phase, Place, Server},
    service::{
        self, Agent, Control, ReloadFault, Reloaded,
        snapshot::{Profile, Snapshot},
    },
    store::{self, Identity, Publisher, Reader},
    timer::ManualTime,
    token::{AccessToken, Generation, Life, LifeSource, ProfileName, Reply, Token},
    units::{Origin, Units},
};
use bytes::Bytes;
use http::{Request, Response};
use tokio::{net::UnixStream, sync::watch, task::JoinSet};
use tonic::body::Body;
use tower_service::Service;

use super::Client;

/// A provider that never answers.
struct Never;

impl Obtain for Never {
    fn obtain(&self) -> Attempt<'_> {
        Box::pin(std::future::pending())
    }
}

/// A daemon that does nothing.
struct Nobody;

#[tonic::async_trait]
impl Control for Nobody {
    async fn reload(&self) -> Result<Reloaded, ReloadFault> {
        Err(ReloadFault::Stopping)
    }
    async fn look_names_up(&self, _patience: Duration) {}
    fn denial_noted(&self) {}
    fn degraded(&self) -> Vec<String> {
        Vec::new()
    }
}

fn bloom() -> ProfileName {
    ProfileName::parse("bloom").unwrap()
}

fn idle_rotator(time: &ManualTime) -> (Rotator, Handle) {
    let (publisher, _reader) = store::cell(Identity(1), time.now());
    let task = Task {
        name: bloom(),
        identity: Identity(1),
        policy: refresh::Policy::default(),
        audience: None,
        obtain: Arc::new(Never),
        secret_changes: None,
        preserve: None,
        frame: Arc::new(|token| token),
    };
    rotator::rotator(task, Arc::new(time.clone()), publisher, 1).unwrap()
}

fn snapshot(version: u64, now: Now, allow: &str, reader: &Reader, rotator: &Handle) -> Arc<Snapshot> {
    let policy = Policy {
        root: RootAccess::Always,
        own_uid: 7,
        admin: vec![],
        directory: Arc::new(Directory::default()),
        unit_slices: vec![],
    };
    let rules = Rules::Allow(vec![Selector::parse(allow).unwrap()]);
    let profile = Profile {
        name: bloom(),
        identity: Identity(1),
        allow: vec![],
        scopes: vec![],
        audience: None,
        token_url: "".into(),
        secret_source: "".into(),
        reader: reader.clone(),
        rotator: rotator.clone(),
    };
    Arc::new(Snapshot {
        version,
        configured_at: now.wall,
        access: AccessRules::new(policy, BTreeMap::from([(bloom(), rules)])),
        profiles: BTreeMap::from([(bloom(), Arc::new(profile))]),
    })
}

fn token(generation: u64, now: Now) -> Arc<Token> {
    let token = Token {
        name: bloom(),
        generation: Generation::from_u64(generation),
        access_token: AccessToken::parse(format!("token-{generation}").into_bytes().into()).unwrap(),
        scopes: vec![],
        audience: None,
        life: Life { requested: now, length: Duration::from_secs(3600), source: LifeSource::Provider },
        reply: Reply::default(),
    };
    Arc::new(reply::framed(token, Bytes::copy_from_slice))
}

/// An agent with one profile, `bloom`, and callers of one uid. Its rotator is idle.
pub(crate) struct Handmade {
    pub(crate) agent: Arc<Agent>,
    pub(crate) time: ManualTime,
    uid: u32,
    publisher: Publisher,
    reader: Reader,
    config: watch::Sender<Arc<Snapshot>>,
    phase: watch::Sender<Phase>,
    _rotator: Rotator,
    handle: Handle,
    directory: tempfile::TempDir,
    tasks: JoinSet<io::Result<()>>,
    /// The sockets' paths go with them.
    places: Vec<Place>,
}

impl Handmade {
    /// Serves callers of that uid, who are admitted.
    pub(crate) fn serve(uid: u32) -> Self {
        Self::with(uid, Arc::new(Nobody))
    }

    /// The same with a daemon of the test's own.
    pub(crate) fn with(uid: u32, control: Arc<dyn Control>) -> Self {
        let time = ManualTime::default();
        let now = time.now();
        let (rotator, handle) = idle_rotator(&time);
        let (publisher, reader) = store::cell(Identity(1), now);
        let (config, config_seen) = watch::channel(snapshot(1, now, &format!("uid:{uid}"), &reader, &handle));
        let (phase, phase_seen) = watch::channel(Phase::Serving);
        let clock = Arc::new(time.clone());
        let metrics = Metrics::new("0", DroppedLines::default(), Panics::default());
        let agent = Arc::new(Agent {
            config: config_seen,
            phase: phase_seen,
            clock: clock.clone(),
            audit: Arc::new(Audit::new(clock.clone())),
            metrics: Arc::clone(&metrics),
            book: Book::new(Limits::default()),
            units: Units::of_this_host(clock, metrics),
            control,
            started: now,
        });
        let directory = tempfile::tempdir().unwrap();
        let mut handmade = Self {
            agent,
            time,
            uid,
            publisher,
            reader,
            config,
            phase,
            _rotator: rotator,
            handle,
            directory,
            tasks: JoinSet::new(),
            places: Vec::new(),
        };
        let services = service::services(&handmade.agent).unwrap();
        let at_once = service::at_once(&handmade.agent);
        handmade.also_serve("agent.sock", services, Some(at_once));
        handmade
    }

    /// Serves `service` on a socket of that name, to the same callers, and what is asked before it.
    pub(crate) fn also_serve<S>(
        &mut self,
        name: &str,
        service: S,
        at_once: Option<Arc<dyn AtOnce>>,
    ) -> PathBuf
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        let path = self.directory.path().join(name);
        let Bound { listener, place } =
            server::bind(Address { path: &path, mode: 0o600, group: None }).unwrap();
        let uid = self.uid;
        let server = Server {
            service,
            at_once,
            book: Arc::clone(&self.agent.book),
            clock: Arc::new(self.time.clone()),
            observe: Arc::new(move |_| {
                Ok((Peer { uid, gid: uid, groups: vec![], pid: 1, unit: None }, Origin::Gone))
            }),
            faults: Agent::faults(),
            metrics: Arc::clone(&self.agent.metrics),
            patience: Patience::default(),
            pulse: tokio::sync::mpsc::channel(1).1,
        };
        self.tasks.spawn(server.serve(listener, self.agent.phase.clone()));
        self.places.push(place);
        path
    }

    /// Where the agent is served.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    pub(crate) async fn client(&self) -> Client {
        Client::over(UnixStream::connect(self.socket()).await.unwrap().into_std().unwrap()).await
    }

    /// Puts another version of the config in force, which admits whoever is not the caller.
    pub(crate) fn withdraw(&self) {
        self.reload(self.uid + 1);
    }

    /// Puts another version of the config in force, which admits the caller.
    pub(crate) fn readmit(&self) {
        self.reload(self.uid);
    }

    fn reload(&self, uid: u32) {
        let version = self.agent.config.borrow().version + 1;
        let allow = format!("uid:{uid}");
        self.config.send_replace(snapshot(version, self.time.now(), &allow, &self.reader, &self.handle));
    }

    pub(crate) async fn publish(&self, generation: u64) {
        self.publisher.publish(Identity(1), token(generation, self.time.now()));
        self.publisher.ring().await;
    }

    /// Drains, and waits for the end.
    pub(crate) async fn end(mut self) {
        self.phase.send_replace(Phase::Draining);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap().unwrap();
        }
        drop(self.places);
    }
}
