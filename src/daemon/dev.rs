//! `bloom-agent dev`: an issuer and an agent in one process, for whoever wants to see or use the API right now.
//!
//! No config, no root, no network but the loopback, where the issuer listens. It is the only way to an http:// endpoint.
//! Everything lies in a fresh directory that only the own user may enter, and goes with the process.

mod command;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::unistd::geteuid;
use rand::{RngExt as _, distr::Alphanumeric};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::{
    Daemon, Fatal, Parts, Signal, keep,
    profile::Workshop,
    run::{RunFault, runtime, to_its_end},
};
use crate::{
    access::Selector,
    clock::{Clock as _, SystemClock},
    config::{Draft, Kind, SourceFile},
    dev_issuer::{DevIssuer, Dialect, Options as IssuerOptions},
    hardening::Before,
    locked::LockedPages,
    log,
    metrics::Metrics,
    oauth2::Endpoint,
    refresh::schedule::DEV_FLOOR,
    secret::Secret,
    server,
    source::{ReadSecret, Reading, SourceFault, Stamp},
    store::{Identity, Reader},
    systemd::Notifier,
    timer::KernelTime,
    token::Generation,
    units::Units,
};
use command::Ending;

/// The one profile.
const PROFILE: &str = "bloom";

/// What `dev` is told.
pub struct Options {
    /// How long a token lives, from 2 s on.
    pub lifetime: Duration,
    /// Whose manners the issuer has.
    pub dialect: Dialect,
    /// A command to run with the agent's socket in its environment; empty for none.
    pub command: Vec<OsString>,
    /// What the caller handed down, which the command gets back.
    pub before: Before,
}

/// Why `dev` ends before it should.
#[derive(Debug, thiserror::Error)]
pub enum DevFault {
    /// As of `run`.
    #[error(transparent)]
    Run(#[from] RunFault),
    /// The system refuses something.
    #[error("cannot {what}\nthe system says: {why}\n{remedy}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What it said.
        why: io::Error,
        /// What to do.
        remedy: &'static str,
    },
}

impl From<Fatal> for DevFault {
    fn from(fatal: Fatal) -> Self {
        Self::Run(fatal.into())
    }
}

/// Runs it until a signal comes or the command ends; returns the exit status.
pub fn dev(options: Options) -> Result<u8, DevFault> {
    // Quiet: whoever runs it wants to read the output of their own program, and asked for the short lives themselves.
    let log_config = log::LogConfig {
        level: tracing::Level::ERROR,
        audit: log::AuditLines::ByLevel,
        ..log::LogConfig::default()
    };
    let log = log::init(log_config, Arc::new(SystemClock), log::stderr())
        .map_err(|why| RunFault::System { what: "no log", why: io::Error::other(why) })?;
    let panics = log::Panics::default();
    log::install_panic_hook(panics.clone());
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), log.dropped(), panics);

    to_its_end(runtime()?, async {
        // Before there is anything to leave behind.
        let ending = Ending::catch().map_err(|why| RunFault::System { what: "no signals", why })?;
        let home = home()?;
        let ended = serve(&options, &home.path().join("agent.sock"), ending, metrics).await;
        if let Err(error) = home.close() {
            tracing::warn!(%error, "the socket's directory stays behind");
        }
        ended
    })
}

