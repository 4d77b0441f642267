//! A reload and a rotation in the same instant: the older decision gives nothing away.
//!
//! Below the daemon: the config's cell and the token's are moved by hand, with nothing in between.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bloom_agent::{
    access::{AccessRules, Directory, Peer, Policy, RootAccess, Rules, Selector},
    audit::Audit,
    clock::{Clock as _, Now},
    limits::Limits,
    log::{DroppedLines, Panics},
    metrics::Metrics,
    obtain::{Attempt, Obtain},
    refresh,
    rotator::{self, Handle, Rotator, Task},
    server::{self, Address, Book, Patience, Phase, Server},
    service::{
        self, Agent, Control, ReloadFault, Reloaded,
        snapshot::{Profile, Snapshot},
    },
    store::{self, Identity, Reader},
    timer::ManualTime,
    token::{AccessToken, Generation, Life, LifeSource, ProfileName, Token},
    units::{Origin, Units},
};
use tokio::{net::UnixStream, sync::watch, task::JoinSet};
use tonic::Code;

use crate::support::{Client, Next as _};

struct Never;

impl Obtain for Never {
    fn obtain(&self) -> Attempt<'_> {
        Box::pin(std::future::pending())
    }
}

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

pub(crate) fn bloom() -> ProfileName {
    ProfileName::parse("bloom").unwrap()
}

pub(crate) fn idle_rotator(time: &ManualTime) -> (Rotator, Handle) {
    let (publisher, _reader) = store::cell(Identity(1), time.now());
    let task = Task {
        name: bloom(),
        identity: Identity(1),
        policy: refresh::Policy::default(),
        audience: None,
        obtain: Arc::new(Never),
        secret_changes: None,
        preserve: None,
    };
    rotator::rotator(task, Arc::new(time.clone()), publisher, 1).unwrap()
}

pub(crate) fn snapshot(
    version: u64,
    now: Now,
    allow: &str,
    reader: &Reader,
    rotator: &Handle,
) -> Arc<Snapshot> {
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

pub(crate) fn token(generation: u64, now: Now) -> Arc<Token> {
    Arc::new(Token {
        name: bloom(),
        generation: Generation::from_u64(generation),
        access_token: AccessToken::parse(format!("token-{generation}").into_bytes().into()).unwrap(),
        scopes: vec![],
        audience: None,
        life: Life { requested: now, length: Duration::from_secs(3600), source: LifeSource::Provider },
    })
}

#[tokio::test]
async fn a_token_that_rotates_in_the_instant_of_a_reload_is_not_given_by_the_older_decision() {
    let time = ManualTime::default();
    let now = time.now();
    let (_rotator, handle) = idle_rotator(&time);
    // Which of two things that are ready is taken may be a matter of chance: often enough to meet both.
    for _ in 0..100 {
        let (publisher, reader) = store::cell(Identity(1), now);
        let (config, config_seen) = watch::channel(snapshot(1, now, "uid:1234", &reader, &handle));
        let (phase, phase_seen) = watch::channel(Phase::Serving);
        let book = Book::new(Limits::default());
        let clock = Arc::new(time.clone());
        let metrics = Metrics::new("0", DroppedLines::default(), Panics::default());
        let agent = Arc::new(Agent {
            config: config_seen,
            phase: phase_seen.clone(),
            clock: clock.clone(),
            audit: Arc::new(Audit::new(clock.clone())),
            metrics: Arc::clone(&metrics),
            book: Arc::clone(&book),
            units: Units::of_this_host(clock.clone(), Arc::clone(&metrics)),
            control: Arc::new(Nobody),
            started: now,
        });
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let bound = server::bind(Address { path: &path, mode: 0o600, group: None }).unwrap();
        let server = Server {
            service: service::routes(&agent).unwrap(),
            book,
            clock,
            observe: Arc::new(|_| {
                Ok((Peer { uid: 1234, gid: 1, groups: vec![], pid: 1, unit: None }, Origin::Gone))
            }),
            faults: Agent::faults(),
            metrics,
            patience: Patience::default(),
            pulse: tokio::sync::mpsc::channel(1).1,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(server.serve(bound.listener, phase_seen));

        publisher.publish(Identity(1), token(1, now));
        let client = Client::over(UnixStream::connect(&path).await.unwrap().into_std().unwrap()).await;
        let mut stream = client.watch("bloom").await.unwrap();
        assert_eq!(stream.next_message().await.unwrap().unwrap().token.unwrap().generation, 1);
        client.catch_up().await;

        config.send_replace(snapshot(2, now, "uid:9999", &reader, &handle));
        publisher.publish(Identity(1), token(2, now));
        let end = stream.next_message().await.expect_err("the permission is gone");
        assert_eq!(end.code(), Code::PermissionDenied);

        drop((stream, client));
        phase.send_replace(Phase::Draining);
        tasks.join_next().await.unwrap().unwrap().unwrap();
    }
}
