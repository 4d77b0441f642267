//! The daemon: composes the parts, owns every task, reloads, shuts down.
//!
//! One loop ([`Daemon::run`]) hears of everything that happens: a signal, a request of an admin, the end of a task. Every
//! task is spawned through [`tasks`], is owned by that loop, and its end is an event: a rotator that is lost is a fault
//! of ours, and is replaced by one that takes its token over.
//!
//! The config in force is one [`Snapshot`]; swapping it is the instant in which a reload takes effect. Everything that can
//! fail happens before that instant, and nothing after it.

pub mod check;
pub mod control;
pub mod dev;
pub mod load;
pub mod plan;
pub mod profile;
pub mod run;
pub mod tasks;

use std::{
    collections::{BTreeMap, VecDeque},
    os::unix::net::UnixListener,
    sync::Arc,
};

use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::{
    access::{Directory, Lookup},
    audit::Audit,
    clock::Now,
    config::Config,
    log::Log,
    metrics::Metrics,
    names, peer,
    rotator::Handle,
    server::{self, Phase},
    service::{
        self, Agent, ReloadFault, Reloaded,
        snapshot::{Profile, Snapshot},
    },
    store::{Identity, Reader},
    timer::{Time, WallSteps},
    token::ProfileName,
};
use control::{Asked, Control};
use load::{Loaded, Prepared};
use profile::{Built, Workshop};
use tasks::{End, Tasks};

/// What a daemon is made of; `run`, `dev` and the tests differ in it.
pub struct Parts {
    /// How the config is read, for a reload too. Blocking.
    pub read: Arc<load::ReadConfig>,
    /// The socket, listening.
    pub listener: UnixListener,
    /// The time.
    pub time: Arc<dyn Time>,
    /// Hears of steps of the wall clock, where the time is the kernel's.
    pub wall_steps: Option<WallSteps>,
    /// Makes what a profile needs to get its tokens.
    pub workshop: Arc<Workshop>,
    /// The log, to be set anew by a reload.
    pub log: Option<Arc<Log>>,
    /// Where the figures go.
    pub metrics: Arc<Metrics>,
    /// Who it runs as.
    pub own_uid: u32,
    /// What this host does not give, in words.
    pub degraded: Vec<String>,
}

/// Why a daemon cannot start, or go on.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The config's faults, one per line.
    #[error("{}", .0.join("\n"))]
    Config(Vec<String>),
    /// The kernel does not give what the agent needs.
    #[error("{what}: {why}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// What it said.
        why: std::io::Error,
    },
    /// A part that the agent cannot go on without is gone.
    #[error("the agent lost its {0}, by a fault of its own; the log says where")]
    Lost(&'static str),
}

/// What an operator tells a running agent by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, SIGINT: drain and end; a second one: end at once.
    Stop,
    /// SIGHUP: reload.
    Reload,
    /// End at once, without draining: `dev`'s command is over.
    End,
}

/// What each task leaves when it ends.
enum Ended {
    Server(std::io::Result<()>),
    Rotator(ProfileName, std::io::Result<()>),
    WallSteps(std::io::Error),
    Names(Option<Lookup>),
    Prepared(Box<Result<Prepared, Vec<String>>>),
}

/// One profile's rotator, from the daemon's side.
struct Running {
    identity: Identity,
    built: Built,
    reader: Reader,
    rotator: Handle,
}

/// A reload that somebody waits for; SIGHUP waits for nothing.
type ReloadAnswer = Option<oneshot::Sender<Result<Reloaded, ReloadFault>>>;

/// A running agent.
pub struct Daemon {
    read: Arc<load::ReadConfig>,
    time: Arc<dyn Time>,
    workshop: Arc<Workshop>,
    log: Option<Arc<Log>>,
    metrics: Arc<Metrics>,
    audit: Arc<Audit>,
    own_uid: u32,
    tasks: Tasks<Ended>,
    config: Config,
    directory: Directory,
    running: BTreeMap<ProfileName, Running>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    phase: watch::Sender<Phase>,
    book: Arc<server::Book>,
    asked: mpsc::Receiver<Asked>,
    denied: Arc<Notify>,
    last_identity: u64,
    /// One at a time; the first of these is under way.
    reloads: VecDeque<ReloadAnswer>,
    /// Who waits for the look-up that is under way.
    lookers: Vec<oneshot::Sender<()>>,
}

/// What a config is compared with that is the first.
fn without_tokens(config: &Config) -> Config {
    let mut config = config.clone();
    config.tokens.clear();
    config
}

