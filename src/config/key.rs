//! Keys that are not ours: which of them may be printed, what was probably meant, and which look like a secret.
//!
//! A key is not a value, but a secret that is pasted with a quote too few becomes one. So a key is printed only if it
//! reads like a word of a config; the line says where the others are.

/// The longest unknown key that is printed.
const LONGEST: usize = 32;
/// What secrets are called. `token` is not among them: `token_url` and `token_format` are harmless.
const SECRETIVE: [&str; 9] = [
    "secret",
    "password",
    "passwd",
    "passphrase",
    "assertion",
    "api_key",
    "apikey",
    "private_key",
    "access_token",
];

/// The key as it may be printed: small letters, `_` and `-` only, as secrets rarely are; `…` for all others.
pub(super) fn printable(key: &str) -> &str {
    let word = |b: u8| b.is_ascii_lowercase() || matches!(b, b'_' | b'-');
    if !key.is_empty() && key.len() <= LONGEST && key.bytes().all(word) { key } else { "…" }
}

/// Whether a key is called like something that must not stand in a config.
pub(super) fn looks_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase().replace('-', "_");
    SECRETIVE.iter().any(|word| key.contains(word))
}

/// The known word that was probably meant: at most two slips away, and fewer for a short one.
pub(super) fn meant(written: &str, known: &[&'static str]) -> Option<&'static str> {
    if written.len() > LONGEST {
        return None;
    }
    let written = written.to_ascii_lowercase().replace('-', "_");
    let slips = |word: &str| distance(&written, &word.replace('-', "_"));
    let nearest = known.iter().map(|word| (slips(word), *word)).min()?;
    (nearest.0 <= 2 && nearest.0 * 2 < nearest.1.len()).then_some(nearest.1)
}

/// Insertions, deletions and substitutions from one to the other (Levenshtein's distance).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(&b) {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = *cell;
            left = substituted.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_printed_if_it_reads_like_a_word() {
        for word in ["proxxy", "client_name", "unit-slices"] {
            assert_eq!(printable(word), word);
        }
        for odd in ["", "s3cret", "aYQxU", "a b", "a.b", "é", "a\u{1b}", &"a".repeat(33)] {
            assert_eq!(printable(odd), "…", "{odd:?}");
        }
    }

    #[test]
    fn distance_counts_slips() {
        for (a, b, slips) in [
            ("", "", 0),
            ("", "ab", 2),
            ("ab", "", 2),
            ("kitten", "sitting", 3),
            ("abc", "acb", 2),
            ("scope", "scopes", 1),
        ] {
            assert_eq!(distance(a, b), slips, "{a} {b}");
            assert_eq!(distance(b, a), slips, "{b} {a}");
        }
    }

    #[test]
    fn a_slip_is_mended_and_another_word_is_not() {
        let known = &["proxy", "scopes", "client_id", "at"];
        for (written, expected) in [
            ("proxi", Some("proxy")),
            ("scope", Some("scopes")),
            ("client-id", Some("client_id")),
            ("Client_ID", Some("client_id")),
            ("it", None),
            ("banana", None),
            ("", None),
        ] {
            assert_eq!(meant(written, known), expected, "{written}");
        }
        assert_eq!(meant("x", &[]), None);
    }

    #[test]
    fn what_is_called_like_a_secret_looks_secret() {
        for key in ["secret", "ClientSecret", "api-key", "password", "client_assertion", "private_key"] {
            assert!(looks_secret(key), "{key}");
        }
        for key in ["token_url", "scopes", "organization", "token_format", "key"] {
            assert!(!looks_secret(key), "{key}");
        }
    }
}
