//! The name of a systemd credential: one grammar, for the config that names it and for [`crate::source`] that opens it.

use std::fmt;

/// A name in the credentials directory: a file name of 1 to 255 bytes, of letters, digits and `._-@+=,`. It cannot leave
/// the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialName(Box<str>);

/// A text that is not a credential's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a credential's name (a file name, of letters, digits and ._-@+=, only)")]
pub struct NotACredentialName;

impl CredentialName {
    /// Checks `text`. systemd takes any printable ASCII without `:` and `/` (`credential_name_valid`); these are the
    /// characters that need no quoting in a unit file, and none beyond them is worth a surprise.
    pub fn parse(text: &str) -> Result<Self, NotACredentialName> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-@+=,".contains(&b);
        let is_name =
            (1..=255).contains(&text.len()) && !matches!(text, "." | "..") && text.bytes().all(fits);
        if is_name { Ok(Self(text.into())) } else { Err(NotACredentialName) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CredentialName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credentials_name_cannot_leave_its_directory_and_needs_no_quotes() {
        for good in ["bloom", "bloom-next", "a.b", "...", "_a", "A@1", "a+b=c,d", &"a".repeat(255)] {
            assert_eq!(CredentialName::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "../bloom",
            "/etc/passwd",
            "a:b",
            "with space",
            "a\n",
            "a\0b",
            "é",
            "\u{7f}",
            &"a".repeat(256),
        ] {
            assert_eq!(CredentialName::parse(bad), Err(NotACredentialName), "{bad:?}");
        }
    }
}
