//! The agent in this process, for stories: its own socket, an issuer on the loopback, a time that the story moves, a
//! config that it rewrites, a log that it reads.
//!
//! - Nothing here sleeps. A story waits for events: requests at the issuer, attempts that settle, answers on the socket.
//! - What is started is owned: by [`Agent`], whose [`Agent::stop`] awaits it, or by the [`Client`] that it serves.

mod callers;
mod client;
pub(crate) mod handmade;

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bloom_agent::{
    clock::{Clock, Timestamp},
    config::{Draft, Kind, Profile, SourceFile},
    credential::FindUnit,
    daemon::{
        Daemon, Fatal, Parts, Signal,
        keep::Found,
        load::ReadConfig,
        profile::{Blocking, Workshop},
    },
    dev_issuer::{Control, DevIssuer, Dialect, Options},
    http::LookUps,
    locked::LockedPages,
    log::{self, Captured, DroppedLines, LogConfig, Panics},
    metrics::Metrics,
    oauth2::Endpoint,
    refresh::schedule::FLOOR,
    server::{self, Place},
    source::ReadSecret,
    store::{Attempts, Identity, Phase, Reader},
    systemd::Notifier,
    timer::ManualTime,
    units::Units,
};
use nix::unistd::geteuid;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

pub(crate) use self::{
    callers::{as_caller, as_member, as_uid, skipped_without_root},
    client::{Client, Next, refusal, retry_delay},
};

/// Nothing in a story takes long; what takes so long hangs.
pub(crate) const HANG: Duration = Duration::from_secs(60);
/// The client's secret, in the file and at the issuer, until a story changes it.
pub(crate) const SECRET: &str = "the-first-secret";
/// The one profile of most stories.
pub(crate) const BLOOM: &str = "bloom";

/// Waits for something that is bound to happen soon.
pub(crate) async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    timeout(HANG, event).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Waits until a path's listener is gone. A program that another test starts has this process's descriptors for as long as
/// it takes from fork(2) to exec(2): the listener may outlive its server by that much.
pub(crate) async fn nobody_listens(path: &Path) {
    let gone = async {
        while std::os::unix::net::UnixStream::connect(path).is_ok() {
            tokio::task::yield_now().await;
        }
    };
    soon("nobody listens any more", gone).await;
}

/// Makes what looks callers' units up.
type MakeUnits = Box<dyn Fn(Arc<dyn Clock>, Arc<Metrics>) -> Arc<Units> + Send + Sync>;

/// Which token endpoint the profiles ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoints {
    /// The issuer's, which no config can name: it is on the loopback, without TLS.
    Issuer,
    /// Their own.
    AsConfigured,
}

/// What a story starts with.
pub(crate) struct Setting {
    /// `[limits]`, `key = value` lines.
    pub(crate) limits: String,
    /// The `[tokens.*]` tables.
    pub(crate) tokens: String,
    /// The issuer.
    pub(crate) issuer: Options,
    /// Whether the profiles ask it.
    pub(crate) endpoints: Endpoints,
    /// Where names are looked up.
    pub(crate) look_ups: LookUps,
    /// The clock that lives are counted on, made from the one that the story moves.
    pub(crate) clock: Box<dyn FnOnce(ManualTime) -> Arc<dyn Clock> + Send>,
    /// Where callers' units are looked up.
    pub(crate) units: MakeUnits,
    /// In the place of all secret files.
    pub(crate) secret: Option<Arc<dyn ReadSecret>>,
    /// With it there is a socket for credentials, open to every uid.
    pub(crate) find_unit: Option<FindUnit>,
    /// Done to the issuer before the agent asks it for the first time.
    pub(crate) before: fn(&Control),
    /// The way to the service manager.
    pub(crate) notifier: Notifier,
    /// What that has kept.
    pub(crate) found: Found,
}

