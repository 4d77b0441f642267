//! `bloom-agent run`: the daemon as systemd, or a person, starts it.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::unistd::{Uid, geteuid};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::sleep,
};

use super::{
    Daemon, Fatal, Parts, Signal, keep, load,
    profile::{Blocking, Workshop},
};
use crate::{
    clock::SystemClock,
    config::{self, AgentConfig, Config, UnknownNames},
    hardening::{self, Degraded},
    http,
    locked::LockedPages,
    log,
    metrics::Metrics,
    names, refresh, resident,
    server::{self, BindFault, Place},
    source,
    systemd::{ActivationFault, Manager, Notifier},
    timer::KernelTime,
    units::Units,
    wall::{self, AbstractSockets, Gates, Wall},
};

/// Where the config is when nobody says.
pub const DEFAULT_CONFIG: &str = "/etc/bloom-agent/config.toml";

/// The port of token endpoints that name none.
const HTTPS: u16 = 443;

/// Threads for what blocks and cannot be called back: [`source::READINGS`] for secret files, [`http::LOOK_UPS`] for the
/// providers' names, and some for what is done one at a time: NSS, the reading of a config, a walk of the cgroups. So none of them waits for
/// a thread that another one's hanging call has. With the event loop's and the log's own it stays well within the
/// TasksMax=32 of the unit.
const BLOCKING_THREADS: usize = source::READINGS + http::LOOK_UPS + 5;

/// Then the start is over, first tokens and all.
const START: Duration = Duration::from_secs(10);

