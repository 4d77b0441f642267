//! Why a file is not used, in three lines: what, why, and the command that mends it.

use std::{
    fmt::Write as _,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use nix::{errno::Errno, libc::mode_t, unistd::Uid};

use crate::names;

/// A file that is not used. Made of paths, ids and modes; never of what a file holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}\n{why}\n{remedy}")]
pub struct Fault {
    /// The file that was asked for.
    pub path: PathBuf,
    /// Which rule it breaks.
    pub rule: Rule,
    /// What failed, one line: `cannot use the secret file "/path"`.
    pub what: String,
    /// The rule that is broken, and by whom, one line.
    pub why: String,
    /// What mends it, one line; commands are fit for a shell as they stand.
    pub remedy: String,
}

/// What is asked of a file; see [`super::Rules`] for what is asked of which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// It is there.
    Present,
    /// The agent may read it. `owner` is who could let it: the owner of the file, or of the directory in the way.
    Readable {
        /// Of the file, or of the directory that may not be entered.
        owner: Uid,
    },
    /// It is reached without symbolic links, or by links of root's or the agent's.
    Links,
    /// It is a regular file.
    Regular,
    /// It has one name.
    OneName,
    /// It belongs to whom it must.
    Owner,
    /// Its mode lets nobody do more than they must.
    Mode,
    /// It has no access control list.
    NoAcl,
    /// Nobody else can put another file in its place.
    Directories,
    /// It is no longer than such a file can be.
    Size,
    /// Nobody is writing to it.
    AtRest,
    /// It is UTF-8.
    Text,
    /// The file system works.
    FileSystem(Errno),
}

/// `uid 1000`, or `root`. A number is exact, asks no name service, and is what chown(1) takes as well.
pub(crate) fn user(uid: Uid) -> String {
    if uid.is_root() { "root".to_owned() } else { format!("uid {uid}") }
}

/// As `user`, for a command.
pub(crate) fn user_argument(uid: Uid) -> String {
    if uid.is_root() { "root".to_owned() } else { uid.to_string() }
}

/// The group that `user`'s processes have, for a command.
pub(crate) fn group_argument(user: Uid) -> String {
    // The packaged user, and nearly any other, has a group of its own name.
    names::user_name(user.as_raw()).unwrap_or_else(|| user.to_string())
}

/// `0640`.
pub(crate) fn octal(mode: mode_t) -> String {
    format!("{:04o}", mode & 0o7777)
}

/// A path for a sentence: in quotes, and without a character that could move a terminal's cursor.
pub(crate) fn quoted(path: &Path) -> String {
    format!("{path:?}")
}

/// A path as one word of a shell command, on one line. What no quote can hold is written as bash's and POSIX 2024's
/// `$'…'`.
pub fn shell_word(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(b);
    if bytes.iter().all(plain) && bytes.first().is_some_and(|first| *first != b'-') {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let printable = |c: char| matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1;
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(printable) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => {
            let mut word = String::from("$'");
            for byte in bytes {
                match byte {
                    b'\'' | b'\\' => word.extend(['\\', char::from(*byte)]),
                    b' '..=b'~' => word.push(char::from(*byte)),
                    // Three octal digits: unlike \x, they end by themselves. Writing to a String cannot fail.
                    _ => drop(write!(word, "\\{byte:03o}")),
                }
            }
            word.push('\'');
            word
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, process::Command};

    use super::*;

    const AWKWARD: [&[u8]; 9] = [
        b"/etc/bloom-agent/secrets/partner",
        b"/a b/$(id)/`id`;&|",
        b"/it's/'",
        "/é/→".as_bytes(),
        b"/line\nbreak\r\t\x1b[1m",
        b"/not\xffutf8\\'1",
        "/bidi\u{202e}txt".as_bytes(),
        b"-rf",
        b"",
    ];

    #[test]
    fn a_shell_reads_a_quoted_path_as_that_path() {
        for bytes in AWKWARD {
            let path = Path::new(OsStr::from_bytes(bytes));
            let word = shell_word(path);
            assert!(!word.chars().any(char::is_control), "{word:?}");
            let output = Command::new("bash").args(["-c", &format!("printf '%s' {word}")]).output().unwrap();
            assert_eq!(output.stdout, bytes, "{word}");
        }
        assert_eq!(shell_word(Path::new("/etc/x.toml")), "/etc/x.toml");
        assert_eq!(shell_word(Path::new("/a b")), "'/a b'");
        let line = Path::new("/a line\nof it's own");
        assert_eq!(shell_word(line), r"$'/a line\012of it\'s own'", "what can be read stays as it is");
    }

    #[test]
    fn a_path_in_a_sentence_stays_on_its_line() {
        for bytes in AWKWARD {
            assert!(!quoted(Path::new(OsStr::from_bytes(bytes))).chars().any(char::is_control));
        }
        assert_eq!(quoted(Path::new("/etc/x.toml")), r#""/etc/x.toml""#);
    }
}