impl Daemon {
    /// Reads the config, makes every profile and spawns every task: when this returns, the agent answers.
    pub async fn start(parts: Parts) -> Result<Self, Fatal> {
        let Parts { read, listener, time, wall_steps, workshop, log, metrics, own_uid, degraded } = parts;
        let started = time.now();
        let prepared =
            load::prepare(&read, &workshop, own_uid, BTreeMap::new(), None).await.map_err(Fatal::Config)?;
        let config = &prepared.loaded.config;

        let (asked_sender, asked) = mpsc::channel(16);
        let (phase, phase_seen) = watch::channel(Phase::Serving);
        let (snapshot, snapshot_seen) = watch::channel(Arc::new(Snapshot {
            version: 0,
            configured_at: started.wall,
            access: config.access_rules(own_uid, prepared.directory.clone()),
            profiles: BTreeMap::new(),
        }));
        let denied = Arc::new(Notify::new());
        let audit = Arc::new(Audit::new(time.clone()));
        let pages = Arc::clone(&workshop);
        let degraded = move || degraded.iter().cloned().chain(pages.degraded()).collect();
        let control = Control::new(asked_sender, time.clone(), Arc::clone(&denied), Box::new(degraded));
        let book = server::Book::new(config.limits);
        let agent = Arc::new(Agent {
            config: snapshot_seen,
            phase: phase_seen.clone(),
            clock: time.clone(),
            audit: Arc::clone(&audit),
            metrics: Arc::clone(&metrics),
            book: Arc::clone(&book),
            control: Arc::new(control),
            started,
        });
        let server = server::Server {
            service: service::routes(&agent).map_err(|_| Fatal::Lost("reflection service"))?,
            book: Arc::clone(&book),
            clock: time.clone(),
            observe: Arc::new(peer::observe),
            faults: Agent::faults(),
            patience: server::Patience::default(),
        };
        let mut daemon = Self {
            read,
            time,
            workshop,
            log,
            metrics,
            audit,
            own_uid,
            tasks: Tasks::new(),
            config: without_tokens(config),
            directory: prepared.directory.clone(),
            running: BTreeMap::new(),
            snapshot,
            phase,
            book,
            asked,
            denied,
            last_identity: 0,
            reloads: VecDeque::new(),
            lookers: Vec::new(),
        };
        daemon.commit(prepared).await.map_err(Fatal::Config)?;
        daemon
            .tasks
            .spawn("accept loop", async move { Ended::Server(server.serve(listener, phase_seen).await) });
        if let Some(steps) = wall_steps {
            daemon.tasks.spawn("wall clock", async move { Ended::WallSteps(steps.run().await) });
        }
        Ok(daemon)
    }

    /// A profile's reader, for a face inside the process (`dev` prints its rotations).
    pub fn reader(&self, name: &str) -> Option<(Identity, Reader)> {
        self.running.get(name).map(|running| (running.identity, running.reader.clone()))
    }

    /// Serves until it is told to stop, and drains. A second stop ends it at once.
    pub async fn run(mut self, mut signals: mpsc::Receiver<Signal>) -> Result<(), Fatal> {
        let system = |why| Fatal::System { what: "no timer can be had", why };
        let mut audit_alarm = self.time.alarm().map_err(system)?;
        let denied = Arc::clone(&self.denied);
        loop {
            let audit_due = self.audit.next_due();
            tokio::select! {
                signal = signals.recv() => match signal {
                    Some(Signal::Reload) => self.ask_reload(None),
                    Some(Signal::End) => break,
                    // Who gives the signals is gone: nobody could stop us any more.
                    Some(Signal::Stop) | None => {
                        if self.phase.send_replace(Phase::Draining) == Phase::Draining {
                            tracing::warn!("told to stop a second time: ending without waiting for calls");
                            break;
                        }
                        tracing::info!("stopping: no new connections; open calls have 5 s");
                    }
                },
                Some(asked) = self.asked.recv() => match asked {
                    Asked::Reload(answer) => self.ask_reload(Some(answer)),
                    Asked::LookNamesUp(answer) => self.ask_names(answer),
                },
                () = denied.notified() => {}
                () = async {
                    // Without a clock the counts are told when the next event comes by, and at the end.
                    match audit_due {
                        Some(due) if audit_alarm.sleep_until(due).await.is_ok() => {}
                        _ => std::future::pending().await,
                    }
                } => self.audit.tell_due(),
                end = self.tasks.next() => match end {
                    Some(End::Done(Ended::Server(Ok(())))) => break,
                    Some(End::Done(Ended::Server(Err(why)))) => {
                        return Err(Fatal::System { what: "the socket cannot be served", why });
                    }
                    // It was told to: its profile is gone.
                    Some(End::Done(Ended::Rotator(name, Ok(())))) => tracing::debug!(profile = %name, "rotator ended"),
                    Some(End::Done(Ended::Rotator(_, Err(why)))) => {
                        return Err(Fatal::System { what: "a timer was taken away", why });
                    }
                    Some(End::Done(Ended::WallSteps(error))) => {
                        self.metrics.degrade("wall-clock-steps");
                        tracing::warn!(%error, "steps of the wall clock are not noticed any more; refreshes go by the time since boot");
                    }
                    Some(End::Done(Ended::Names(found))) => self.names_found(found),
                    Some(End::Done(Ended::Prepared(prepared))) => self.reload(*prepared).await,
                    Some(End::RotatorLost(name)) => self.replace_rotator(&name)?,
                    Some(End::Lost(what)) => return Err(Fatal::Lost(what)),
                    None => return Err(Fatal::Lost("tasks")),
                },
            }
        }
        self.audit.flush();
        Ok(())
    }

