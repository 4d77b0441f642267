//! The bytes of one connection on their way to hyper and back: `:authority` is made acceptable ([`fields`]), and floods
//! are cut ([`meter`]). Nothing is buffered, copied or held back; only what was just read is changed, in place.

mod fields;
mod frames;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod meter;
#[cfg(test)]
mod tests;

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::{frames::Frames, meter::Meter};
use crate::clock::Clock;

/// What the connection's task has to know of its bytes.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    greeted: AtomicBool,
    flooded: AtomicBool,
}

impl Traffic {
    /// Whether the client's preface and its first SETTINGS have come (RFC 9113 §3.4).
    pub(super) fn greeted(&self) -> bool {
        self.greeted.load(Ordering::Relaxed)
    }

    /// Whether the meter has cut the connection.
    pub(super) fn flooded(&self) -> bool {
        self.flooded.load(Ordering::Relaxed)
    }
}

/// The server's end of a connection.
pub(super) struct Wire<T> {
    inner: T,
    frames: Frames,
    meter: Meter,
    clock: Arc<dyn Clock>,
    traffic: Arc<Traffic>,
}

impl<T> Wire<T> {
    pub(super) fn new(inner: T, clock: Arc<dyn Clock>, traffic: Arc<Traffic>) -> Self {
        let meter = Meter::new(clock.now().boot);
        Self { inner, frames: Frames::new(), meter, clock, traffic }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Wire<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        let seen = this.frames.walk(&mut buf.filled_mut()[before..]);
        if seen.settings > 0 {
            this.traffic.greeted.store(true, Ordering::Relaxed);
        }
        let clock = &this.clock;
        Poll::Ready(this.meter.read(seen.heads, seen.cheap, || clock.now().boot).map_err(|meter::Flood| {
            this.traffic.flooded.store(true, Ordering::Relaxed);
            io::Error::new(io::ErrorKind::ConnectionAborted, "a flood of frames")
        }))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.inner).poll_write(cx, buf))?;
        this.meter.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.inner).poll_write_vectored(cx, bufs))?;
        this.meter.wrote(written);
        Poll::Ready(Ok(written))
    }

    /// Without it h2 writes each small frame by itself.
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
