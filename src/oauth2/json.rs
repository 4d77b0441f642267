//! The members of an answer that mean something, cut out of its JSON without building anything from the rest.
//!
//! No value is decoded that nobody asked for, no tree is built, nothing is nested deeper than [`MAX_DEPTH`], and no
//! member that means something is there twice (RFC 6749 §3.2 and §5.1): two parsers could take two different ones.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

/// The deepest nesting; the answer itself is the first level.
const MAX_DEPTH: usize = 16;

/// The JSON text of each member; none where it is absent or null. Names are case-sensitive.
#[derive(Deserialize)]
pub(super) struct Members<'a> {
    #[serde(borrow)]
    pub(super) access_token: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) token_type: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) expires_in: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) scope: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) error: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) error_description: Option<&'a RawValue>,
    /// Ory Hydra's.
    #[serde(borrow)]
    pub(super) error_hint: Option<&'a RawValue>,
}

/// Why a body is not an answer. Says where, and nothing of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("the body is empty")]
    Empty,
    #[error("the body is not UTF-8 text")]
    NotUtf8,
    #[error("the body is not a JSON object")]
    NotAnObject,
    #[error("the body is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("the body is not JSON (line {line}, column {column})")]
    Syntax { line: usize, column: usize },
    #[error("the body has a member twice")]
    Duplicate,
}

/// The body's members, and whether it had a byte order mark.
pub(super) fn members(body: &[u8]) -> Result<(Members<'_>, bool), Unreadable> {
    let text = std::str::from_utf8(body).map_err(|_| Unreadable::NotUtf8)?;
    let (text, marked) = text.strip_prefix('\u{feff}').map_or((text, false), |rest| (rest, true));
    match text.trim_start_matches([' ', '\t', '\r', '\n']).bytes().next() {
        None => return Err(Unreadable::Empty),
        Some(b'{') => {}
        Some(_) => return Err(Unreadable::NotAnObject),
    }
    if depth(text) > MAX_DEPTH {
        return Err(Unreadable::TooDeep);
    }
    serde_json::from_str(text).map(|members| (members, marked)).map_err(|error| {
        if error.is_data() {
            Unreadable::Duplicate
        } else {
            Unreadable::Syntax { line: error.line(), column: error.column() }
        }
    })
}

/// How deep the brackets nest, in one pass and without recursion.
fn depth(text: &str) -> usize {
    let (mut now, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                now += 1;
                deepest = deepest.max(now);
            }
            b']' | b'}' if !in_string => now = now.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// A JSON string's text: borrowed where nothing in it is escaped, else in a buffer that is wiped.
pub(super) enum Text<'a> {
    Borrowed(&'a str),
    Owned(Zeroizing<String>),
}

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Owned(text) => text,
        }
    }
}

/// The text of a member, if it is there and a string.
pub(super) fn text_of(raw: Option<&RawValue>) -> Option<Text<'_>> {
    raw.and_then(|raw| text(raw.get()))
}

/// The text of `raw`, if it is a string (and a lone surrogate is none).
pub(super) fn text(raw: &str) -> Option<Text<'_>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str(raw).ok().map(|text| Text::Owned(Zeroizing::new(text)))
    } else {
        Some(Text::Borrowed(inner))
    }
}

