//! Accepting without end: whatever accept(2) says, the loop neither stops nor spins.
//!
//! Without a free descriptor accept(2) fails at once, again and again, and whoever waits in the queue hangs. So one
//! descriptor is kept in reserve: it is given up to accept one caller, who is closed at once and knows where he stands,
//! and then the loop pauses.

use std::{
    future::poll_fn,
    io,
    os::fd::{AsFd as _, OwnedFd},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    time::{Sleep, sleep},
};

use super::limits::Book;

/// How long the loop pauses when accept(2) fails: 20 tries a second cost nothing, and nobody notices the wait.
const PAUSE: Duration = Duration::from_millis(50);

/// When refusals have taken so long, the loop pauses for a multiple of that: a uid that connects again at once whatever it
/// is told would have a core for it, since what it has sent by then is thrown away each time. Who waits behind it waits a
/// little longer.
const SPENT: Duration = Duration::from_micros(500);
const BREATHS: u32 = 6;
const LONGEST_BREATH: Duration = Duration::from_millis(10);

/// The listening socket.
pub(super) struct Acceptor {
    listener: UnixListener,
    reserve: Option<OwnedFd>,
    pause: Option<Pin<Box<Sleep>>>,
    /// On refusals since the last pause.
    spent: Duration,
    book: Arc<Book>,
}

/// What to do about an error of accept(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    /// The caller has gone, or a signal came: the next one.
    Next,
    /// No descriptor or no memory is left.
    Shed,
    /// Nothing that is known to happen.
    Wait,
}

fn remedy(error: &io::Error) -> Remedy {
    match error.raw_os_error() {
        Some(libc::ECONNABORTED | libc::EINTR) => Remedy::Next,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Remedy::Shed,
        _ => Remedy::Wait,
    }
}

impl Acceptor {
    pub(super) fn new(listener: UnixListener, book: Arc<Book>) -> Self {
        let reserve = spare(&listener);
        Self { listener, reserve, pause: None, spent: Duration::ZERO, book }
    }

    /// Hears that the last connection was refused, and how long that took.
    pub(super) fn refused(&mut self, took: Duration) {
        self.spent += took;
        if self.spent >= SPENT {
            let breath = (std::mem::take(&mut self.spent) * BREATHS).min(LONGEST_BREATH);
            self.pause = Some(Box::pin(sleep(breath)));
        }
    }

    /// The next connection. Dropping the future loses none, and no pause.
    pub(super) async fn accept(&mut self) -> UnixStream {
        loop {
            if let Some(pause) = &mut self.pause {
                pause.as_mut().await;
                self.pause = None;
            }
            if self.reserve.is_none() {
                self.reserve = spare(&self.listener);
            }
            let error = match self.listener.accept().await {
                Ok((stream, _)) => {
                    if self.reserve.is_some() && self.book.starve(false) {
                        tracing::info!("connections are accepted again");
                    }
                    return stream;
                }
                Err(error) => error,
            };
            match remedy(&error) {
                Remedy::Next => {}
                Remedy::Shed => {
                    if !self.book.starve(true) {
                        tracing::error!(
                            %error,
                            "connections are refused for lack of descriptors or memory; raise LimitNOFILE= or lower limits.connections_total"
                        );
                    }
                    self.shed().await;
                    self.pause = Some(Box::pin(sleep(PAUSE)));
                }
                Remedy::Wait => {
                    if !self.book.starve(true) {
                        tracing::error!(%error, "no connection can be accepted; it is tried again");
                    }
                    self.pause = Some(Box::pin(sleep(PAUSE)));
                }
            }
        }
    }

    /// Closes one waiting caller with the descriptor kept for it.
    async fn shed(&mut self) {
        self.reserve = None;
        let refused = poll_fn(|cx| match self.listener.poll_accept(cx) {
            Poll::Ready(Ok((stream, _))) => Poll::Ready(Some(stream)),
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Ready(None),
        })
        .await;
        drop(refused);
        self.reserve = spare(&self.listener);
    }
}

/// Any descriptor does; this one can always be had.
fn spare(listener: &UnixListener) -> Option<OwnedFd> {
    listener.as_fd().try_clone_to_owned().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_of_accept_has_a_remedy_that_does_not_spin() {
        let cases = [
            (libc::ECONNABORTED, Remedy::Next),
            (libc::EINTR, Remedy::Next),
            (libc::EMFILE, Remedy::Shed),
            (libc::ENFILE, Remedy::Shed),
            (libc::ENOBUFS, Remedy::Shed),
            (libc::ENOMEM, Remedy::Shed),
            (libc::EPERM, Remedy::Wait),
            (libc::EBADF, Remedy::Wait),
            (libc::EINVAL, Remedy::Wait),
        ];
        for (error, wanted) in cases {
            assert_eq!(remedy(&io::Error::from_raw_os_error(error)), wanted, "{error}");
        }
        assert_eq!(remedy(&io::Error::other("")), Remedy::Wait);
    }
}
