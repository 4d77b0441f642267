//! The property of the socket: whatever bytes a connection brings, nobody gets a token that is not his, nothing panics,
//! hangs or stays behind, and the next connection is served.
//!
//! The real server and the real services on a real socket, in one thread; only the kernel's word on who connects, the
//! provider and the clock are made up.

use std::{
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream as StdStream},
    },
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    runtime::{Builder, Runtime},
    sync::{mpsc, watch},
    task::{JoinSet, yield_now},
    time::timeout,
};

use crate::{
    access::{AccessRules, Directory, Peer, Policy, ROOT_UID, RootAccess, Rules, Selector},
    audit::Audit,
    clock::Clock as _,
    limits::{Limits, Totals},
    log::{DroppedLines, Panics},
    metrics::Metrics,
    obtain::{Attempt, Obtain, Obtained, Outcome},
    refresh, reply,
    rotator::{self, Handle},
    server::{Book, Patience, Phase, Server},
    service::{self, Agent, Control, ReloadFault, Reloaded, snapshot},
    store::{self, Identity},
    timer::ManualTime,
    token::{AccessToken, Life, LifeSource, ProfileName},
    units::{Origin, Units},
};

/// Nothing here waits for anything; what takes so long hangs.
const HANG: Duration = Duration::from_secs(20);
/// What one connection's bytes may bring back at the most: the descriptions of the API, many times.
const MOST: usize = 32 << 20;
/// May use `open` and `pending`.
const ALLOWED: u32 = 1_000;
/// May connect, and nothing more.
const STRANGER: u32 = 3_000;
const TOKENS: [(&str, u32, Option<&str>); 3] = [
    ("open", ALLOWED, Some("open-t0k3n-of-the-allowed")),
    ("closed", 2_000, Some("closed-t0k3n-of-another")),
    ("pending", ALLOWED, None),
];

const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const PATHS: [&str; 13] = [
    "/bloom.agent.v1.TokenService/GetToken",
    "/bloom.agent.v1.TokenService/WatchToken",
    "/bloom.agent.v1.TokenService/ListTokens",
    "/bloom.agent.v1.TokenService/ReportRejected",
    "/bloom.agent.v1.AdminService/GetStatus",
    "/bloom.agent.v1.AdminService/RefreshToken",
    "/bloom.agent.v1.AdminService/Reload",
    "/bloom.agent.v1.AdminService/GetMetrics",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/bloom.agent.v1.TokenService//GetToken",
];

/// The first byte says who connects, how the rest becomes bytes on the wire, and how they are cut into writes.
pub(super) fn socket(data: &[u8]) {
    thread_local! {
        // Never dropped: a runtime does not like to end with its thread.
        static WORLD: &'static World = Box::leak(Box::new(World::new()));
    }
    let Some((first, rest)) = data.split_first() else { return };
    let uid = [ALLOWED, STRANGER, ROOT_UID, 2_000][usize::from(first & 3)];
    let bytes = match first >> 2 & 3 {
        0 => rest.to_vec(),
        1 => [GREETING, rest].concat(),
        2 => [GREETING, &framed(rest)].concat(),
        _ => [GREETING, &calls(rest)].concat(),
    };
    let piece = [usize::MAX, 1, 7, 100][usize::from(first >> 4 & 3)];
    WORLD.with(|world| {
        let answer = world.exchange(uid, &bytes, piece);
        for (name, allowed, token) in TOKENS {
            let Some(token) = token.filter(|_| uid != allowed && uid != ROOT_UID) else { continue };
            assert!(!holds(&answer, token.as_bytes()), "uid {uid} has the token of {name}");
        }
        if world.served.fetch_add(1, Ordering::Relaxed).is_multiple_of(64) {
            let honest = [GREETING, &calls(b"\0\x06\x0a\x04open")].concat();
            let answer = world.exchange(ALLOWED, &honest, usize::MAX);
            assert!(holds(&answer, b"open-t0k3n-of-the-allowed"), "an honest caller is not served any more");
        }
    });
}

fn holds(answer: &[u8], token: &[u8]) -> bool {
    answer.windows(token.len()).any(|part| part == token)
}

/// Kind, flags, stream, length, payload, and so on.
fn framed(mut data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let [kind, flags, stream, length, rest @ ..] = data {
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        push(&mut out, *kind, *flags, u32::from(*stream), payload);
        data = rest;
    }
    out
}

