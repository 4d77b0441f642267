//! One event as one entry of systemd's journal: a datagram of its native protocol.
//!
//! - `PRIORITY`, `SYSLOG_IDENTIFIER`, `SYSLOG_FACILITY` and `TARGET` as everybody's; each field of the event as
//!   `BLOOM_NAME`; `MESSAGE` a text for people, without a time and a level, since the reader has both.
//! - An event of the audit has [`AUDIT_MESSAGE_ID`], and a sentence for its message (`sentence`).
//! - A value is escaped as in a line, so that `journalctl` shows it and no `-o` of it drives a terminal.
//! - The whole is always a datagram: values are cut, an event has at most 32 fields, and that is well below what a socket
//!   takes (net.core.wmem_default, 208 KiB). So the protocol's way for larger ones, a memfd, is not needed.
//!
//! Format: <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>; names of fields: systemd.journal-fields(7).

use std::fmt;

use tracing::{
    Event, Level,
    field::{Field, Visit},
};

use super::{AUDIT_TARGET, line, sentence};

/// `MESSAGE_ID` of every event of the audit, and of nothing else: `journalctl MESSAGE_ID=…` finds them.
pub const AUDIT_MESSAGE_ID: &str = "14db026e9b104e03a6b0524b06f62587";

/// `SYSLOG_IDENTIFIER`: what stands before the message in `journalctl`.
const IDENTIFIER: &str = "bloom-agent";
/// `SYSLOG_FACILITY`: LOG_DAEMON (syslog(3)), as for lines on stderr.
const FACILITY: &str = "3";
/// The longest message, in bytes: a long value or two are in it and in their own fields.
const MAX_MESSAGE_BYTES: usize = 2 * line::MAX_VALUE_BYTES;
/// The longest name of a field (systemd, src/libsystemd/sd-journal/journal-file.c: journal_field_valid).
const MAX_NAME_BYTES: usize = 64;

/// The entry of `event`.
pub fn event(event: &Event<'_>) -> Vec<u8> {
    let metadata = event.metadata();
    let mut fields = Fields::default();
    event.record(&mut fields);
    fields.entry(*metadata.level(), metadata.target())
}

/// The entry that tells of `lost` records before it.
pub fn lost(lost: u64) -> Vec<u8> {
    let mut fields = Fields { message: line::LOST_MESSAGE.to_owned(), ..Fields::default() };
    fields.add("lines", lost.to_string());
    fields.entry(Level::WARN, line::LOST_TARGET)
}

/// syslog(3): LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    /// ` name=value` of each that has one, as in a line.
    pairs: String,
    named: Vec<(&'static str, String)>,
}

impl Fields {
    fn add(&mut self, name: &'static str, value: String) {
        let name = line::plain_name(name);
        // A field of its own tells a program that it is empty; a person is told nothing by that.
        if !value.is_empty() {
            line::pair(name, &value, &mut self.pairs);
        }
        self.named.push((name, value));
    }

    fn entry(self, level: Level, target: &str) -> Vec<u8> {
        let audited = target == AUDIT_TARGET;
        let told = if audited { sentence::of(&self.named) } else { None };
        let message = told.unwrap_or_else(|| {
            let mut text = String::new();
            line::escape_text(&self.message, &mut text);
            text.push_str(&self.pairs);
            text
        });
        let mut entry = Vec::new();
        put(&mut entry, "PRIORITY", priority(level));
        put(&mut entry, "SYSLOG_IDENTIFIER", IDENTIFIER);
        put(&mut entry, "SYSLOG_FACILITY", FACILITY);
        put(&mut entry, "MESSAGE", &line::cut(message.trim_start(), MAX_MESSAGE_BYTES));
        if audited {
            put(&mut entry, "MESSAGE_ID", AUDIT_MESSAGE_ID);
        }
        put(&mut entry, "TARGET", target);
        for (name, value) in &self.named {
            let mut escaped = String::new();
            line::escape_text(value, &mut escaped);
            put(&mut entry, &field_name(name), &line::cut(&escaped, line::MAX_VALUE_BYTES));
        }
        entry
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &line::shown(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let value = line::cut(value, line::MAX_VALUE_BYTES);
        match field.name() {
            "message" => self.message.push_str(&value),
            name => self.add(name, value.into_owned()),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field.name(), value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field.name(), value.to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field.name(), value.to_string());
    }
}

/// `BLOOM_NAME`, of what the journal takes: capital letters, digits and `_`.
fn field_name(name: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    "BLOOM_".chars().chain(name.chars().map(fits)).take(MAX_NAME_BYTES).collect()
}

/// `NAME=value` and a newline; where the value has one itself, the name, a newline, the value's length in 64 bits (little
/// endian), the value and a newline. So no value can begin a field.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        // A length always fits.
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use tracing::dispatcher::with_default;

    use super::*;
    use crate::log::{Format, LogConfig, captured};

    fn written(events: impl FnOnce()) -> String {
        let clock = std::sync::Arc::new(crate::clock::SystemClock);
        let config = LogConfig { level: Level::TRACE, format: Format::Journal, ..LogConfig::default() };
        let (dispatch, captured) = captured(config, clock);
        with_default(&dispatch, events);
        captured.text()
    }