impl Default for Setting {
    fn default() -> Self {
        let mut issuer = Options::new(Dialect::Hydra, "it-client", SECRET);
        // Any, so that profiles can differ in it.
        issuer.audiences.clear();
        Self {
            limits: String::new(),
            tokens: profile(BLOOM, ""),
            issuer,
            endpoints: Endpoints::Issuer,
            look_ups: LookUps::default(),
            clock: Box::new(|time| Arc::new(time)),
            units: Box::new(Units::of_this_host),
            secret: None,
            find_unit: None,
            before: |_| (),
            notifier: Notifier::none(),
            found: Found::default(),
        }
    }
}

/// A profile of Bloom's sandbox; `SECRET_FILE` stands for the path of the secret's file, until the config is written.
pub(crate) fn profile(name: &str, lines: &str) -> String {
    let has = |key: &str| lines.lines().any(|line| line.trim_start().starts_with(key));
    let unless = |key: &str, line: &str| if has(key) { String::new() } else { format!("{line}\n") };
    format!(
        "[tokens.{name}]\nprovider = 'bloom'\nenvironment = 'sandbox'\nclient_id = 'it-client'\n{}{}{lines}\n",
        unless("scopes", "scopes = ['data-access:all']"),
        unless("client_secret.", "client_secret.file = 'SECRET_FILE'"),
    )
}

/// Whether a story has a server of its own, which its config names: on the loopback, or by a name that its resolver knows.
fn names_a_server(profile: &Profile) -> bool {
    let host = profile.client.endpoint.host();
    host.ends_with(".story.example") || host == "127.0.0.1"
}

/// How an agent ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// As SIGTERM has it.
    InOrder,
    /// As SIGKILL has it: with nothing done any more.
    Crash,
}

/// A running agent and the world around it.
pub(crate) struct Agent {
    pub(crate) time: ManualTime,
    pub(crate) issuer: Control,
    log: Captured,
    pub(crate) limits: String,
    config: Arc<Mutex<String>>,
    read: Arc<ReadConfig>,
    clock: Arc<dyn Clock>,
    secret: Option<Arc<dyn ReadSecret>>,
    look_ups: LookUps,
    readers: Vec<(String, Identity, Reader)>,
    path: PathBuf,
    signals: mpsc::Sender<Signal>,
    daemon: JoinSet<Result<(), Fatal>>,
    issuing: JoinSet<()>,
    place: Option<Place>,
    credential_place: Option<Place>,
    units: MakeUnits,
    find_unit: Option<FindUnit>,
    directory: tempfile::TempDir,
    _log: tracing::dispatcher::DefaultGuard,
}

impl Agent {
    /// With one profile that gets its tokens.
    pub(crate) async fn start() -> Self {
        Self::start_with(Setting::default()).await
    }

    pub(crate) async fn start_with(setting: Setting) -> Self {
        let Setting {
            limits,
            tokens,
            issuer,
            endpoints,
            clock,
            units,
            secret,
            look_ups,
            find_unit,
            before,
            notifier,
            found,
        } = setting;
        // In /tmp and open to all, so that another uid can reach the socket: what is tested is the wall behind it.
        let directory = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir_in("/tmp")
            .unwrap();
        let path = directory.path().join("agent.sock");
        write_secret(&directory.path().join("secret"), SECRET);

        let time = ManualTime::default();
        let everything = LogConfig { level: tracing::Level::TRACE, ..LogConfig::default() };
        let (dispatch, log) = log::captured(everything, Arc::new(time.clone()));
        let _log = tracing::dispatcher::set_default(&dispatch);

        let dialect = issuer.dialect;
        let (issuer, serve_issuer) = DevIssuer::bind(issuer).unwrap();
        let address = issuer.address().unwrap();
        let issuer = issuer.control();
        before(&issuer);
        let mut issuing = JoinSet::new();
        issuing.spawn(serve_issuer);

        let config = Arc::new(Mutex::new(String::new()));
        let text = Arc::clone(&config);
        let read = move || {
            let text = text.lock().unwrap().clone();
            let source = SourceFile { name: "config.toml".into(), text, kind: Kind::Main };
            Draft::read("config.toml", &[source]).with(|config| {
                let asking = config
                    .tokens
                    .values_mut()
                    .filter(|profile| endpoints == Endpoints::Issuer && !names_a_server(profile));
                for profile in asking {
                    // No text can name it.
                    profile.client.endpoint = Endpoint::loopback(address, dialect.token_path()).unwrap();
                }
            })
        };
        let mut agent = Self {
            clock: clock(time.clone()),
            time,
            issuer,
            log,
            limits,
            config,
            read: Arc::new(read),
            secret,
            look_ups,
            readers: Vec::new(),
            path,
            signals: mpsc::channel(1).0,
            daemon: JoinSet::new(),
            issuing,
            units,
            find_unit,
            place: None,
            credential_place: None,
            directory,
            _log,
        };
        agent.write_config(&tokens);
        agent.begin(notifier, found).await;
        agent
    }

