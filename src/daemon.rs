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
pub mod keep;
pub mod load;
mod lookup;
mod manager;
pub mod plan;
pub mod profile;
mod reload;
pub mod run;
mod status_line;
pub mod tasks;

use std::{
    collections::BTreeMap, convert::Infallible, os::unix::net::UnixListener, sync::Arc, time::Duration,
};

use tokio::sync::{Notify, mpsc, watch};

use crate::{
    access::{Directory, Lookup},
    audit::Audit,
    clock::Now,
    config::{Config, Problems},
    credential, hardening,
    log::Log,
    metrics::Metrics,
    peer,
    rotator::{Handle, Preserve, Settings, State},
    server::{self, Phase},
    service::{self, Agent, snapshot::Snapshot},
    store::{Identity, Reader},
    systemd::{self, Notifier},
    timer::{Time, WallSteps},
    token::ProfileName,
    units::Units,
};
use control::{Asked, Control};
use keep::Keeper;
use load::Prepared;
use profile::{Built, Workshop};
use tasks::{End, Tasks};

/// What a daemon is made of; `run`, `dev` and the tests differ in it.
pub struct Parts {
    /// How the config is read, for a reload too. Blocking.
    pub read: Arc<load::ReadConfig>,
    /// The socket, listening.
    pub listener: UnixListener,
    /// The socket for units that ask for a token as a credential, listening; where there is a manager that made one.
    pub credential: Option<UnixListener>,
    /// How the unit of who asks there is found; without it by `units`.
    pub find_unit: Option<credential::FindUnit>,
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
    /// Which services callers are in.
    pub units: Arc<Units>,
    /// Who it runs as.
    pub own_uid: u32,
    /// What this host does not give, in words.
    pub degraded: Vec<String>,
    /// What the process has taken from itself, in words; empty where nothing was asked for.
    pub confinement: String,
    /// The way to the service manager.
    pub notifier: Notifier,
    /// How long it waits for a sign of life, where it does.
    pub watchdog: Option<Duration>,
    /// What it has kept of the process before this one.
    pub found: keep::Found,
}

/// Why a daemon cannot start, or go on.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The config's faults, one per line.
    #[error(transparent)]
    Config(Problems),
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

/// What a running agent is told, by a signal of the kernel's or by who started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, SIGINT: drain and end; a second one: end at once.
    Stop,
    /// Whom it was there for is gone (`dev -- COMMAND`): end at once.
    End,
    /// SIGHUP: reload.
    Reload,
}

/// What each task leaves when it ends.
enum Ended {
    Server(std::io::Result<()>),
    Credential(std::io::Result<()>),
    Rotator(ProfileName, std::io::Result<()>),
    WallSteps(std::io::Error),
    Names(lookup::Asked, Option<Lookup>),
    Prepared(Box<Result<Prepared, Problems>>),
    Manager(Infallible),
}

/// One profile's rotator, from the daemon's side.
struct Running {
    identity: Identity,
    built: Built,
    reader: Reader,
    rotator: Handle,
}

/// A running agent.
pub struct Daemon {
    read: Arc<load::ReadConfig>,
    time: Arc<dyn Time>,
    workshop: Arc<Workshop>,
    log: Option<Arc<Log>>,
    metrics: Arc<Metrics>,
    audit: Arc<Audit>,
    units: Arc<Units>,
    own_uid: u32,
    tasks: Tasks<Ended>,
    config: Config,
    configured: Now,
    directory: Directory,
    running: BTreeMap<ProfileName, Running>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    phase: watch::Sender<Phase>,
    book: Arc<server::Book>,
    asked: mpsc::Receiver<Asked>,
    denied: Arc<Notify>,
    last_identity: u64,
    /// How many files this process may have open.
    descriptors: Option<u64>,
    /// Configs put in force.
    commits: u64,
    reloads: reload::Queue,
    keeper: Option<Arc<Keeper>>,
    look_ups: lookup::Queue,
    /// Tasks that serve a socket. When the last has drained, the agent ends.
    serving: usize,
    notifier: Notifier,
    /// What the manager hears of reloads.
    reloaded: watch::Sender<manager::Reloads>,
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
        let Parts {
            read,
            listener,
            credential,
            find_unit,
            time,
            wall_steps,
            workshop,
            log,
            metrics,
            units,
            own_uid,
            degraded,
            confinement,
            notifier,
            watchdog,
            found,
        } = parts;
        let started = time.now();
        let prepared =
            load::prepare(&read, &workshop, own_uid, BTreeMap::new(), None).await.map_err(Fatal::Config)?;
        let config = &prepared.config;

