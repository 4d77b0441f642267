//! One event as one line, text or JSON.
//!
//! - Whatever a value holds, the line holds no control character, no line separator of Unicode and no character that turns
//!   the direction of text: they are written as escapes (a provider's or a peer's text must not forge a line, or drive a
//!   terminal).
//! - A value longer than 4 KiB is cut.

use std::fmt::{self, Write as _};

use tracing::{
    Event, Level,
    field::{Field, Visit},
};

use crate::clock::WallTime;

/// The longest value, in bytes before escaping.
pub(super) const MAX_VALUE_BYTES: usize = 4096;

/// Where the notice of lost lines comes from.
pub(super) const LOST_TARGET: &str = "bloom_agent::log";
/// What it says, before how many.
pub(super) const LOST_MESSAGE: &str = "log lines were dropped, because nobody read them fast enough";

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `TIME LEVEL target: message key=value …`
    Text,
    /// One JSON object.
    Json,
}

/// The line of `event`, with its newline.
pub fn event(shape: Shape, now: WallTime, event: &Event<'_>) -> String {
    let metadata = event.metadata();
    let mut line = Line::start(shape, now, *metadata.level(), metadata.target());
    event.record(&mut line);
    line.end()
}

/// The line that tells of `lost` lines before it.
pub fn lost(shape: Shape, now: WallTime, lost: u64) -> String {
    let mut line = Line::start(shape, now, Level::WARN, LOST_TARGET);
    line.message(LOST_MESSAGE);
    line.bare("lines", format_args!("{lost}"));
    line.end()
}

struct Line {
    shape: Shape,
    /// Everything up to the message.
    head: String,
    message: String,
    fields: String,
}

impl Line {
    fn start(shape: Shape, now: WallTime, level: Level, target: &str) -> Self {
        let head = match shape {
            Shape::Text => format!("{now} {level} {target}:"),
            Shape::Json => {
                format!("{{\"time\":\"{now}\",\"level\":\"{level}\",\"target\":\"{target}\"")
            }
        };
        Self { shape, head, message: String::new(), fields: String::new() }
    }

    fn end(self) -> String {
        let Self { shape, mut head, message, fields } = self;
        match shape {
            Shape::Text => {
                if !message.is_empty() {
                    head.push(' ');
                    escape_text(&message, &mut head);
                }
                head.push_str(&fields);
            }
            Shape::Json => {
                head.push_str(",\"message\":");
                quote_json(&message, &mut head);
                head.push_str(&fields);
                head.push('}');
            }
        }
        head.push('\n');
        head
    }

    fn message(&mut self, text: &str) {
        self.message.push_str(text);
    }

    /// A number or a boolean.
    fn bare(&mut self, name: &str, value: fmt::Arguments<'_>) {
        let _infallible = match self.shape {
            Shape::Text => write!(self.fields, " {name}={value}"),
            Shape::Json => write!(self.fields, ",\"{name}\":{value}"),
        };
    }

    fn text(&mut self, name: &str, value: &str) {
        match self.shape {
            Shape::Text => pair(name, value, &mut self.fields),
            Shape::Json => {
                self.fields.push_str(",\"");
                self.fields.push_str(name);
                self.fields.push_str("\":");
                quote_json(value, &mut self.fields);
            }
        }
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &shown(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let value = cut(value, MAX_VALUE_BYTES);
        match field.name() {
            "message" => self.message(&value),
            name => self.text(plain_name(name), &value),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field.name(), format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field.name(), format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field.name(), format_args!("{value}"));
    }
}

/// What a value shows of itself by Debug or Display, cut as any other text.
pub(super) fn shown(value: &dyn fmt::Debug) -> String {
    let mut text = Cut(String::new());
    // The only error is our own: the value is long enough.
    let _cut = write!(text, "{value:?}");
    cut(&text.0, MAX_VALUE_BYTES).into_owned()
}

/// The name of a field as it was meant: `r#type` is `type`.
pub(super) fn plain_name(name: &str) -> &str {
    name.trim_start_matches("r#")
}

/// ` name=value`, quoted where a reader could not tell where the value ends.
pub(super) fn pair(name: &str, value: &str, out: &mut String) {
    out.push(' ');
    out.push_str(name);
    out.push('=');
    if value.is_empty() || value.contains([' ', '"', '=', '\\']) {
        quote_text(value, out);
    } else {
        escape_text(value, out);
    }
}

/// `"value"`.
pub(super) fn quote_text(value: &str, out: &mut String) {
    out.push('"');
    escape_quoted(value, out);
    out.push('"');
}

/// Takes text until it is one byte too long, which [`cut`] then sees.
struct Cut(String);

impl fmt::Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.0.len() > MAX_VALUE_BYTES {
                return Err(fmt::Error);
            }
            self.0.push(c);
        }
        Ok(())
    }
}

