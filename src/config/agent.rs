//! `[agent]`, `[limits]` and `[log]`: what holds for the whole agent.

use std::path::PathBuf;

use super::{
    file::{Item, Table},
    oauth, path,
    report::Report,
};
use crate::{
    access::{RootAccess, Selector, SliceFault, SliceName, selector},
    limits::{self, Limits},
    oauth2::ProxyUrl,
};

/// Where the socket is when the config does not say.
pub const DEFAULT_SOCKET: &str = "/run/bloom-agent/agent.sock";
/// Who may connect when the config does not say: the agent's user and the callers' group.
pub const DEFAULT_SOCKET_MODE: u32 = 0o660;
/// The callers' group when the config does not say, for an agent that binds as root or as `bloom-agent`. Any other has
/// no default.
pub const DEFAULT_SOCKET_GROUP: &str = "bloom-agent-users";

/// Where a service is a unit that rules can name, when the config does not say: where systemd puts every service of the
/// system by itself.
pub const DEFAULT_UNIT_SLICE: &str = "system.slice";

pub(super) const AGENT_KEYS: &[&str] =
    &["socket", "socket_mode", "socket_group", "admin", "root", "ready", "unit_slices", "proxy", "ca_file"];
pub(super) const LIMITS_KEYS: &[&str] = &[
    "connections_total",
    "connections",
    "streams_per_connection",
    "calls",
    "watches",
    "connects_per_second",
];
pub(super) const LOG_KEYS: &[&str] = &["level", "format"];

/// `[agent]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    /// `socket`: an absolute path of at most 107 bytes; not used when systemd passes the socket.
    pub socket: PathBuf,
    /// `socket_mode`: permission bits, without any to execute.
    pub socket_mode: u32,
    /// `socket_group`, where it is written; see [`DEFAULT_SOCKET_GROUP`].
    pub socket_group: Option<Box<str>>,
    /// `admin`.
    pub admin: Vec<Selector>,
    /// `root`.
    pub root: RootAccess,
    /// `unit_slices`: at least one, none of the users.
    pub unit_slices: Vec<SliceName>,
    /// `ready`: what counts at the next start.
    pub ready: Ready,
    /// `proxy`, for the profiles that name none.
    pub proxy: Option<ProxyUrl>,
    /// `ca_file`, for the profiles that name none: an absolute path.
    pub ca_file: Option<PathBuf>,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            socket: DEFAULT_SOCKET.into(),
            socket_mode: DEFAULT_SOCKET_MODE,
            socket_group: None,
            admin: Vec::new(),
            root: RootAccess::default(),
            unit_slices: SliceName::parse_allowed(DEFAULT_UNIT_SLICE).into_iter().collect(),
            ready: Ready::default(),
            proxy: None,
            ca_file: None,
        }
    }
}

/// `log.level`: the least important line that is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// What somebody has to mend.
    Error,
    /// What somebody should look at.
    Warn,
    /// Who got what, and what changed.
    #[default]
    Info,
    /// How it came to that.
    Debug,
    /// Everything.
    Trace,
}

/// `log.format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object a line.
    Json,
    /// Entries of systemd's journal.
    Journal,
}

/// `[log]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// `level`.
    pub level: LogLevel,
    /// `format`, where it is written; without it stderr decides (it may be the journal).
    pub format: Option<LogFormat>,
}

