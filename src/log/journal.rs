//! The journal's socket: where entries go, and whether stderr goes there too.
//!
//! It is not connected: each entry is sent to the path, so a journal that was restarted is found again. Sending waits
//! while the journal is busy, so it belongs to the log's own thread ([`super::queue`]); a journal that is not there is an
//! error at once.

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixDatagram},
    path::PathBuf,
};

use nix::sys::stat::fstat;

/// Where journald takes entries (systemd-journald.service(8)).
const SOCKET: &str = "/run/systemd/journal/socket";

/// The device and inode of the journal's stream that the manager gave as stdout or stderr (systemd.exec(5)).
pub const STREAM_VARIABLE: &str = "JOURNAL_STREAM";

/// The way to the journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    socket: Option<UnixDatagram>,
}

impl Journal {
    /// That of this host.
    pub fn usual() -> Self {
        Self::at(SOCKET)
    }

    /// One that listens at `path`. Nothing is opened yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), socket: None }
    }

    /// Whether somebody listens.
    pub fn is_there(&self) -> bool {
        UnixDatagram::unbound().and_then(|socket| socket.connect(&self.path)).is_ok()
    }

    /// Sends one entry. Waits while the journal's queue is full.
    pub fn send(&mut self, entry: &[u8]) -> io::Result<()> {
        let socket = match &self.socket {
            Some(socket) => socket,
            None => self.socket.insert(UnixDatagram::unbound()?),
        };
        loop {
            match socket.send_to(entry, &self.path) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return sent.map(drop),
            }
        }
    }

    /// The line for stderr that says why entries are lost.
    pub fn unreachable(&self, error: &io::Error) -> String {
        format!(
            "bloom-agent: the log is lost: {}: {error}; start systemd-journald, or write log.format = \"text\"\n",
            self.path.display()
        )
    }
}

/// Whether `descriptor` is the journal's stream that `variable`, the value of [`STREAM_VARIABLE`], names: it may have been
/// redirected since.
pub fn is_stream(variable: Option<&str>, descriptor: impl AsFd) -> bool {
    let named = variable.and_then(|value| value.split_once(':'));
    let Some((device, inode)) = named else { return false };
    let is = |number: u64, text: &str| text.parse() == Ok(number);
    fstat(descriptor).is_ok_and(|status| is(status.st_dev, device) && is(status.st_ino, inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stderr_is_the_journal_only_if_it_is_the_very_stream() {
        let (stream, other) = UnixDatagram::pair().unwrap();
        let status = fstat(&stream).unwrap();
        let (device, inode) = (status.st_dev, status.st_ino);
        let named = format!("{device}:{inode}");
        assert!(is_stream(Some(&named), &stream));
        assert!(!is_stream(Some(&named), &other));
        for wrong in
            ["", ":", "8", &format!("{device}:"), &format!("{inode}:{device}1"), &format!("{named}\n")]
        {
            assert!(!is_stream(Some(wrong), &stream), "{wrong:?}");
        }
        assert!(!is_stream(None, &stream));
    }

    #[test]
    fn a_journal_that_comes_back_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let mut journal = Journal::at(&path);
        assert!(!journal.is_there());
        let absent = journal.send(b"A=1\n").unwrap_err();
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);

        let mut buffer = [0; 64];
        for entry in [&b"A=2\n"[..], b"A=3\n"] {
            let listening = UnixDatagram::bind(&path).unwrap();
            assert!(journal.is_there());
            journal.send(entry).unwrap();
            let length = listening.recv(&mut buffer).unwrap();
            assert_eq!(buffer.get(..length), Some(entry));
            drop(listening);
            assert!(!journal.is_there());
            assert_eq!(journal.send(b"A=4\n").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn the_notice_says_what_is_lost_why_and_what_to_do() {
        let notice = Journal::at("/x").unreachable(&io::ErrorKind::NotFound.into());
        let expected = "bloom-agent: the log is lost: /x: entity not found; start systemd-journald, or write log.format = \"text\"\n";
        assert_eq!(notice, expected);
    }
}
