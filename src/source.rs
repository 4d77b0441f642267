//! Where a secret is read: a systemd credential or a file, and no third way.
//!
//! A source is read anew for each token request and keeps nothing. It never sends, stores or prints what it read, and
//! never reads the environment: `$CREDENTIALS_DIRECTORY` is an argument.

mod credential;
mod file;
mod gated;
mod watch;

use std::path::PathBuf;

use nix::{errno::Errno, sys::stat::FileStat};
use zeroize::Zeroizing;

pub use self::{
    credential::CredentialSource,
    file::FileSource,
    gated::{Gated, READINGS, Readings},
    watch::Watch,
};
use crate::{
    config::CredentialName,
    files::{Contents, Rule},
    secret::{MAX_SECRET_BYTES, Secret, SecretProblem},
};

/// The longest file that holds a secret: the secret and the newline that editors end it with.
const MAX_FILE_BYTES: usize = MAX_SECRET_BYTES + 1;

/// One reading of a source.
#[derive(Debug)]
pub struct Reading {
    /// What it holds.
    pub secret: Secret,
    /// Which content that is.
    pub stamp: Stamp,
}

/// Which content a source has, without being derived from it (device, inode, size, mtime, ctime): another stamp means
/// that the content may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Stamp {
    /// The stamp of a file with this status.
    pub fn of(stat: &FileStat) -> Self {
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
            changed_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// The stamp of the `number`th content of something that is no file.
    pub const fn numbered(number: u64) -> Self {
        Self { device: 0, inode: number, size: 0, modified_ns: 0, changed_ns: 0 }
    }
}

/// Why a source cannot be read: one line what, one why, one what to do. Never holds content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}\n{why}\n{remedy}")]
pub struct SourceFault {
    /// What failed.
    pub what: String,
    /// The rule that is broken.
    pub why: String,
    /// The command that mends it.
    pub remedy: String,
    /// Whether it has to be mended at all.
    pub nature: Nature,
}

/// How long a fault lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// Until somebody mends it.
    Standing,
    /// Until the host has what it lacks just now, or a writer is done: soon, and by itself.
    Passing,
}

impl Nature {
    /// Of a file that breaks `rule`.
    const fn of(rule: Rule) -> Self {
        match rule {
            Rule::AtRest | Rule::FileSystem(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EIO) => {
                Self::Passing
            }
            _ => Self::Standing,
        }
    }
}

/// Something a secret can be read from. All of it but [`Self::describe`] blocks, on a file system that hangs for ever:
/// off the event loop it is called through [`Gated`] only.
pub trait ReadSecret: Send + Sync {
    /// Reads it anew.
    fn read(&self) -> Result<Reading, SourceFault>;
    /// As in the config, for people: `credential "bloom"` or `file "/path"`.
    fn describe(&self) -> String;
    /// Which content is there right now, without reading it: none where there is nothing, or where the source cannot
    /// change under a running agent.
    fn glance(&self) -> Option<Stamp> {
        None
    }
    /// Begins to listen for changes: none where the source cannot change, or the host cannot watch it.
    fn watch(&self) -> Option<Watch> {
        None
    }
}

/// A source as the config names it.
#[derive(Debug)]
pub enum Source {
    /// `client_secret.credential`.
    Credential(CredentialSource),
    /// `client_secret.file`.
    File(FileSource),
}

impl Source {
    /// The file at `path`, which has to belong to the user that this process runs as.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::File(FileSource::new(path.into()))
    }

    /// The credential `name` in `credentials_directory`, which is what systemd set `$CREDENTIALS_DIRECTORY` to.
    pub const fn credential(name: CredentialName, credentials_directory: Option<PathBuf>) -> Self {
        Self::Credential(CredentialSource::new(name, credentials_directory))
    }
}

impl ReadSecret for Source {
    fn read(&self) -> Result<Reading, SourceFault> {
        match self {
            Self::Credential(source) => source.read(),
            Self::File(source) => source.read(),
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Credential(source) => source.describe(),
            Self::File(source) => source.describe(),
        }
    }