/// Serves at `socket`, and leaves none there.
async fn serve(
    options: &Options,
    socket: &Path,
    mut ending: Ending,
    metrics: Arc<Metrics>,
) -> Result<u8, DevFault> {
    let bound =
        server::bind(server::Address { path: socket, mode: 0o600, group: None }).map_err(RunFault::from)?;
    let (client_id, secret) = (random_text(20), random_text(40));
    let mut issuer = IssuerOptions::new(options.dialect, client_id.clone(), secret.clone());
    issuer.lifetime = options.lifetime;
    let (issuer, serve_issuer) = DevIssuer::bind(issuer).map_err(|why| DevFault::System {
        what: "open a port on the loopback for the issuer",
        why,
        remedy: "bring up the loopback interface (`ip link set lo up`) and start again",
    })?;
    let config = dev_config(&issuer, options.dialect, &client_id)?;
    let (time, wall_steps) = KernelTime::new().map_err(|why| RunFault::System { what: "no timer", why })?;
    let time = Arc::new(time);
    let start = Daemon::start(Parts {
        read: Arc::new(move || config.clone()),
        listener: bound.listener,
        credential: None,
        find_unit: None,
        time: time.clone(),
        wall_steps: Some(wall_steps),
        workshop: Arc::new(Workshop {
            credentials: None,
            secret: Some(Arc::new(InMemory(secret))),
            pages: LockedPages::default(),
            clock: time.clone(),
            metrics: Arc::clone(&metrics),
            floor: DEV_FLOOR,
            blocking: super::profile::Blocking::default(),
        }),
        log: None,
        units: Units::of_this_host(time.clone(), Arc::clone(&metrics)),
        metrics,
        own_uid: geteuid().as_raw(),
        degraded: Vec::new(),
        confinement: String::new(),
        notifier: Notifier::none(),
        watchdog: None,
        found: keep::Found::default(),
    });
    let daemon = tokio::select! {
        signal = ending.next() => {
            return Ok(if options.command.is_empty() { 0 } else { command::ended_by(signal) });
        }
        started = start => started?,
    };
    let rotations = daemon.reader(PROFILE);
    let (signal, signals) = mpsc::channel(4);
    let served = daemon.run(signals);
    tokio::pin!(served, serve_issuer);

    if options.command.is_empty() {
        if tell(&introduction(socket, options.lifetime))? == Told::ReaderGone {
            return Ok(0);
        }
        tokio::select! {
            ended = &mut served => ended?,
            () = &mut serve_issuer => return Err(Fatal::Lost("issuer").into()),
            () = stop(ending, signal) => return Err(Fatal::Lost("signals").into()),
            told = tell_rotations(rotations, time) => told?,
        }
        return Ok(0);
    }
    let status = tokio::select! {
        status = command::run(options, socket, &mut ending) => status?,
        ended = &mut served => {
            ended?;
            return Err(Fatal::Lost("accept loop").into());
        }
        () = &mut serve_issuer => return Err(Fatal::Lost("issuer").into()),
    };
    // Who else holds a connection has had its time.
    let _gone = signal.try_send(Signal::End);
    tokio::select! {
        ended = &mut served => ended?,
        () = &mut serve_issuer => {}
    }
    Ok(status)
}

/// Whatever asks us to end, ends us, a hang-up of the terminal too: there is no config to read again.
async fn stop(mut ending: Ending, signals: mpsc::Sender<Signal>) {
    loop {
        ending.next().await;
        if signals.send(Signal::Stop).await.is_err() {
            // The daemon is about to end; its end is what counts.
            return std::future::pending().await;
        }
    }
}

/// A fresh directory of mode 0700, where the user's own runtime directory is, else in /tmp.
fn home() -> Result<tempfile::TempDir, DevFault> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("bloom-agent-dev-");
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    // tempfile makes directories with mode 0700.
    let made = match runtime.map(|runtime| builder.tempdir_in(runtime)) {
        Some(Ok(made)) => Ok(made),
        _ => builder.tempdir(),
    };
    made.map_err(|why| DevFault::System {
        what: "make a directory for the socket",
        why,
        remedy: "make /tmp writable, or set TMPDIR to a directory of your own",
    })
}

fn random_text(length: usize) -> String {
    rand::rng().sample_iter(Alphanumeric).take(length).map(char::from).collect()
}

/// The issuer's own secret, which this process made up and nobody else needs.
struct InMemory(String);

