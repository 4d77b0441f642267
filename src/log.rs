//! The agent's log: lines on stderr, as text or JSON, or entries of the journal, from the agent's own code and from nothing
//! else.
//!
//! - Only targets of this crate and of its programs pass, at any level: what hyper, h2, reqwest, rustls or tonic would
//!   print of a body or a header has no way here. There is no bridge from the `log` crate either.
//! - Control characters never reach the reader raw, whoever wrote them ([`mod@line`], [`entry`]): one event is one line, or
//!   one entry.
//! - Logging never blocks a call: [`queue`] drops lines, and counts them, when nobody reads.
//! - No escape sequence is ever written, not even to a terminal.
//! - The audit ([`crate::audit`]) passes at every level: verbosity is not a reason to forget who got what.

pub mod entry;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub mod journal;
pub mod line;
pub mod queue;
mod sentence;

use std::{
    fmt,
    io::{self, Write},
    os::fd::AsFd,
    panic,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tracing::{
    Dispatch, Event, Level, Metadata, Subscriber,
    level_filters::LevelFilter,
    subscriber::{Interest, SetGlobalDefaultError},
};
use tracing_subscriber::{
    Registry,
    layer::{Context, Layer, SubscriberExt as _},
};

use crate::clock::{Clock, WallTime};
use journal::Journal;
use line::Shape;
use queue::{Queue, Record};

/// The target of the audit's events.
pub const AUDIT_TARGET: &str = "bloom_agent::audit";

/// How long dropping [`Log`] waits for a reader: a stuck stderr must not keep the agent from ending.
const LAST_FLUSH: Duration = Duration::from_secs(1);

/// `log.format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `TIME LEVEL target: message key=value …`
    #[default]
    Text,
    /// One JSON object a line: `time`, `level`, `target`, `message`, and the event's fields.
    Json,
    /// Not lines, but entries of systemd's journal ([`entry`]).
    Journal,
}

impl Format {
    /// The format of who names none: where stderr is the journal and its socket can be reached, the journal's own, which
    /// keeps what a line would flatten; else text.
    pub fn usual() -> Self {
        let stream = std::env::var(journal::STREAM_VARIABLE).ok();
        if journal::is_stream(stream.as_deref(), io::stderr()) && Journal::usual().is_there() {
            Self::Journal
        } else {
            Self::Text
        }
    }

    fn record(self, now: WallTime, event: &Event<'_>) -> Record {
        match self {
            Self::Text => Record::Line(line::event(Shape::Text, now, event)),
            Self::Json => Record::Line(line::event(Shape::Json, now, event)),
            Self::Journal => Record::Entry(entry::event(event)),
        }
    }

    fn lost(self, now: WallTime, lost: u64) -> Record {
        match self {
            Self::Text => Record::Line(line::lost(Shape::Text, now, lost)),
            Self::Json => Record::Line(line::lost(Shape::Json, now, lost)),
            Self::Journal => Record::Entry(entry::lost(lost)),
        }
    }
}

/// `[log]` of the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The least important level that is written.
    pub level: Level,
    /// How.
    pub format: Format,
    /// Which lines of the audit.
    pub audit: AuditLines,
}

/// Which lines of the audit are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuditLines {
    /// All, at every level: who got what is not a matter of verbosity.
    #[default]
    Always,
    /// Those that the level lets through, as any other: for `dev`, whose reader is the only caller.
    ByLevel,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: Level::INFO, format: Format::Text, audit: AuditLines::Always }
    }
}

/// Lines that were dropped since the start, because the queue was full or the writer failed.
#[derive(Clone, Debug, Default)]
pub struct DroppedLines(Arc<AtomicU64>);