        let (asked_sender, asked) = mpsc::channel(16);
        let (accepting, pulse) = mpsc::channel(1);
        let (phase, phase_seen) = watch::channel(Phase::Serving);
        let (snapshot, snapshot_seen) = watch::channel(Arc::new(Snapshot {
            version: 0,
            configured_at: started.wall,
            access: config.access_rules(own_uid, prepared.found.directory.clone()),
            profiles: BTreeMap::new(),
        }));
        let denied = Arc::new(Notify::new());
        let audit = Arc::new(Audit::new(time.clone()));
        let keeper = Keeper::new(found, &notifier, &time, &metrics, &workshop.pages);
        let (pages, kept, asked_units) = (Arc::clone(&workshop), keeper.clone(), Arc::clone(&units));
        let degraded = move || {
            let kept = kept.as_ref().map(|keeper| keeper.degraded()).unwrap_or_default();
            let lost = pages.degraded().into_iter().chain(kept).chain(asked_units.trouble());
            degraded.iter().cloned().chain(lost).collect()
        };
        let (look_ups, look_ups_seen) = watch::channel(0);
        let control = Control::new(
            asked_sender.clone(),
            look_ups_seen,
            time.clone(),
            Arc::clone(&denied),
            Box::new(degraded),
            confinement,
        );
        let book = server::Book::new(config.limits);
        let agent = Arc::new(Agent {
            config: snapshot_seen.clone(),
            phase: phase_seen.clone(),
            clock: time.clone(),
            audit: Arc::clone(&audit),
            metrics: Arc::clone(&metrics),
            book: Arc::clone(&book),
            units: Arc::clone(&units),
            control: Arc::new(control),
            started,
        });
        let capture = units.capture();
        let server = server::Server {
            service: service::services(&agent).map_err(|_| Fatal::Lost("reflection service"))?,
            at_once: Some(service::at_once(&agent)),
            book: Arc::clone(&book),
            clock: time.clone(),
            observe: Arc::new(move |socket| Ok((peer::observe(socket)?, capture.origin(socket)))),
            faults: Agent::faults(),
            metrics: Arc::clone(&metrics),
            patience: server::Patience::default(),
            pulse,
        };
        let (reloaded, reloads_seen) = watch::channel(manager::Reloads::default());
        let (crediting, credential_pulse) = mpsc::channel(1);
        let mut accepting = vec![accepting];
        accepting.extend(credential.is_some().then_some(crediting));
        let reporter = notifier.is_there().then(|| manager::Reporter {
            notifier: notifier.clone(),
            watchdog,
            ready: config.agent.ready,
            config: snapshot_seen,
            phase: phase_seen.clone(),
            reloads: reloads_seen,
            clock: time.clone(),
            accepting,
            daemon: asked_sender,
        });
        let mut daemon = Self {
            read,
            time,
            workshop,
            log,
            metrics,
            audit,
            units,
            own_uid,
            tasks: Tasks::new(),
            config: without_tokens(config),
            configured: started,
            directory: prepared.found.directory.clone(),
            running: BTreeMap::new(),
            snapshot,
            phase,
            book,
            asked,
            denied,
            last_identity: 0,
            descriptors: hardening::descriptor_limit(),
            commits: 0,
            reloads: reload::Queue::default(),
            keeper,
            look_ups: lookup::Queue::new(look_ups),
            serving: 1,
            notifier,
            reloaded,
        };
        daemon.commit(prepared).await.map_err(Fatal::Config)?;
        daemon.keep()?;
        if let Some(listener) = credential {
            let observe = Arc::clone(&server.observe);
            let find_unit = find_unit.unwrap_or_else(|| credential::by_units(Arc::clone(&daemon.units)));
            let server = credential::Server {
                agent,
                time: Arc::clone(&daemon.time),
                observe,
                find_unit,
                pulse: credential_pulse,
            };
            let phase = phase_seen.clone();
            daemon.serving += 1;
            daemon.tasks.spawn("credential socket", async move {
                Ended::Credential(server.serve(listener, phase).await)
            });
        }
        daemon
            .tasks
            .spawn("accept loop", async move { Ended::Server(server.serve(listener, phase_seen).await) });
        if let Some(steps) = wall_steps {
            daemon.tasks.spawn("wall clock", async move { Ended::WallSteps(steps.run().await) });
        }
        if let Some(reporter) = reporter {
            daemon.tasks.spawn("service manager", async move { Ended::Manager(reporter.run().await) });
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
                        // A courtesy: a manager that does not read sees us end all the same.
                        let _unread = self.notifier.tell(&[systemd::State::Stopping, systemd::State::Status("stopping: open calls have 5 s")]);
                    }
                },
                Some(asked) = self.asked.recv() => match asked {
                    Asked::Reload(answer) => self.ask_reload(Some(answer)),
                    Asked::LookNamesUp => self.look_names_up(),
                    Asked::Pulse(beat) => {
                        // Who asked has stopped waiting: the next one is told.
                        let _gone = beat.send(());
                    }
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
                    Some(End::Done(Ended::Server(Ok(())) | Ended::Credential(Ok(())))) => {
                        self.serving -= 1;
                        if self.serving == 0 {
                            break;
                        }
                    }
                    Some(End::Done(Ended::Server(Err(why)) | Ended::Credential(Err(why)))) => {
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
                    Some(End::Done(Ended::Manager(never))) => match never {},
                    Some(End::Done(Ended::Names(asked, found))) => self.names_found(asked, found),
                    Some(End::Done(Ended::Prepared(prepared))) => self.prepared(*prepared).await,
                    Some(End::RotatorLost(name)) => self.replace_rotator(&name)?,
                    Some(End::Lost(what)) => return Err(Fatal::Lost(what)),
                    None => return Err(Fatal::Lost("tasks")),
                },
            }
        }
        // The rotators leave what they were at as they end.
        self.tasks.shutdown().await;
        if let Some(keeper) = &self.keeper {
            keeper.flush().await;
        }
        self.audit.flush();
        Ok(())
    }

    /// All that was found has been asked for; from now on the manager is given what is new.
    fn keep(&mut self) -> Result<(), Fatal> {
        let Some(keeper) = self.keeper.clone() else { return Ok(()) };
        keeper.settle_in();
        let alarm = self.time.alarm().map_err(|why| Fatal::System { what: "no timer can be had", why })?;
        self.tasks.spawn("keeper of tokens", async move { match keeper.run(alarm).await {} });
        Ok(())
    }

    fn preserve(&self) -> Option<Arc<dyn Preserve>> {
        self.keeper.clone().map(|keeper| -> Arc<dyn Preserve> { keeper })
    }

    fn follow(&self, name: &ProfileName, identity: Identity, built: &Built) -> Option<(State, Settings)> {
        self.keeper.as_ref()?.follow(name, identity, built)
    }

    fn spawn_rotator(&mut self, name: ProfileName, rotator: crate::rotator::Rotator) {
        let ended = name.clone();
        self.tasks.spawn_rotator(&name, async move {
            let how = rotator.run().await;
            Ended::Rotator(ended, how)
        });
    }

    /// A rotator has panicked. Its successor takes over the token that is served, so that no caller notices, and counts the
    /// loss as a failed attempt, so that a fault that comes back each time floods nobody.
    fn replace_rotator(&mut self, name: &ProfileName) -> Result<(), Fatal> {
        let Some(running) = self.running.get(name) else { return Ok(()) };
        tracing::error!(profile = %name, "the profile's rotator was lost by a fault of the agent's own; another takes its place");
        let now = self.time.now();
        let held = running.reader.current(running.identity, now.boot);
        let attempts = running.reader.attempts();
        let (identity, built) = (running.identity, running.built.clone());
        let made = profile::rotator(name, identity, built, self.preserve(), &self.time, now);
        let (running, mut rotator) =
            made.map_err(|why| Fatal::System { what: "no timer can be had", why })?;
        rotator.succeed(&attempts, held);
        self.running.insert(name.clone(), running);
        self.spawn_rotator(name.clone(), rotator);
        self.swap();
        Ok(())
    }

    fn new_identity(&mut self) -> Identity {
        self.last_identity += 1;
        Identity(self.last_identity)
    }
}