    /// Starts the agent itself, in the world that there is: once more, after [`Self::end`].
    pub(crate) async fn begin(&mut self, notifier: Notifier, found: Found) {
        let bound = server::bind(server::Address { path: &self.path, mode: 0o666, group: None }).unwrap();
        self.place = Some(bound.place);
        let credential = self.find_unit.is_some().then(|| {
            let path = self.directory.path().join("credential.sock");
            server::bind(server::Address { path: &path, mode: 0o666, group: None }).unwrap()
        });
        let (credential, credential_place) = credential.map(|bound| (bound.listener, bound.place)).unzip();
        self.credential_place = credential_place;
        let metrics = Metrics::new("test", DroppedLines::default(), Panics::default());
        let (signals, signalled) = mpsc::channel(4);
        self.signals = signals;
        let daemon = Daemon::start(Parts {
            read: Arc::clone(&self.read),
            listener: bound.listener,
            credential,
            find_unit: self.find_unit.clone(),
            time: Arc::new(self.time.clone()),
            wall_steps: None,
            workshop: Arc::new(Workshop {
                credentials: None,
                secret: self.secret.clone(),
                pages: LockedPages::default(),
                clock: Arc::clone(&self.clock),
                metrics: Arc::clone(&metrics),
                floor: FLOOR,
                blocking: Blocking::with_look_ups(self.look_ups.clone()),
            }),
            log: None,
            units: (self.units)(Arc::new(self.time.clone()), Arc::clone(&metrics)),
            metrics,
            own_uid: geteuid().as_raw(),
            degraded: Vec::new(),
            confinement: String::new(),
            notifier,
            watchdog: None,
            found,
        })
        .await
        .unwrap();
        let config = self.config.lock().unwrap().clone();
        let names = config.lines().filter_map(|line| line.strip_prefix("[tokens.")?.strip_suffix(']'));
        self.readers = names
            .map(|name| {
                let (identity, reader) = daemon.reader(name).unwrap();
                (name.to_owned(), identity, reader)
            })
            .collect();
        self.daemon.spawn(daemon.run(signalled));
    }

    /// Ends the agent itself, and leaves the world as it is.
    pub(crate) async fn end(&mut self, how: End) {
        match how {
            End::InOrder => {
                self.signal(Signal::Stop).await;
                self.ended().await;
            }
            End::Crash => self.daemon.shutdown().await,
        }
        drop(self.place.take());
    }

    /// Puts other `[tokens.*]` tables into the config; a reload reads them.
    pub(crate) fn write_config(&self, tokens: &str) {
        let own = geteuid();
        let text = format!("[agent]\nadmin = ['uid:{own}']\n[limits]\n{}\n{tokens}", self.limits);
        self.write_raw_config(&text);
    }

    /// Puts this whole text in the place of the config.
    pub(crate) fn write_raw_config(&self, text: &str) {
        let secret = self.secret_file();
        *self.config.lock().unwrap() = text.replace("SECRET_FILE", secret.to_str().unwrap());
    }