pub(super) fn agent(table: &Table<'_>, report: &mut Report) -> AgentConfig {
    let usual = AgentConfig::default();
    let socket = table.string("socket", report).and_then(|item| path::socket(&item, report));
    let mode = table.string("socket_mode", report).and_then(|item| path::mode(&item, report));
    let root =
        table.choice("root", &[("always", RootAccess::Always), ("by-rule", RootAccess::ByRule)], report);
    let ready = table.choice("ready", &[("listening", Ready::Listening), ("tokens", Ready::Tokens)], report);
    let slices = table.strings("unit_slices", report).map(|items| {
        if items.is_empty() {
            let right = "leave the key out for system.slice, or name one";
            report.fault(&table.spot_of("unit_slices"), "is empty, so no caller would have a unit", right);
        }
        slices(&items, report)
    });
    AgentConfig {
        socket: socket.unwrap_or(usual.socket),
        socket_mode: mode.unwrap_or(usual.socket_mode),
        socket_group: table.string("socket_group", report).and_then(|item| group(&item, report)),
        admin: table.strings("admin", report).map(|items| selectors(&items, report)).unwrap_or_default(),
        root: root.map_or(usual.root, |item| item.value),
        unit_slices: slices.unwrap_or(usual.unit_slices),
        ready: ready.map_or(usual.ready, |item| item.value),
        proxy: table.string("proxy", report).and_then(|item| oauth::proxy(&item, report)),
        ca_file: table.string("ca_file", report).and_then(|item| path::ca_file(&item, report)),
    }
}

/// `agent.ready`: when the service manager hears that the agent is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ready {
    /// When callers are answered, whatever the providers do: an outage must not hold up a boot.
    #[default]
    Listening,
    /// When every profile has a valid token, for units that are ordered after it.
    Tokens,
}

fn group(item: &Item<'_, &str>, report: &mut Report) -> Option<Box<str>> {
    match selector::name(item.value) {
        Ok(name) => Some(name.into()),
        Err(_) => {
            report.fault(&item.spot, "is not a group's name", "write a name as `id -Gn` prints it");
            None
        }
    }
}

fn slices(items: &[Item<'_, &str>], report: &mut Report) -> Vec<SliceName> {
    let mut slices = Vec::new();
    for item in items {
        match SliceName::parse_allowed(item.value) {
            Ok(slice) => slices.push(slice),
            Err(fault) => {
                let right = match fault {
                    SliceFault::NotASlice => {
                        "write a name as `systemctl -t slice` prints it, such as system.slice"
                    }
                    SliceFault::Root | SliceFault::Users => {
                        "name system.slice, or another slice of the system's own"
                    }
                };
                report.fault(&item.spot, fault.to_string(), right);
            }
        }
    }
    slices
}

/// The lines of `admin` or of an `allow`.
pub(super) fn selectors(items: &[Item<'_, &str>], report: &mut Report) -> Vec<Selector> {
    let mut selectors = Vec::new();
    for item in items {
        match Selector::parse(item.value) {
            Ok(selector) => {
                report.selectors.push(item.spot.written(selector.clone()));
                selectors.push(selector);
            }
            Err(fault) => report.fault(&item.spot, fault.to_string(), fault.right()),
        }
    }
    selectors
}

pub(super) fn limits(table: &Table<'_>, report: &mut Report) -> Limits {
    let usual = Limits::default();
    let mut number = |key: &'static str, usual: u32| {
        let Some(item) = table.integer(key, report) else { return usual };
        limits::number(item.value).unwrap_or_else(|fault| {
            report.fault(&item.spot, fault.to_string(), format!("the default is {usual}"));
            usual
        })
    };
    let limits = Limits {
        connections_total: number("connections_total", usual.connections_total),
        connections: number("connections", usual.connections),
        streams_per_connection: number("streams_per_connection", usual.streams_per_connection),
        calls: number("calls", usual.calls),
        watches: number("watches", usual.watches),
        connects_per_second: number("connects_per_second", usual.connects_per_second),
    };
    for oddity in limits.oddities() {
        report.warn(&table.spot_of(oddity.key()), oddity.to_string(), "write a lower number");
    }
    limits
}

pub(super) fn log(table: &Table<'_>, report: &mut Report) -> LogConfig {
    let levels = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json), ("journal", LogFormat::Journal)];
    LogConfig {
        level: table.choice("level", &levels, report).map(|item| item.value).unwrap_or_default(),
        format: table.choice("format", &formats, report).map(|item| item.value),
    }
}