/// Method, length, message, and so on: each a call of its own. The high bits leave it unfinished, or end it at once.
fn calls(mut data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut stream = 1;
    while let [method, length, rest @ ..] = data {
        let (message, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        let path = PATHS[usize::from(method & 0x3f) % PATHS.len()];
        // :method POST, :scheme http, then literals that are not indexed: :path, content-type and te.
        let mut block = vec![0x83, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
        block.extend_from_slice(path.as_bytes());
        block.extend_from_slice(b"\x0f\x10\x10application/grpc\x00\x02te\x08trailers");
        if method & 0x40 != 0 {
            block.extend_from_slice(b"\x00\x0cgrpc-timeout\x021m");
        }
        push(&mut out, 1, 4, stream, &block);
        let mut framed = vec![0, 0, 0, 0, *length];
        framed.extend_from_slice(message);
        push(&mut out, 0, u8::from(method & 0x80 == 0), stream, &framed);
        stream += 2;
        data = rest;
    }
    out
}

fn push(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let [_, high, middle, low] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    out.extend([high, middle, low, kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend_from_slice(payload);
}

struct World {
    runtime: Runtime,
    address: SocketAddr,
    /// Who the next one to connect is.
    uid: Arc<AtomicU32>,
    time: ManualTime,
    book: Arc<Book>,
    served: AtomicU64,
    _tasks: JoinSet<()>,
    _config: watch::Sender<Arc<snapshot::Snapshot>>,
    _phase: watch::Sender<Phase>,
}

impl World {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let entered = runtime.enter();
        let time = ManualTime::default();
        let metrics = Metrics::new("0", DroppedLines::default(), Panics::default());
        let limits = Limits { connects_per_second: 1_000_000, ..Limits::default() };
        let book = Book::new(limits);
        let mut tasks = JoinSet::new();
        let (config, configs) = watch::channel(Arc::new(snapshot(&time, &mut tasks)));
        let (phase, phases) = watch::channel(Phase::Serving);
        let agent = Arc::new(Agent {
            config: configs,
            phase: phases.clone(),
            clock: Arc::new(time.clone()),
            audit: Arc::new(Audit::new(Arc::new(time.clone()))),
            metrics: Arc::clone(&metrics),
            book: Arc::clone(&book),
            units: Units::of_this_host(Arc::new(time.clone()), Arc::clone(&metrics)),
            control: Arc::new(Nothing),
            started: time.now(),
        });
        let uid = Arc::new(AtomicU32::new(STRANGER));
        let connecting = Arc::clone(&uid);
        let server = Server {
            service: service::services(&agent).unwrap(),
            at_once: Some(service::at_once(&agent)),
            book: Arc::clone(&book),
            clock: Arc::new(time.clone()),
            observe: Arc::new(move |_| {
                let uid = connecting.load(Ordering::Relaxed);
                Ok((Peer { uid, gid: uid, groups: vec![], pid: 1, unit: None }, Origin::Gone))
            }),
            faults: Agent::faults(),
            metrics,
            patience: Patience::default(),
            pulse: mpsc::channel(1).1,
        };
        // One that leaves no file behind.
        let name =
            SocketAddr::from_abstract_name(format!("bloom-agent-fuzzing-{:016x}", rand::random::<u64>()))
                .unwrap();
        let listener = UnixListener::bind_addr(&name).unwrap();
        let address = listener.local_addr().unwrap();
        tasks.spawn(async move { server.serve(listener, phases).await.unwrap() });
        drop(entered);
        let world = Self {
            runtime,
            address,
            uid,
            time,
            book,
            served: AtomicU64::new(0),
            _tasks: tasks,
            _config: config,
            _phase: phase,
        };
        // Until the rotators have their tokens.
        world.runtime.block_on(async {
            for _ in 0..100 {
                yield_now().await;
            }
        });
        world
    }

    /// What comes back for these bytes, when all of them are written and the connection is closed from both ends.
    fn exchange(&self, uid: u32, bytes: &[u8], piece: usize) -> Vec<u8> {
        self.uid.store(uid, Ordering::Relaxed);
        // Enough for the next connect, by the limit, and for what the last one wasted to be paid for.
        self.time.advance(Duration::from_millis(100));
        self.runtime.block_on(async {
            let stream = StdStream::connect_addr(&self.address).unwrap();
            stream.set_nonblocking(true).unwrap();
            let (mut reader, mut writer) = UnixStream::from_std(stream).unwrap().into_split();
            let send = async move {
                for part in bytes.chunks(piece) {
                    if writer.write_all(part).await.is_err() {
                        return;
                    }
                    if part.len() < bytes.len() {
                        yield_now().await;
                    }
                }
                // It may be closed by now.
                let _ = writer.shutdown().await;
            };
            let mut answer = Vec::new();
            let receive = async {
                let mut buffer = [0; 16 * 1024];
                while let Ok(read @ 1..) = reader.read(&mut buffer).await {
                    answer.extend_from_slice(&buffer[..read]);
                    assert!(answer.len() <= MOST, "an answer without an end");
                }
            };
            timeout(HANG, async { tokio::join!(send, receive) }).await.expect("the connection hangs");
            let gone = async {
                while self.book.census().open != Totals::default() {
                    yield_now().await;
                }
            };
            timeout(HANG, gone).await.expect("something of the connection stays behind");
            let census = self.book.census();
            assert_eq!(census.panics, 0, "a handler has panicked");
            answer
        })
    }
}

/// Three profiles, and the tasks of their tokens.
fn snapshot(time: &ManualTime, tasks: &mut JoinSet<()>) -> snapshot::Snapshot {
    let name = |text| ProfileName::parse(text).unwrap();
    let profiles = TOKENS.into_iter().map(|(profile, _, token)| {
        let (rotator, handle) = rotator(time, name(profile), token);
        tasks.spawn(async move { rotator.1.run().await.unwrap() });
        let profile = snapshot::Profile {
            name: name(profile),
            identity: Identity(1),
            allow: vec![],
            scopes: vec![],
            audience: None,
            token_url: "https://id.example/token".into(),
            secret_source: "a file".into(),
            reader: rotator.0,
            rotator: handle,
        };
        (profile.name.clone(), Arc::new(profile))
    });
    let rules = TOKENS
        .into_iter()
        .map(|(profile, uid, _)| (name(profile), Rules::Allow(vec![Selector::of_uid(uid)])));
    let policy = Policy {
        root: RootAccess::Always,
        own_uid: 1,
        admin: vec![],
        directory: Arc::new(Directory::default()),
        unit_slices: vec![],
    };
    snapshot::Snapshot {
        version: 1,
        configured_at: time.now().wall,
        access: AccessRules::new(policy, rules.collect()),
        profiles: profiles.collect(),
    }
}

fn rotator(
    time: &ManualTime,
    name: ProfileName,
    token: Option<&'static str>,
) -> ((store::Reader, rotator::Rotator), Handle) {
    let task = rotator::Task {
        name,
        identity: Identity(1),
        policy: refresh::Policy::default(),
        audience: None,
        obtain: Arc::new(Canned { token, time: time.clone() }),
        secret_changes: None,
        preserve: None,
        frame: Arc::new(|token| reply::framed(token, Bytes::copy_from_slice)),
    };
    let (publisher, reader) = store::cell(Identity(1), time.now());
    let (rotator, handle) = rotator::rotator(task, Arc::new(time.clone()), publisher, 7).unwrap();
    ((reader, rotator), handle)
}

/// A provider that has always the same token, or never answers.
struct Canned {
    token: Option<&'static str>,
    time: ManualTime,
}

impl Obtain for Canned {
    fn obtain(&self) -> Attempt<'_> {
        let Some(token) = self.token else { return Box::pin(std::future::pending()) };
        let access_token = AccessToken::parse(Bytes::from_static(token.as_bytes())).unwrap();
        let length = Duration::from_secs(86_400);
        let life = Life { requested: self.time.now(), length, source: LifeSource::Provider };
        let result = Ok(Obtained { access_token, scopes: vec![], life });
        Box::pin(std::future::ready(Outcome { result, requests: 1, refused: None }))
    }
}

/// A daemon that does nothing.
struct Nothing;

#[tonic::async_trait]
impl Control for Nothing {
    async fn reload(&self) -> Result<Reloaded, ReloadFault> {
        Ok(Reloaded::default())
    }

    async fn look_names_up(&self, _patience: Duration) {}

    fn denial_noted(&self) {}

    fn degraded(&self) -> Vec<String> {
        Vec::new()
    }
}