    /// The file of the client's secret.
    pub(crate) fn secret_file(&self) -> PathBuf {
        self.directory.path().join("secret")
    }

    /// A connection of this process's own uid.
    pub(crate) async fn client(&self) -> Client {
        Client::over(std::os::unix::net::UnixStream::connect(&self.path).unwrap()).await
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.path
    }

    /// Where units ask for credentials.
    pub(crate) fn credential_socket(&self) -> PathBuf {
        self.directory.path().join("credential.sock")
    }

    /// All that was logged by the agent's own thread, at TRACE.
    pub(crate) fn log(&self) -> String {
        self.log.text()
    }

    /// Tells it by a signal.
    pub(crate) async fn signal(&self, signal: Signal) {
        self.signals.send(signal).await.unwrap();
    }

    /// Drops the end that signals come from.
    pub(crate) fn lose_the_signals(&mut self) {
        self.signals = mpsc::channel(1).0;
    }

    /// How refreshing goes, for a profile of the first config.
    pub(crate) fn attempts(&self, name: &str) -> Attempts {
        self.reader(name).1.attempts()
    }

    /// The same, to be waited for.
    pub(crate) fn watch_attempts(&self, name: &str) -> Reader {
        self.reader(name).1
    }

    /// Whether a token is served now.
    pub(crate) fn has_token(&self, name: &str) -> bool {
        let (identity, reader) = self.reader(name);
        reader.current(identity, self.time.now().boot).is_some()
    }

    fn reader(&self, name: &str) -> (Identity, Reader) {
        let (_, identity, reader) = self.readers.iter().find(|(known, ..)| known == name).unwrap();
        (*identity, reader.clone())
    }

    /// Waits until the attempts are such.
    pub(crate) async fn attempts_until(&self, name: &str, ready: impl FnMut(&Attempts) -> bool) -> Attempts {
        soon("the attempts", self.reader(name).1.attempts_until(ready)).await.unwrap()
    }

    /// Until when the token is served that is there now.
    pub(crate) fn served_until(&self, name: &str) -> Timestamp {
        let (identity, reader) = self.reader(name);
        reader.current(identity, self.time.now().boot).expect("a token is served").life.served_until()
    }

    /// When the next attempt starts; waits while one is in flight.
    pub(crate) async fn next_attempt(&self, name: &str) -> Timestamp {
        let idle = |attempts: &Attempts| attempts.phase != Phase::InFlight;
        match self.attempts_until(name, idle).await.phase {
            Phase::Idle { next } => next,
            Phase::InFlight => unreachable!(),
        }
    }

    /// Lets the time go by to the next attempt, and waits until that is over.
    pub(crate) async fn pass_an_attempt(&self, name: &str) -> Attempts {
        let next = self.next_attempt(name).await;
        let settled = self.attempts(name).settled;
        self.time.advance_to(next);
        self.attempts_until(name, |attempts| attempts.settled > settled).await
    }

    /// Waits until the daemon has ended by itself.
    pub(crate) async fn ended(&mut self) {
        let end = soon("the agent ends", self.daemon.join_next()).await;
        end.expect("it ran").expect("without panic").expect("without fault");
    }

    /// Stops the agent, then the issuer, and waits for both.
    pub(crate) async fn stop(mut self) {
        self.signal(Signal::Stop).await;
        self.ended().await;
        nobody_listens(&self.path).await;
        drop(self.place.take());
        assert!(!self.path.exists(), "the socket is gone");
        self.issuer.stop();
        soon("the issuer ends", self.issuing.join_next()).await.unwrap().unwrap();
    }
}

/// Puts a secret into a file as an operator would: whole, by rename, readable by its owner alone.
pub(crate) fn write_secret(path: &Path, secret: &str) {
    use std::io::Write as _;
    // tempfile makes files with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap()).unwrap();
    file.write_all(secret.as_bytes()).unwrap();
    file.persist(path).unwrap();
}