    fn ask_reload(&mut self, answer: ReloadAnswer) {
        self.reloads.push_back(answer);
        if self.reloads.len() == 1 {
            self.prepare_reload();
        }
    }

    fn prepare_reload(&mut self) {
        let (read, workshop, own_uid) = (Arc::clone(&self.read), Arc::clone(&self.workshop), self.own_uid);
        let built =
            self.running.iter().map(|(name, running)| (name.clone(), running.built.clone())).collect();
        let running = self.config.clone();
        self.tasks.spawn("reload", async move {
            Ended::Prepared(Box::new(load::prepare(&read, &workshop, own_uid, built, Some(running)).await))
        });
    }

    /// A reload has been read: puts it in force, or says why not; then begins the next one.
    async fn reload(&mut self, prepared: Result<Prepared, Vec<String>>) {
        let outcome = match prepared {
            Ok(prepared) => self.commit(prepared).await,
            Err(faults) => Err(faults),
        };
        match &outcome {
            Ok(done) => tracing::info!(
                added = done.added.join(" "),
                replaced = done.replaced.join(" "),
                removed = done.removed.join(" "),
                "reloaded"
            ),
            Err(faults) => {
                tracing::error!(
                    faults = faults.len(),
                    "not reloaded: the config has faults, and the running one stays"
                );
                for fault in faults {
                    tracing::error!("{fault}");
                }
            }
        }
        if let Some(Some(answer)) = self.reloads.pop_front() {
            // Who asked may have gone; the reload is done all the same.
            let _gone = answer.send(outcome.map_err(|faults| ReloadFault::Config(faults.join("\n"))));
        }
        if !self.reloads.is_empty() {
            self.prepare_reload();
        }
    }

    /// Puts a config in force. Whatever can fail comes first, and changes nothing if it does.
    async fn commit(&mut self, prepared: Prepared) -> Result<Reloaded, Vec<String>> {
        let Prepared { loaded: Loaded { config, warnings }, directory, mut built } = prepared;
        let now = self.time.now();
        let plan = plan::plan(&self.config.tokens, &config.tokens);
        let mut fresh = BTreeMap::new();
        for name in plan.keys() {
            if !self.running.contains_key(name)
                && let Some(built) = built.remove(name)
            {
                let identity = self.new_identity();
                let made = profile::rotator(name, identity, built, &self.time, now, None);
                let made = made.map_err(|error| {
                    vec![format!("{name}: no timer can be had ({error}); raise LimitNOFILE=")]
                })?;
                fresh.insert(name.clone(), made);
            }
        }

        // From here on nothing fails.
        let mut done = Reloaded { warnings, ..Reloaded::default() };
        let mut told = Vec::new();
        let mut gone = Vec::new();
        for (name, change) in plan {
            match change {
                plan::Change::Added => done.added.push(name.as_str().to_owned()),
                plan::Change::Replaced => done.replaced.push(name.as_str().to_owned()),
                plan::Change::Removed => done.removed.push(name.as_str().to_owned()),
                plan::Change::Kept => {}
            }
            if change == plan::Change::Removed {
                gone.extend(self.running.remove(&name));
                continue;
            }
            if let Some((running, rotator)) = fresh.remove(&name) {
                self.running.insert(name.clone(), running);
                self.spawn_rotator(name, rotator);
                continue;
            }
            let identity = (change == plan::Change::Replaced).then(|| self.new_identity());
            if let (Some(running), Some(built)) = (self.running.get_mut(&name), built.remove(&name)) {
                running.identity = identity.unwrap_or(running.identity);
                running.built = built;
                told.push((running.rotator.clone(), running.built.task(&name, running.identity)));
            }
        }
        self.config = config;
        self.directory = directory;
        if let Some(log) = &self.log {
            log.set(load::log_config(&self.config.log));
        }
        self.book.replace(self.config.limits);
        self.metrics.set_profiles(self.running.keys());
        self.swap(now);
        // In force. The rotators hear of it last: the readers withhold a token of an old identity by themselves.
        for (rotator, task) in told {
            // One that is gone has panicked: an event of the loop, which replaces it by what is in force now.
            let _gone = rotator.reconfigure(task).await;
        }
        for running in gone {
            running.rotator.stop().await;
        }
        for warning in &done.warnings {
            tracing::warn!("{warning}");
        }
        Ok(done)
    }

