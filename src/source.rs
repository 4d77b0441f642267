//! Where a secret is read: a systemd credential or a file, and no third way.

use crate::secret::Secret;

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
}

/// Something a secret can be read from. Blocking, but short: local files only.
pub trait ReadSecret: Send + Sync {
    /// Reads it anew.
    fn read(&self) -> Result<Reading, SourceFault>;
    /// As in the config, for people: `credential "bloom"` or `file "/path"`.
    fn describe(&self) -> String;
}

#[cfg(test)]
impl Stamp {
    /// A stamp for scripted sources: equal numbers, equal stamps.
    pub(crate) const fn numbered(number: u64) -> Self {
        Self { device: 0, inode: number, size: 0, modified_ns: 0, changed_ns: 0 }
    }
}