/// Why `run` ends before it should.
#[derive(Debug, thiserror::Error)]
pub enum RunFault {
    /// The daemon's own reason.
    #[error(transparent)]
    Daemon(#[from] Fatal),
    /// No socket.
    #[error(transparent)]
    Bind(#[from] BindFault),
    /// What the service manager passes is not for us to serve.
    #[error(transparent)]
    Activation(#[from] ActivationFault),
    /// A group that cannot be given.
    #[error("cannot give the socket to the group {group}\n{why}\n{remedy}")]
    Group {
        /// Its name.
        group: String,
        /// Why not.
        why: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The kernel does not give what the agent needs.
    #[error("cannot start: {what}\nthe system says: {why}\nfree some, or raise the limit, and start again")]
    System {
        /// What was asked for.
        what: &'static str,
        /// What it said.
        why: io::Error,
    },
}

/// Runs the agent until it is told to stop.
pub fn run(path: &Path, mut degraded: Vec<Degraded>) -> Result<(), RunFault> {
    // First: what it passes has the next numbers, and nobody else may see its variables.
    let Manager { passed, notifier, watchdog } = Manager::take()?;
    degraded.extend(hardening::no_new_privileges().err());
    let descriptors = hardening::raise_descriptor_limit();
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let mut draft = load::from_files(path);
    let group = match (&passed.listener, draft.agent_key("socket_group")) {
        // Mode and group of a socket that systemd made are its unit's to say.
        (Some(_), _) | (None, None) => Ok(None),
        (None, Some(agent)) => socket_group(agent),
    };
    if draft.is_faulty() || group.is_err() {
        // Nothing is bound, so all that is wrong is told here, at once.
        let workshop = Workshop::for_check(credentials.clone());
        let unknown = UnknownNames::AreWarnings;
        load::judge(&mut draft, &workshop, geteuid().as_raw(), unknown, &BTreeMap::new());
        if let (true, Err(RunFault::Group { why, remedy, .. })) = (draft.is_faulty(), &group) {
            draft.fault(draft.problem("agent.socket_group", *why, *remedy));
        }
    }
    let first = draft.clone();
    let config = draft.finish().map_err(|faults| {
        passed.turn_away();
        Fatal::Config(faults)
    })?;
    let group = group?;
    let (listener_of_ours, place) = match passed.listener {
        Some(listener) => (listener, None),
        None => {
            let (path, mode) = (&config.agent.socket, config.agent.socket_mode);
            let bound = server::bind(server::Address { path, mode, group })?;
            (bound.listener, Some(bound.place))
        }
    };
    // As soon as the last file is made, and the ports are known; while there is one thread, which all others come from.
    let wall = wall::raise(gates(&config, place.as_ref(), &notifier));
    let log = log::init(load::log_config(&config.log), Arc::new(SystemClock), log::stderr())
        .map_err(|why| RunFault::System { what: "no log", why: io::Error::other(why) })?;
    let log = Arc::new(log);
    let panics = log::Panics::default();
    log::install_panic_hook(panics.clone());
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), log.dropped(), panics);

    if let Err(errno) = descriptors {
        tracing::warn!(
            error = errno.desc(),
            "the limit of open files could not be raised; it stays as it is"
        );
    }
    for name in &passed.unknown {
        tracing::warn!(
            name,
            "the service manager passed a descriptor that the agent does not know; it is closed"
        );
    }
    for missing in &degraded {
        metrics.degrade(missing.protection.as_str());
        tracing::warn!("{missing}");
    }
    let lacking = tell_of(&wall, &metrics);
    let address = listener_of_ours.local_addr().ok();
    let socket = address.as_ref().and_then(|address| address.as_pathname()).unwrap_or(&config.agent.socket);
    let socket = socket.to_owned();
    let found = keep::Found::on_this_host(passed.stored);
    let path = PathBuf::from(path);
    let degraded = degraded.iter().map(ToString::to_string).chain(lacking).collect();
    let confinement = wall.to_string();
    // What the socket was bound by is what is put in force first; a reload reads anew.
    let first = Mutex::new(Some(first));
    let read = move || {
        let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.unwrap_or_else(|| {
            let mut draft = load::from_files(&path);
            if let Some(open) = wall.ports() {
                draft.judge_ports(open);
            }
            draft
        })
    };
    let ended = to_its_end(runtime()?, async move {
        let (time, wall_steps) =
            KernelTime::new().map_err(|why| RunFault::System { what: "no timer", why })?;
        let time = Arc::new(time);
        let (listener, mut signals) = mpsc::channel(4);
        let again = listener.clone();
        // Before anything is served: a SIGTERM must never find the default action.
        let heard =
            signals_of_the_kernel(listener).map_err(|why| RunFault::System { what: "no signals", why })?;
        let parts = Parts {
            read: Arc::new(read),
            listener: listener_of_ours,
            credential: passed.credential,
            find_unit: None,
            time: time.clone(),
            wall_steps: Some(wall_steps),
            workshop: Arc::new(Workshop {
                credentials,
                secret: None,
                pages: LockedPages::default(),
                clock: time.clone(),
                metrics: Arc::clone(&metrics),
                floor: refresh::schedule::FLOOR,
                blocking: Blocking::default(),
            }),
            log: Some(log),
            units: Units::of_this_host(time, Arc::clone(&metrics)),
            metrics,
            own_uid: geteuid().as_raw(),
            degraded,
            confinement,
            notifier,
            watchdog,
            found,
        };
        let served = async move {
            let start = Daemon::start(parts);
            tokio::pin!(start);
            let mut reload = false;
            let daemon = loop {
                tokio::select! {
                    // A name service that hangs is no reason not to end when told.
                    signal = signals.recv() => match signal {
                        Some(Signal::Reload) => reload = true,
                        Some(Signal::Stop | Signal::End) | None => return Ok(()),
                    },
                    started = &mut start => break started?,
                }
            };
            if reload {
                // The config was read before it was asked for. The channel has just been emptied.
                let _sent = again.try_send(Signal::Reload);
            }
            drop(again);
            tracing::info!(socket = %socket.display(), version = env!("CARGO_PKG_VERSION"), "serving");
            let settled = async {
                sleep(START).await;
                if let Err(error) = resident::release_code() {
                    tracing::debug!(%error, "the code that only the start needed stays in memory");
                }
                std::future::pending::<Infallible>().await
            };
            tokio::select! {
                ended = daemon.run(signals) => ended?,
                never = settled => match never {},
            }
            tracing::info!("stopped");
            Ok(())
        };
        tokio::select! {
            ended = served => ended,
            () = heard => Err(Fatal::Lost("signals").into()),
        }
    });
    drop(place);
    ended
}

/// What the agent needs to do from now on that the wall would deny.
fn gates<'a>(config: &Config, place: Option<&'a Place>, notifier: &Notifier) -> Gates<'a> {
    let mut ports = config.ports();
    if config.tokens.is_empty() {
        // As a package leaves it. The first profile comes by a reload, and nearly all of them are asked there.
        ports.insert(HTTPS);
    }
    let abstract_sockets =
        if notifier.is_abstract() { AbstractSockets::Needed } else { AbstractSockets::Closed };
    Gates { ports, removes_in: place.map(Place::directory), abstract_sockets }
}

