//! Text on its way to a person: the one line that a failure is, and strangers' words inside of it.
//!
//! Whatever goes in, visible ASCII comes out, and not too much of it: no terminal is driven and no second log line is
//! forged by a provider (RUSTSEC-2025-0055 and its like).

use zeroize::Zeroizing;

use super::encode;
use crate::secret::Secret;

/// A run of so many characters of which tokens, hashes and encodings are made may be one of them.
const LONG_RUN: usize = 32;
/// The longest line, in bytes.
const MAX_LINE: usize = 1000;

/// `what / why / what to do` in one line of visible ASCII, cut.
pub fn line(what: &str, why: &str, remedy: &str) -> Box<str> {
    let mut out = String::new();
    for (part, text) in [what, why, remedy].into_iter().enumerate() {
        if part > 0 {
            out.push_str(" / ");
        }
        // A line break inside of a part is a pause, not a byte to show.
        for character in text.trim().chars().map(|c| if c == '\n' { ' ' } else { c }) {
            match character {
                ' '..='~' => out.push(character),
                _ => out.extend(character.escape_default()),
            }
        }
    }
    cut(&mut out, MAX_LINE);
    out.into()
}

/// A stranger's words: the characters that RFC 6749 §5.2 allows in `error` and `error_description`, the rest escaped,
/// cut to `max` bytes.
pub(super) fn quoted(text: &str, max: usize) -> String {
    let mut out = String::new();
    for character in text.trim().chars() {
        match character {
            ' ' | '!' | '#'..='[' | ']'..='~' => out.push(character),
            _ => out.extend(character.escape_default()),
        }
        if out.len() > max {
            break;
        }
    }
    cut(&mut out, max);
    out
}

/// `text` without `secret`, in whatever form the request carried it. To be called before anything is cut: a cut would
/// leave a part of the secret that is not recognised any more.
pub(super) fn scrubbed(text: &str, client_id: &str, secret: &Secret) -> Zeroizing<String> {
    let mut text = Zeroizing::new(text.to_owned());
    for form in encode::forms_of(client_id, secret) {
        if text.contains(&**form) {
            text = Zeroizing::new(text.replace(&**form, "***"));
        }
    }
    text
}

/// `text` without what may be a token, or a secret in a form that [`scrubbed`] does not know: some providers say which
/// token they would have given, or had given before.
pub(super) fn without_tokens(text: &str) -> Zeroizing<String> {
    // b64token (RFC 6750 §2.1), and what percent-encoding adds to it.
    let in_run = |b: &u8| {
        b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=' | b'%')
    };
    let mut out = Zeroizing::new(String::with_capacity(text.len().max(3)));
    let mut rest = text;
    while !rest.is_empty() {
        // Runs are ASCII, so they begin and end between characters.
        let (run, after) = rest.split_at(rest.bytes().take_while(|b| in_run(b)).count());
        out.push_str(if may_be_a_token(run) { "***" } else { run });
        let (other, after) = after.split_at(after.bytes().take_while(|b| !in_run(b)).count());
        out.push_str(other);
        rest = after;
    }
    out
}

/// Not the paths and the codes of errors, which are words in small letters, nor a UUID: a provider's support asks for it.
fn may_be_a_token(run: &str) -> bool {
    let is_uuid = || {
        let groups = run.split('-').map(|group| (group.len(), group.bytes().all(|b| b.is_ascii_hexdigit())));
        groups.eq([(8, true), (4, true), (4, true), (4, true), (12, true)])
    };
    run.len() >= LONG_RUN && run.bytes().any(|b| b.is_ascii_digit() || b.is_ascii_uppercase()) && !is_uuid()
}

/// The text is ASCII by now.
fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        text.truncate(max.saturating_sub(3));
        text.push_str("...");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::parse(Zeroizing::new(text.as_bytes().to_vec())).unwrap()
    }

    #[test]
    fn a_line_is_one_line_of_visible_ascii() {
        assert_eq!(&*line("a", "b\nc", "d\r\u{1b}[1m\u{2028}x"), "a / b c / d\\r\\u{1b}[1m\\u{2028}x");
        let long = line("a", &"\u{e9}".repeat(1000), "b");
        assert_eq!((long.len(), long.ends_with("...")), (MAX_LINE, true));
    }

    #[test]
    fn a_strangers_words_keep_to_the_characters_of_the_rfc() {
        for (text, wanted) in [
            ("The client isn't known.", "The client isn't known."),
            ("\"x\\y\"", "\\\"x\\\\y\\\""),
            ("a\r\nerror: b\u{0}\u{1b}[2J", "a\\r\\nerror: b\\u{0}\\u{1b}[2J"),
            (" caf\u{e9} ", "caf\\u{e9}"),
        ] {
            assert_eq!(quoted(text, 200), wanted);
        }
        assert_eq!(quoted(&"x".repeat(200), 200), "x".repeat(200));
        assert_eq!(quoted(&"x".repeat(201), 200), format!("{}...", "x".repeat(197)));
        assert_eq!(quoted(&"\u{7}".repeat(9_999), 200).len(), 200);
    }

    #[test]
    fn a_reflected_secret_is_taken_out_in_every_form() {
        let canary = secret("c@nary \"1\"+");
        for reflected in [
            "c@nary \"1\"+",
            "c%40nary+%221%22%2B",
            "c@nary \\\"1\\\"+",
            // id:c%40nary+%221%22%2B
            "Basic aWQ6YyU0MG5hcnkrJTIyMSUyMiUyQg==",
        ] {
            let text = scrubbed(&format!("no: {reflected}, sorry {reflected}"), "id", &canary);
            assert!(text.contains("***") && !text.contains(reflected), "{}", *text);
            assert!(!text.contains("nary") && !text.contains("aWQ6"), "{}", *text);
        }
        assert_eq!(*scrubbed("e and e", "id", &secret("e")), "*** and ***");
    }

    #[test]
    fn a_word_that_may_be_a_token_is_taken_out_and_others_stay() {
        let run = |length| "aB3-._~+/=%".repeat(4)[..length].to_owned();
        for (text, wanted) in [
            (format!("token '{}' is live", run(32)), "token '***' is live"),
            (format!("{} {}", run(44), run(41)), "*** ***"),
            (format!("caf\u{e9}{}\u{e9}", run(40)), "caf\u{e9}***\u{e9}"),
            ("x".repeat(31) + "1", "***"),
            (String::new(), ""),
        ] {
            assert_eq!(*without_tokens(&text), wanted);
        }
        for text in [
            "The requested OAuth 2.0 Client does not exist.",
            "Trace ID: 5f1c9b1e-8f0a-4d57-9a55-0c2f4e6b7a10",
            "see https://login.microsoftonline.com/error/of/clients?code=7000215",
            "unmet_authentication_requirements",
            &run(31),
        ] {
            assert_eq!(*without_tokens(text), text);
        }
    }
}
