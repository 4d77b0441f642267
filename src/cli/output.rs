//! The way out: data to standard output, messages to standard error.
//!
//! A reader that went away (`| head -1`) ends the program quietly: the Rust runtime ignores SIGPIPE, so the write says
//! EPIPE, and that is no failure. Any other failed write is told and exits 71: a full disk must not look like a token.

use std::{
    io::{self, Write as _},
    os::fd::AsFd as _,
};

use tokio::{io::Interest, net::unix::pipe};

use super::trouble::Trouble;
use crate::exit::Exit;

/// Why a verb stops before its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// Something to tell.
    Trouble(Trouble),
    /// Nobody reads our output any more.
    ReaderGone,
    /// A command of the caller's could not be run, and that was told: env(1)'s codes.
    Command(u8),
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

/// Writes `text` and a newline, and sees it through to the kernel.
pub(super) fn data(text: &str) -> Result<(), Stop> {
    let mut bytes = Vec::with_capacity(text.len() + 1);
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(b'\n');
    let mut stdout = io::stdout().lock();
    match stdout.write_all(&bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Stop::ReaderGone),
        Err(error) => Err(Stop::Trouble(Trouble::new(
            Exit::System,
            "the output cannot be written",
            error,
            "look at what standard output is connected to, and whether its disk is full",
        ))),
    }
}

/// Writes a message. There is nobody to tell if that fails.
pub(super) fn message(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Returns when the reader of standard output is gone; never if that cannot be known (a file has none).
pub(super) async fn reader_gone() {
    // The duplicate only listens for EPOLLERR. The pipe's own flags, which others share, stay as they are: therefore
    // "unchecked", which would not do for writing.
    let duplicate = io::stdout().as_fd().try_clone_to_owned();
    if let Ok(pipe) = duplicate.and_then(pipe::Sender::from_owned_fd_unchecked)
        && pipe.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}