    #[test]
    fn a_field_is_a_line_or_has_its_length_before_it() {
        let cases: [(&str, &[u8]); 5] = [
            ("", b"X=\n"),
            ("plain", b"X=plain\n"),
            ("a=b", b"X=a=b\n"),
            ("a\nPRIORITY=0", b"X\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\n"),
            ("\n", b"X\n\x01\0\0\0\0\0\0\0\n\n"),
        ];
        for (value, expected) in cases {
            let mut entry = Vec::new();
            put(&mut entry, "X", value);
            assert_eq!(entry, expected, "{value:?}");
        }
        let mut long = Vec::new();
        put(&mut long, "X", &format!("\n{}", "x".repeat(299)));
        assert_eq!(&long[..10], b"X\n\x2c\x01\0\0\0\0\0\0");
    }

    #[test]
    fn a_name_is_one_that_the_journal_takes() {
        for (name, expected) in [
            ("uid", "BLOOM_UID"),
            ("next_try", "BLOOM_NEXT_TRY"),
            ("_uid", "BLOOM__UID"),
            ("a.b-é", "BLOOM_A_B__"),
            ("x2", "BLOOM_X2"),
        ] {
            assert_eq!(field_name(name), expected);
        }
        assert_eq!(field_name(&"x".repeat(100)).len(), 64);
    }

    #[test]
    fn an_event_has_its_priority_its_text_and_its_fields_and_no_time() {
        let text = written(|| {
            tracing::warn!(
                target: "bloom_agent::rotator",
                profile = "bloom", failures = 3u64, neg = -1, ok = true, r#type = ?"x y", none = "", "no new token: {}", "why"
            );
        });
        assert_eq!(
            text,
            "PRIORITY=4\nSYSLOG_IDENTIFIER=bloom-agent\nSYSLOG_FACILITY=3\n\
             MESSAGE=no new token: why profile=bloom failures=3 neg=-1 ok=true type=\"\\\"x y\\\"\"\n\
             TARGET=bloom_agent::rotator\nBLOOM_PROFILE=bloom\nBLOOM_FAILURES=3\nBLOOM_NEG=-1\nBLOOM_OK=true\n\
             BLOOM_TYPE=\"x y\"\nBLOOM_NONE=\n"
        );
    }

    #[test]
    fn every_level_has_its_priority() {
        let text = written(|| {
            tracing::error!(target: "bloom_agent::x", "a");
            tracing::warn!(target: "bloom_agent::x", "a");
            tracing::info!(target: "bloom_agent::x", "a");
            tracing::debug!(target: "bloom_agent::x", "a");
            tracing::trace!(target: "bloom_agent::x", "a");
        });
        let priorities: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("PRIORITY=")).collect();
        assert_eq!(priorities, ["3", "4", "6", "7", "7"]);
    }

    #[test]
    fn an_event_of_the_audit_is_a_sentence_with_its_id() {
        let text = written(|| {
            tracing::info!(
                target: AUDIT_TARGET,
                decision = "granted", verb = "get", profile = "bloom", generation = 5u64, uid = 991u64, pid = 7,
                unit = "loans.service", rule = "group:credit", "audit"
            );
        });
        assert_eq!(
            text,
            format!(
                "PRIORITY=6\nSYSLOG_IDENTIFIER=bloom-agent\nSYSLOG_FACILITY=3\n\
                 MESSAGE=granted bloom to uid 991 (loans.service) by \"group:credit\": get, generation 5\n\
                 MESSAGE_ID={AUDIT_MESSAGE_ID}\nTARGET=bloom_agent::audit\nBLOOM_DECISION=granted\nBLOOM_VERB=get\n\
                 BLOOM_PROFILE=bloom\nBLOOM_GENERATION=5\nBLOOM_UID=991\nBLOOM_PID=7\nBLOOM_UNIT=loans.service\n\
                 BLOOM_RULE=group:credit\n"
            )
        );
        assert!(AUDIT_MESSAGE_ID.len() == 32 && AUDIT_MESSAGE_ID.bytes().all(|b| b.is_ascii_hexdigit()));
    }

    #[test]
    fn no_value_forges_a_field_or_drives_a_terminal() {
        let hostile = "x\nPRIORITY=0\nMESSAGE=forged\u{1b}[2J\u{202e}";
        let text =
            written(|| tracing::info!(target: "bloom_agent::x", said = hostile, "the provider: {hostile}"));
        assert_eq!(text.lines().count(), 6, "{text}");
        assert!(text.contains("BLOOM_SAID=x\\nPRIORITY=0\\nMESSAGE=forged\\u{1b}[2J\\u{202e}\n"), "{text}");
        assert!(!text.chars().any(|c| c != '\n' && line::is_unsafe(c)));
    }

    #[test]
    fn an_entry_is_always_a_datagram() {
        let long = "\u{1b}".repeat(100_000);
        let long = long.as_str();
        let text = written(|| {
            tracing::info!(
                target: "bloom_agent::x",
                a = long, b = long, c = long, d = long, e = long, f = long, g = long, h = long, i = long, j = long,
                k = long, l = long, m = long, n = long, o = long, p = long, q = long, r = long, s = long, t = long,
                u = long, v = long, w = long, x = long, y = long, z = long, aa = long, ab = long, ac = long,
                ad = long, ae = long, "{long}"
            );
        });
        let (receiver, sender) = std::os::unix::net::UnixDatagram::pair().unwrap();
        assert_eq!(sender.send(text.as_bytes()).unwrap(), text.len());
        drop(receiver);
        assert!(text.len() < 160 * 1024, "{}", text.len());
    }

    #[test]
    fn the_notice_of_lost_lines_is_an_entry_too() {
        let text = String::from_utf8(lost(7)).unwrap();
        assert!(text.starts_with("PRIORITY=4\n") && text.ends_with("\nBLOOM_LINES=7\n"), "{text}");
        assert!(
            text.contains("MESSAGE=log lines were dropped, because nobody read them fast enough lines=7\n")
        );
    }
}
