//! Properties of what is logged: whatever a value holds, a record stays one record and drives no terminal.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a property panics where it does not hold"
)]

use std::sync::Arc;

use tracing::{Level, dispatcher::with_default};

use super::{AUDIT_TARGET, Format, LogConfig, captured, line::MAX_VALUE_BYTES};
use crate::clock::{Clock, Now};

struct Epoch;

impl Clock for Epoch {
    fn now(&self) -> Now {
        Now::default()
    }
}

/// Two values, parted by the first byte 0xff, in an event of each kind.
pub(crate) fn log_line(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == 0xff);
    let mut part = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (one, two) = (part(), part());
    judge_text(&logged(Format::Text, &one, &two));
    judge_json(&logged(Format::Json, &one, &two), &one, &two);
    judge_entry(&logged(Format::Journal, &one, &two), 8, false);
    judge_entry(&audited(&one, &two), 11, true);
}

fn logged(format: Format, one: &str, two: &str) -> String {
    let config = LogConfig { level: Level::INFO, format, ..LogConfig::default() };
    let (dispatch, log) = captured(config, Arc::new(Epoch));
    with_default(&dispatch, || {
        tracing::warn!(target: "bloom_agent::fuzzing", one, shown = %two, number = 7u64, "said: {two}");
    });
    log.text()
}

fn audited(one: &str, two: &str) -> String {
    let config = LogConfig { level: Level::INFO, format: Format::Journal, ..LogConfig::default() };
    let (dispatch, log) = captured(config, Arc::new(Epoch));
    with_default(&dispatch, || {
        tracing::info!(target: AUDIT_TARGET, decision = "denied", verb = "get", profile = one, uid = 7u64, rule = two);
    });
    log.text()
}

/// What no terminal should get: controls, ends of lines, and the characters of Unicode's property Bidi_Control.
fn is_harmless(text: &str) -> bool {
    let turns = |c: char| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !text.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') || turns(c))
}

fn judge_text(text: &str) {
    let line = text.strip_suffix('\n').expect("a line ends");
    assert!(is_harmless(line), "{line:?}");
    // The longest escape, \u{202e}, has eight characters for three bytes.
    assert!(line.len() <= 200 + 3 * 8 * (MAX_VALUE_BYTES + 8));
    assert!(line.starts_with("1970-01-01T00:00:00Z WARN bloom_agent::fuzzing: said: "), "{line:?}");
}

fn judge_json(text: &str, one: &str, two: &str) {
    let line = text.strip_suffix('\n').expect("a line ends");
    assert!(is_harmless(line), "{line:?}");
    let object: serde_json::Value = serde_json::from_str(line).expect("an object");
    assert_eq!(object.as_object().unwrap().len(), 7, "no value makes a field: {line}");
    for (name, value) in [("one", one), ("shown", two)] {
        let read = object[name].as_str().unwrap();
        if value.len() <= MAX_VALUE_BYTES {
            assert_eq!(read, value);
        } else {
            let cut = read.strip_suffix('…').expect("what is cut says so");
            assert!(value.starts_with(cut) && cut.len() <= MAX_VALUE_BYTES);
        }
    }
}

/// Reads an entry as the journal does (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).
fn judge_entry(text: &str, most: usize, is_audit: bool) {
    let mut rest = text.as_bytes();
    let mut names = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| matches!(byte, b'=' | b'\n')).expect("a name ends");
        // No value here has a newline, since all are escaped: a name that ends with one would begin a value's length.
        assert_eq!(rest[end], b'=', "a value has a line of its own: {text:?}");
        let (name, after) = (&rest[..end], &rest[end + 1..]);
        assert!(
            !name.is_empty()
                && name.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_')
        );
        let end = after.iter().position(|byte| *byte == b'\n').expect("a value ends");
        let value = std::str::from_utf8(&after[..end]).unwrap();
        assert!(is_harmless(value) && value.len() <= 3 * MAX_VALUE_BYTES, "{value:?}");
        names.push(std::str::from_utf8(name).unwrap().to_owned());
        rest = &after[end + 1..];
    }
    let count = |wanted: &str| names.iter().filter(|name| *name == wanted).count();
    assert_eq!((count("MESSAGE"), count("PRIORITY"), count("MESSAGE_ID")), (1, 1, usize::from(is_audit)));
    assert!(names.len() <= most, "no value makes a field: {names:?}");
}