    /// Publishes what is in force as the next version.
    fn swap(&mut self, now: Now) {
        let profiles = self.running.iter().filter_map(|(name, running)| {
            let config = self.config.tokens.get(name)?;
            let profile = Profile {
                name: name.clone(),
                identity: running.identity,
                allow: config
                    .rules
                    .selectors()
                    .iter()
                    .map(|line| line.as_written().as_ref().into())
                    .collect(),
                scopes: config.client.scopes.clone(),
                audience: config.client.audience.clone(),
                token_url: config.client.endpoint.as_str().into(),
                secret_source: running.built.secret_source(),
                reader: running.reader.clone(),
                rotator: running.rotator.clone(),
            };
            Some((name.clone(), Arc::new(profile)))
        });
        let next = Snapshot {
            version: self.snapshot.borrow().version + 1,
            configured_at: now.wall,
            access: self.config.access_rules(self.own_uid, self.directory.clone()),
            profiles: profiles.collect(),
        };
        self.snapshot.send_replace(Arc::new(next));
    }

    fn spawn_rotator(&mut self, name: ProfileName, rotator: crate::rotator::Rotator) {
        let ended = name.clone();
        self.tasks.spawn_rotator(&name, async move {
            let how = rotator.run().await;
            Ended::Rotator(ended, how)
        });
    }

    /// A rotator has panicked. Its successor takes over the token that is served, so that no caller notices.
    fn replace_rotator(&mut self, name: &ProfileName) -> Result<(), Fatal> {
        let Some(running) = self.running.get(name) else { return Ok(()) };
        tracing::error!(profile = %name, "the profile's rotator was lost by a fault of the agent's own; another takes its place");
        let now = self.time.now();
        let held = running.reader.current(running.identity, now.boot);
        let made = profile::rotator(name, running.identity, running.built.clone(), &self.time, now, held);
        let (running, rotator) = made.map_err(|why| Fatal::System { what: "no timer can be had", why })?;
        self.running.insert(name.clone(), running);
        self.spawn_rotator(name.clone(), rotator);
        self.swap(now);
        Ok(())
    }

    fn ask_names(&mut self, answer: oneshot::Sender<()>) {
        self.lookers.push(answer);
        if self.lookers.len() == 1 {
            let wanted = self.config.names();
            self.tasks.spawn("look-up of names", async move {
                // After a look-up that panics, what was known stays.
                let found = tokio::task::spawn_blocking(move || names::resolve(&wanted)).await;
                Ended::Names(found.ok())
            });
        }
    }

    fn names_found(&mut self, found: Option<Lookup>) {
        // What could not be asked is not thereby gone: a directory service that is down takes nobody's permission away.
        let directory = found.map_or_else(
            || self.directory.clone(),
            |found| {
                let mut directory = found.directory;
                for name in found.failed.keys() {
                    if let Some(id) = self.directory.id(name) {
                        // It was fit to be in the directory before.
                        let _fit = directory.insert(name.clone(), id);
                    }
                }
                directory
            },
        );
        if directory != self.directory {
            self.directory = directory;
            self.swap(self.time.now());
            tracing::info!(
                "users or groups of the rules have changed on this host; every caller is judged anew"
            );
        }
        for looker in self.lookers.drain(..) {
            // Who waited may have given up.
            let _gone = looker.send(());
        }
    }

    fn new_identity(&mut self) -> Identity {
        self.last_identity += 1;
        Identity(self.last_identity)
    }
}