/// Tells once how far the process has confined itself; what is missing is also a gauge, and returned in words.
fn tell_of(wall: &Wall, metrics: &Metrics) -> Vec<String> {
    let missing = wall.missing();
    if missing.is_empty() {
        tracing::info!(confinement = %wall, "the process has confined itself");
        return Vec::new();
    }
    let (parts, words): (Vec<_>, Vec<_>) = missing.into_iter().map(|it| (it.part, it.meaning)).unzip();
    parts.into_iter().for_each(|part| metrics.degrade(part));
    tracing::warn!(confinement = %wall, missing = words.join("; "), "the process has confined itself as far as the host lets it");
    words
}

/// One thread for all that serves: with two cores or fewer a second one gains nothing, and nothing here computes for long.
///
/// Threads for what blocks stay once they are there: where the host gives no other (TasksMax=, RLIMIT_NPROC), what blocks
/// waits for one of these. Without any, tokio panics.
pub(super) fn runtime() -> Result<Runtime, RunFault> {
    let none = |why| RunFault::System { what: "no thread for what blocks", why };
    // Of this one nothing is left but the knowledge that there can be one.
    std::thread::Builder::new()
        .spawn(|| ())
        .map_err(none)?
        .join()
        .map_err(|_| none(io::ErrorKind::Other.into()))?;
    Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(Duration::MAX)
        .build()
        .map_err(|why| RunFault::System { what: "no event loop", why })
}

/// Runs `work` and ends, whatever still blocks a thread: dropping a runtime would wait for a look-up of a name or for a
/// file system that hangs, and nothing could end the process but SIGKILL.
pub(super) fn to_its_end<T>(runtime: Runtime, work: impl Future<Output = T>) -> T {
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}

/// The group that the socket is given to.
pub(super) fn socket_group(agent: &AgentConfig) -> Result<Option<u32>, RunFault> {
    let name = match &agent.socket_group {
        Some(name) => name.to_string(),
        // The default is the packaged group, for who can be meant by it.
        None if binds_as_packaged() => config::DEFAULT_SOCKET_GROUP.to_owned(),
        None => return Ok(None),
    };
    let fault = |why| RunFault::Group {
        group: name.clone(),
        why,
        remedy: "create it (`groupadd --system NAME`), or name another one in agent.socket_group",
    };
    match names::group_id(&name) {
        Ok(Some(gid)) => Ok(Some(gid)),
        Ok(None) => Err(fault("this host knows no such group")),
        Err(_) => Err(fault("it could not be looked up")),
    }
}

fn binds_as_packaged() -> bool {
    let own = geteuid();
    own == Uid::from_raw(0) || names::user_name(own.as_raw()).as_deref() == Some("bloom-agent")
}

/// Turns the kernel's signals into ours, for as long as somebody listens. The handlers are in place when this returns.
pub(super) fn signals_of_the_kernel(listener: mpsc::Sender<Signal>) -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        loop {
            let heard = tokio::select! {
                Some(()) = terminate.recv() => Signal::Stop,
                Some(()) = interrupt.recv() => Signal::Stop,
                Some(()) = hangup.recv() => Signal::Reload,
                else => return,
            };
            if listener.send(heard).await.is_err() {
                // The daemon is about to end; its end is what counts.
                return std::future::pending().await;
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_in_a_system_call_does_not_keep_the_process() {
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        let (began, has_begun) = tokio::sync::oneshot::channel();
        let outcome = to_its_end(runtime().unwrap(), async {
            tokio::task::spawn_blocking(move || {
                began.send(()).unwrap();
                // Until the test is over.
                hangs.recv()
            });
            has_begun.await.unwrap();
            7
        });
        assert_eq!(outcome, 7);
        drop(release);
    }
}