impl ReadSecret for InMemory {
    fn read(&self) -> Result<Reading, SourceFault> {
        let secret =
            Secret::parse(Zeroizing::new(self.0.clone().into_bytes())).map_err(|problem| SourceFault {
                what: "the issuer's own secret was not read".to_owned(),
                why: problem.to_string(),
                remedy: "report it: it is a fault of the agent's own".to_owned(),
                nature: crate::source::Nature::Standing,
            })?;
        Ok(Reading { secret, stamp: Stamp::numbered(0) })
    }

    fn describe(&self) -> String {
        "the issuer's own".to_owned()
    }
}

/// The same config as a person would write it, but for its endpoint, which no text can name.
fn dev_config(issuer: &DevIssuer, dialect: Dialect, client_id: &str) -> Result<Draft, DevFault> {
    // No file of that name is ever read: `InMemory` stands in for it.
    let text = format!(
        "[tokens.{PROFILE}]\nprovider = \"bloom\"\nenvironment = \"sandbox\"\nclient_id = \"{client_id}\"\n\
         client_secret.file = \"/in-memory\"\nscopes = [\"data-access:all\"]\n",
    );
    let source = SourceFile { name: "dev".into(), text, kind: Kind::Main };
    let address = issuer.address().ok_or(Fatal::Lost("issuer"))?;
    let endpoint = Endpoint::loopback(address, dialect.token_path()).map_err(|_| Fatal::Lost("issuer"))?;
    Ok(Draft::read("dev", &[source]).with(|config| {
        config.agent.admin = vec![Selector::of_uid(geteuid().as_raw())];
        if let Some(profile) = config.tokens.get_mut(PROFILE) {
            profile.client.endpoint = endpoint;
        }
    }))
}

fn introduction(socket: &Path, lifetime: Duration) -> String {
    let (cli, place) = sibling_cli().map_or_else(
        // `cargo run -- dev` builds this program alone.
        || ("cargo run -q --bin bloom-agent-cli --".to_owned(), ", in this folder"),
        |cli| (quoted(&cli), ""),
    );
    format!(
        "An agent with an issuer of its own; tokens live {} s. Ctrl-C ends it. In another shell{place}:\n\n\
         export BLOOM_AGENT_SOCK={}\n\
         {cli} token {PROFILE}\n\
         {cli} watch {PROFILE}\n\n",
        lifetime.as_secs(),
        quoted(socket),
    )
}

/// The other program, if it stands beside this one.
fn sibling_cli() -> Option<PathBuf> {
    let cli = std::env::current_exe().ok()?.with_file_name("bloom-agent-cli");
    cli.is_file().then_some(cli)
}

/// For a shell, only where it needs it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Whether somebody still reads what is told.
#[derive(PartialEq, Eq)]
enum Told {
    Reader,
    /// `| head -1`: quietly the end, as of any program in a pipe.
    ReaderGone,
}

fn tell(text: &str) -> Result<Told, DevFault> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Told::Reader),
        Err(why) if why.kind() == io::ErrorKind::BrokenPipe => Ok(Told::ReaderGone),
        Err(why) => Err(DevFault::System {
            what: "write to the standard output",
            why,
            remedy: "free some space, or send the output elsewhere",
        }),
    }
}

/// One line per rotation, until nobody reads them.
async fn tell_rotations(
    rotations: Option<(Identity, Reader)>,
    time: Arc<KernelTime>,
) -> Result<(), DevFault> {
    let Some((identity, mut reader)) = rotations else { return std::future::pending().await };
    let mut last: Option<Generation> = None;
    loop {
        let token = reader.current_and_mark(identity, time.now().boot);
        if let Some(token) = token.filter(|token| Some(token.generation) != last) {
            last = Some(token.generation);
            let (name, generation) = (&token.name, token.generation);
            let line = format!("{name}: token {generation} until {}\n", token.life.expires_wall());
            if tell(&line)? == Told::ReaderGone {
                return Ok(());
            }
        }
        if reader.rotated().await.is_err() {
            return std::future::pending().await;
        }
    }
}