/// The texts of `raw`, if it is an array of strings.
pub(super) fn texts(raw: &str) -> Option<Vec<Cow<'_, str>>> {
    serde_json::from_str(raw).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(body: &[u8]) -> Option<Unreadable> {
        members(body).err()
    }

    #[test]
    fn a_member_is_found_however_its_name_is_escaped() {
        let (found, marked) =
            members(br#" {"access\u005ftoken":"t","Access_Token":1,"x":{"access_token":2}} "#).unwrap();
        assert_eq!((found.access_token.unwrap().get(), marked), ("\"t\"", false));
        assert!(found.token_type.is_none());
    }

    #[test]
    fn null_is_as_good_as_absent() {
        assert!(members(br#"{"error":null}"#).unwrap().0.error.is_none());
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        assert!(members(b"\xef\xbb\xbf{}").unwrap().1);
    }

    #[test]
    fn numbers_that_no_machine_holds_are_no_fault_of_the_syntax() {
        assert_eq!(
            members(br#"{"expires_in":1e400,"x":-1e99999}"#).unwrap().0.expires_in.unwrap().get(),
            "1e400"
        );
    }

    #[test]
    fn whatever_is_not_one_object_is_unreadable() {
        let syntax = |body: &[u8]| matches!(fault(body), Some(Unreadable::Syntax { .. }));
        assert_eq!(fault(b""), Some(Unreadable::Empty));
        assert_eq!(fault(b" \r\n"), Some(Unreadable::Empty));
        for body in [&b"[]"[..], b"null", b"\"x\"", b"1", br#"["token","bearer",60]"#, b"<html>", b"a=b"] {
            assert_eq!(fault(body), Some(Unreadable::NotAnObject), "{body:?}");
        }
        for body in [
            &b"{"[..],
            b"{\"access_token\":\"tr",
            b"{} x",
            b"{}{}",
            b"{\"a\":1,}",
            b"{a:1}",
            b"{\"a\":01}",
            b"{\"a\":tru}",
            b"{\"a\":\"\x01\"}",
            b"{\"a\":\"\\x\"}",
            b"{}\0",
            b"\xef\xbb\xbf\xef\xbb\xbf{}",
        ] {
            assert!(syntax(body) || fault(body) == Some(Unreadable::NotAnObject), "{body:?}");
        }
        assert_eq!(fault(b"{\"a\":\"\xff\"}"), Some(Unreadable::NotUtf8));
        let utf16: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(fault(&utf16), Some(Unreadable::NotUtf8));
        let unmarked: Vec<u8> = "{}".encode_utf16().flat_map(u16::to_be_bytes).collect();
        assert_eq!(fault(&unmarked), Some(Unreadable::NotAnObject));
    }

    #[test]
    fn a_member_twice_is_refused_whatever_its_value_and_spelling() {
        for body in [
            &br#"{"access_token":"a","access_token":"a"}"#[..],
            br#"{"access_token":null,"access_token":"a"}"#,
            br#"{"access_token":"a","access\u005Ftoken":"b"}"#,
            br#"{"error":"a","error":"b"}"#,
            br#"{"expires_in":1,"expires_in":2}"#,
        ] {
            assert_eq!(fault(body), Some(Unreadable::Duplicate), "{body:?}");
        }
    }

    #[test]
    fn sixteen_levels_are_read_and_no_more() {
        let nested =
            |levels: usize| format!("{{\"x\":{}{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1));
        assert_eq!(fault(nested(16).as_bytes()), None);
        assert_eq!(fault(nested(17).as_bytes()), Some(Unreadable::TooDeep));
        assert_eq!(fault(format!("{{\"x\":{}", "[".repeat(60_000)).as_bytes()), Some(Unreadable::TooDeep));
        let quoted = "[".repeat(100);
        assert_eq!(fault(format!("{{\"x\":\"{quoted}\\\"{quoted}\"}}").as_bytes()), None);
    }

    #[test]
    fn only_brackets_outside_of_strings_count_and_each_goes_with_its_end() {
        for (text, levels) in [
            ("", 0),
            ("{}", 1),
            ("[[],[],{}]", 2),
            (r#"{"x":"]]]]","y":[[1]]}"#, 3),
            (r#"{"x":"\\","y":[[1]]}"#, 3),
            (r#"{"\"":"[[[[","y":[]}"#, 2),
            // No JSON: a backslash outside of a string hides nothing.
            (r"{\[\[", 3),
        ] {
            assert_eq!(depth(text), levels, "{text}");
        }
    }

    #[test]
    fn text_is_borrowed_unless_it_is_escaped() {
        assert!(matches!(text("\"a/b\""), Some(Text::Borrowed("a/b"))));
        assert_eq!(text(r#""a\/b\u0041""#).as_deref(), Some("a/bA"));
        for raw in ["1", "null", "[]", r#""\ud800""#] {
            assert!(text(raw).is_none(), "{raw}");
        }
    }
}