impl DroppedLines {
    /// How many.
    pub fn count(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn add(&self, lines: u64) {
        self.0.fetch_add(lines, Relaxed);
    }
}

/// Panics since the hook was installed, caught ones too.
#[derive(Clone, Debug, Default)]
pub struct Panics(Arc<AtomicU64>);

impl Panics {
    /// How many.
    pub fn count(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// What can be changed while the agent runs: level and format, in one byte.
#[derive(Debug)]
struct Switch(AtomicU8);

impl Switch {
    fn new(config: LogConfig) -> Arc<Self> {
        Arc::new(Self(AtomicU8::new(Self::pack(config))))
    }

    fn pack(config: LogConfig) -> u8 {
        let level = match config.level {
            Level::ERROR => 0,
            Level::WARN => 1,
            Level::INFO => 2,
            Level::DEBUG => 3,
            Level::TRACE => 4,
        };
        let format = match config.format {
            Format::Text => 0,
            Format::Json => 1,
            Format::Journal => 2,
        };
        let by_level = u8::from(config.audit == AuditLines::ByLevel);
        level << 3 | by_level << 2 | format
    }

    fn set(&self, config: LogConfig) {
        self.0.store(Self::pack(config), Relaxed);
    }

    fn get(&self) -> LogConfig {
        let packed = self.0.load(Relaxed);
        let level = match packed >> 3 {
            0 => Level::ERROR,
            1 => Level::WARN,
            2 => Level::INFO,
            3 => Level::DEBUG,
            _ => Level::TRACE,
        };
        LogConfig {
            level,
            format: match packed & 3 {
                0 => Format::Text,
                1 => Format::Json,
                _ => Format::Journal,
            },
            audit: if packed & 4 == 4 { AuditLines::ByLevel } else { AuditLines::Always },
        }
    }
}

/// The running log. Dropping it writes what can still be written, within a second.
#[derive(Debug)]
pub struct Log {
    switch: Arc<Switch>,
    queue: Arc<Queue>,
    dropped: DroppedLines,
}

/// There is a subscriber already: [`init`] belongs to a program's `main`.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Another subscriber was installed before.
    #[error("a subscriber is installed already")]
    AlreadySet(#[from] SetGlobalDefaultError),
    /// No thread for the writer.
    #[error("the log's writer thread cannot be started: {0}")]
    Thread(#[from] io::Error),
}

/// Installs the log for the whole process and starts its writer's thread. `writer`, for lines, may block, fail or be
/// closed; so may the journal's socket.
pub fn init(
    config: LogConfig,
    clock: Arc<dyn Clock>,
    writer: impl Write + Send + 'static,
) -> Result<Log, InitError> {
    let (log, dispatch) = build(config, clock, writer, Journal::usual())?;
    tracing::dispatcher::set_global_default(dispatch)?;
    Ok(log)
}

fn build(
    config: LogConfig,
    clock: Arc<dyn Clock>,
    writer: impl Write + Send + 'static,
    journal: Journal,
) -> io::Result<(Log, Dispatch)> {
    let dropped = DroppedLines::default();
    let queue = Queue::start(writer, journal, dropped.clone())?;
    let switch = Switch::new(config);
    let lines = Lines { switch: Arc::clone(&switch), clock, sink: Sink::Queue(Arc::clone(&queue)) };
    Ok((Log { switch, queue, dropped }, lines.into_dispatch()))
}

impl Log {
    /// Changes level and format, from the next event on.
    pub fn set(&self, config: LogConfig) {
        self.switch.set(config);
        // Callsites remember whether anybody listens.
        tracing::callsite::rebuild_interest_cache();
    }

    /// The count of dropped lines.
    pub fn dropped(&self) -> DroppedLines {
        self.dropped.clone()
    }

    /// Waits until everything logged so far is written, at most `within`; says whether it is.
    pub fn flush(&self, within: Duration) -> Flushed {
        self.queue.flush(within)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.flush(LAST_FLUSH);
    }
}

/// How a flush ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Every line has been written or counted as dropped.
    All,
    /// Nobody reads: lines are left.
    GaveUp,
}

/// A log of the calling thread alone, written to memory: for tests, which install it with
/// [`tracing::dispatcher::with_default`] (or `set_default`).
pub fn captured(config: LogConfig, clock: Arc<dyn Clock>) -> (Dispatch, Captured) {
    let captured = Captured::default();
    let lines = Lines { switch: Switch::new(config), clock, sink: Sink::Memory(captured.clone()) };
    (lines.into_dispatch(), captured)
}

/// What was logged so far.
#[derive(Clone, Debug, Default)]
pub struct Captured(Arc<Mutex<String>>);

impl Captured {
    /// All lines.
    pub fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn push(&self, record: &Record) {
        let text = match record {
            Record::Line(line) => line.into(),
            Record::Entry(entry) => String::from_utf8_lossy(entry),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
    }
}

enum Sink {
    Queue(Arc<Queue>),
    Memory(Captured),
}

/// The layer that turns events into lines. Spans are not written.
struct Lines {
    switch: Arc<Switch>,
    clock: Arc<dyn Clock>,
    sink: Sink,
}

impl Lines {
    fn into_dispatch(self) -> Dispatch {
        Dispatch::new(Registry::default().with(self))
    }

    fn passes(&self, metadata: &Metadata<'_>) -> bool {
        let config = self.switch.get();
        let audited = metadata.target() == AUDIT_TARGET && config.audit == AuditLines::Always;
        is_ours(metadata.target()) && (*metadata.level() <= config.level || audited)
    }
}

/// Whether the target is a module of the library or of one of the programs.
fn is_ours(target: &str) -> bool {
    let root = target.split_once("::").map_or(target, |(root, _)| root);
    matches!(root, "bloom_agent" | "bloom_agent_cli")
}

impl<S: Subscriber> Layer<S> for Lines {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if is_ours(metadata.target()) { Interest::sometimes() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.passes(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        // The audit's events are of level info.
        Some(LevelFilter::from_level(self.switch.get().level.max(Level::INFO)))
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // Asked again: with several subscribers in a process, `enabled` is only a hint.
        if !self.passes(event.metadata()) {
            return;
        }
        let (format, now) = (self.switch.get().format, self.clock.now().wall);
        let record = format.record(now, event);
        match &self.sink {
            Sink::Memory(captured) => captured.push(&record),
            Sink::Queue(queue) => queue.push(record, |lost| format.lost(now, lost)),
        }
    }
}

/// Stderr, for [`init`].
pub fn stderr() -> Unbuffered<io::Stderr> {
    Unbuffered(io::stderr())
}

/// A descriptor written to without a lock, and without std's habit of taking a closed stderr for a good one. Where somebody
/// who shares the terminal or the pipe has made it non-blocking, it waits.
#[derive(Clone, Copy, Debug)]
pub struct Unbuffered<D>(D);

impl<D: AsFd> Write for Unbuffered<D> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let descriptor = self.0.as_fd();
        loop {
            match nix::unistd::write(descriptor, bytes) {
                Ok(written) => return Ok(written),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    match poll(&mut [PollFd::new(descriptor, PollFlags::POLLOUT)], PollTimeout::NONE) {
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same for a program that has no log, or none yet: a line on stderr that says where, in place of std's, which
/// shows the message. A panic over a slice of text, for one, has that text in its message.
pub fn withhold_panic_messages(program: &'static str) {
    panic::set_hook(Box::new(move |info| {
        let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        let line = format!(
            "{program}: panicked at {place}\nthis is a fault in it; the message is withheld, since it may hold a secret \
             or a token\nplease report the place\n"
        );
        // There is nobody to tell if that fails.
        let _ = io::stderr().lock().write_all(line.as_bytes());
    }));
}

/// From now on a panic is one line that says where, and is counted. Its message is not shown: it may hold what was being
/// worked on, a token for instance. Without a subscriber it goes unseen, so this follows [`init`].
pub fn install_panic_hook(panics: Panics) {
    panic::set_hook(Box::new(move |info| report_panic(&panics, info.location())));
}

fn report_panic(panics: &Panics, location: Option<&panic::Location<'_>>) {
    panics.add();
    let place = location.map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let thread = std::thread::current();
    tracing::error!(
        target: "bloom_agent::panic",
        place = %place,
        thread = thread.name().unwrap_or("-"),
        "panicked: this is a fault in bloom-agent, please report the place; the message is withheld, since it may hold a token",
    );
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("switch", &self.switch).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
