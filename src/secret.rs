//! A client secret in memory.
//!
//! It never prints, it is wiped when it is dropped, and it is read out in one place only: where a token request is
//! built. It lives for one exchange: [`crate::obtain`] reads it from its source and drops it with the answer.

use std::fmt;

use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

/// The longest secret, in bytes.
pub const MAX_SECRET_BYTES: usize = 64 * 1024;

/// An OAuth2 client secret: UTF-8, not empty, at most [`MAX_SECRET_BYTES`], without control characters.
pub struct Secret(SecretString);

/// Why some bytes are not a secret. It never holds any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretProblem {
    /// Nothing but at most one newline.
    #[error("is empty")]
    Empty,
    /// More than [`MAX_SECRET_BYTES`].
    #[error("is longer than 64 KiB")]
    TooLong,
    /// JSON has no other text, and no provider issues any.
    #[error("is not UTF-8 text")]
    NotText,
    /// A second line, a carriage return, a NUL: a file that is not what the operator takes it for.
    #[error("holds a control character (a second line, or a carriage return?); it must be one line of text")]
    ControlCharacter,
}

impl Secret {
    /// Takes what a source holds. The buffer is wiped whatever the outcome.
    pub fn parse(bytes: Zeroizing<Vec<u8>>) -> Result<Self, SecretProblem> {
        if bytes.is_empty() {
            return Err(SecretProblem::Empty);
        }
        if bytes.len() > MAX_SECRET_BYTES {
            return Err(SecretProblem::TooLong);
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| SecretProblem::NotText)?;
        if text.chars().any(char::is_control) {
            return Err(SecretProblem::ControlCharacter);
        }
        Ok(Self(SecretString::from(text)))
    }

    /// The secret itself, for the one request that is being built.
    pub fn expose_secret(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Secret, SecretProblem> {
        Secret::parse(Zeroizing::new(bytes.to_vec()))
    }

    #[test]
    fn one_line_of_text_is_a_secret() {
        for text in ["s", "with space", "p%40ss+:/é", &"x".repeat(MAX_SECRET_BYTES)] {
            assert_eq!(parse(text.as_bytes()).unwrap().expose_secret(), text);
        }
    }

    #[test]
    fn anything_else_is_refused_with_a_reason() {
        assert_eq!(parse(b"").unwrap_err(), SecretProblem::Empty);
        assert_eq!(parse(&[b'x'; MAX_SECRET_BYTES + 1]).unwrap_err(), SecretProblem::TooLong);
        assert_eq!(parse(b"\xff").unwrap_err(), SecretProblem::NotText);
        for text in ["a\nb", "a\r", "a\0", "\u{1b}[1m", "\u{85}"] {
            assert_eq!(parse(text.as_bytes()).unwrap_err(), SecretProblem::ControlCharacter, "{text:?}");
        }
    }

    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(format!("{:?}", parse(b"canary").unwrap()), "Secret(…)");
    }
}