/// At most `bytes` of `value`, and a sign that it was more.
pub(super) fn cut(value: &str, bytes: usize) -> std::borrow::Cow<'_, str> {
    if value.len() <= bytes {
        return value.into();
    }
    let mut end = bytes;
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", value.get(..end).unwrap_or_default()).into()
}

/// Controls (C0, DEL, C1), the separators of Unicode, and whatever changes the direction or hides.
pub(super) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

pub(super) fn escape_text(text: &str, out: &mut String) {
    for c in text.chars() {
        if is_unsafe(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
}

fn escape_quoted(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if is_unsafe(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
}

fn quote_json(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // All of them are in the Basic Multilingual Plane: one unit of UTF-16.
            c if is_unsafe(c) => {
                let _infallible = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_unsafe_passes_raw() {
        let cases = [
            ("plain", "plain", "plain", "\"plain\""),
            ("é ✓", "é ✓", "é ✓", "\"é ✓\""),
            ("a\nb\r\tc", "a\\nb\\r\\tc", "a\\nb\\r\\tc", "\"a\\nb\\r\\tc\""),
            ("\u{1b}[1m", "\\u{1b}[1m", "\\u{1b}[1m", "\"\\u001b[1m\""),
            ("\0\u{7f}\u{9b}", "\\u{0}\\u{7f}\\u{9b}", "\\u{0}\\u{7f}\\u{9b}", "\"\\u0000\\u007f\\u009b\""),
            ("\u{2028}\u{202e}", "\\u{2028}\\u{202e}", "\\u{2028}\\u{202e}", "\"\\u2028\\u202e\""),
            // The one Bidi_Control of Unicode that is not among its general punctuation.
            ("\u{61c}", "\\u{61c}", "\\u{61c}", "\"\\u061c\""),
            ("q\"\\", "q\"\\", "q\\\"\\\\", "\"q\\\"\\\\\""),
        ];
        for (input, text, quoted, json) in cases {
            let [mut as_text, mut as_quoted, mut as_json] = [const { String::new() }; 3];
            escape_text(input, &mut as_text);
            escape_quoted(input, &mut as_quoted);
            quote_json(input, &mut as_json);
            assert_eq!((&*as_text, &*as_quoted, &*as_json), (text, quoted, json), "{input:?}");
            assert_eq!(serde_json::from_str::<String>(&as_json).unwrap(), input);
        }
    }

    #[test]
    fn every_character_comes_back_from_json_as_it_went() {
        let all: String = (0..0x3000).filter_map(char::from_u32).collect();
        let mut json = String::new();
        quote_json(&all, &mut json);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), all);
        assert!(!json.chars().any(is_unsafe));
    }

    #[test]
    fn a_long_value_is_cut_between_characters() {
        let long = "é".repeat(MAX_VALUE_BYTES);
        let short = cut(&long, MAX_VALUE_BYTES);
        assert!(short.len() <= MAX_VALUE_BYTES + "…".len() && short.ends_with("é…"));
        let mut debug = Cut(String::new());
        assert!(write!(debug, "{long}").is_err());
        assert!(debug.0.len() <= MAX_VALUE_BYTES + 2 && cut(&debug.0, MAX_VALUE_BYTES).ends_with('…'));
    }
}