    fn glance(&self) -> Option<Stamp> {
        match self {
            Self::Credential(source) => source.glance(),
            Self::File(source) => source.glance(),
        }
    }

    fn watch(&self) -> Option<Watch> {
        match self {
            Self::Credential(source) => source.watch(),
            Self::File(source) => source.watch(),
        }
    }
}

/// The secret in what was read: without one newline at its end, because every editor and `echo` adds one. A second one,
/// or a carriage return before it, is not taken for granted: [`Secret::parse`] refuses it.
fn parse(contents: Contents, description: &str) -> Result<Reading, SourceFault> {
    let stamp = Stamp::of(&contents.stat);
    let mut bytes: Zeroizing<Vec<u8>> = contents.bytes;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    match Secret::parse(bytes) {
        Ok(secret) => Ok(Reading { secret, stamp }),
        Err(problem) => Err(SourceFault {
            what: format!("cannot use the secret of {description}"),
            why: format!("it {problem}"),
            remedy: match problem {
                SecretProblem::Empty => "write the client secret into it",
                SecretProblem::TooLong => "write the client secret into it, and nothing else",
                SecretProblem::NotText => {
                    "write it as UTF-8 text; a binary key or a key file is no client secret"
                }
                SecretProblem::ControlCharacter => {
                    "write the client secret as its only line, with no more than one newline (\\n) at the end"
                }
            }
            .to_owned(),
            nature: Nature::Standing,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_lacks_just_now_and_a_busy_file_pass_and_everything_else_is_to_be_mended() {
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EIO] {
            assert_eq!(Nature::of(Rule::FileSystem(errno)), Nature::Passing, "{errno}");
        }
        assert_eq!(Nature::of(Rule::AtRest), Nature::Passing);
        let owner = nix::unistd::Uid::from_raw(0);
        let standing = [Rule::Present, Rule::Readable { owner }, Rule::Links, Rule::Regular, Rule::OneName]
            .into_iter()
            .chain([Rule::Owner, Rule::Mode, Rule::NoAcl, Rule::Directories, Rule::Size, Rule::Text])
            .chain([Errno::EACCES, Errno::ELOOP, Errno::ENOTDIR, Errno::EISDIR].map(Rule::FileSystem));
        for rule in standing {
            assert_eq!(Nature::of(rule), Nature::Standing, "{rule:?}");
        }
    }

    #[test]
    fn one_newline_at_the_end_is_not_part_of_the_secret_and_everything_else_is() {
        let stat = nix::sys::stat::stat("/").unwrap();
        let parse =
            |bytes: &[u8]| parse(Contents { bytes: Zeroizing::new(bytes.to_vec()), stat }, r#"file "/s""#);
        for (bytes, secret) in [(&b"s3cret"[..], "s3cret"), (b"s3cret\n", "s3cret"), (b" s \n", " s ")] {
            let reading = parse(bytes).unwrap();
            assert_eq!(reading.secret.expose_secret(), secret);
            assert_eq!(reading.stamp, Stamp::of(&stat));
        }
        let control = "it holds a control character (a second line, or a carriage return?); it must be one line of text";
        let one_line =
            "write the client secret as its only line, with no more than one newline (\\n) at the end";
        let longest = [&[b'x'; MAX_SECRET_BYTES][..], b"\n"].concat();
        assert!(parse(&longest).is_ok());
        for (bytes, why, remedy) in [
            (&b""[..], "it is empty", "write the client secret into it"),
            (b"\n", "it is empty", "write the client secret into it"),
            (b"s3cret\n\n", control, one_line),
            (b"s3cret\r\n", control, one_line),
            (
                b"s3cret\xff\n",
                "it is not UTF-8 text",
                "write it as UTF-8 text; a binary key or a key file is no client secret",
            ),
            (
                &[b'x'; MAX_FILE_BYTES],
                "it is longer than 64 KiB",
                "write the client secret into it, and nothing else",
            ),
        ] {
            let fault = parse(bytes).unwrap_err();
            assert_eq!(fault.to_string(), format!("cannot use the secret of file \"/s\"\n{why}\n{remedy}"));
        }
    }
}
