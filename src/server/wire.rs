//! The bytes of one connection on their way to hyper and back: `:authority` is made acceptable ([`fields`]), and floods
//! are cut ([`meter`]). What was just read is changed in place; what is written goes when the turn is over ([`outbox`]).

mod fields;
mod frames;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod meter;
mod outbox;
mod socket;
#[cfg(test)]
mod tests;

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::{
    frames::Frames,
    meter::{Labour, Meter},
};
pub(super) use self::{outbox::Outbox, socket::Socket};
use super::turns::{Length, Seat};
use crate::clock::Clock;

/// Calls of a turn, and bytes: then others have theirs. The last read of a turn may bring more.
const TURN_HEADS: u32 = 16;
const TURN_BYTES: usize = 64 * 1024;

/// The most of one read: the shortest call has eleven bytes, and what was read is worked on before anybody else is.
const SIP: usize = 1024;
/// The whole of a turn in disgrace.
const SHORT_TURN_BYTES: usize = 256;

/// What the connection's task has to know of its bytes.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    greeted: AtomicBool,
    flooded: AtomicBool,
    /// HEADERS that came.
    heads: AtomicU32,
    /// Frames and fields that no client has reason to send, in µs.
    wasted: AtomicU32,
    /// A poll of the connection's task has begun, and it has not asked for bytes.
    fresh: AtomicBool,
}

impl Traffic {
    /// Whether the client's preface and its first SETTINGS have come (RFC 9113 §3.4).
    pub(super) fn greeted(&self) -> bool {
        self.greeted.load(Ordering::Relaxed)
    }

    /// HEADERS that came; it wraps.
    pub(super) fn heads(&self) -> u32 {
        self.heads.load(Ordering::Relaxed)
    }

    /// The work of frames and fields that no client has reason to send, in µs, since this was asked last.
    pub(super) fn take_wasted(&self) -> u32 {
        self.wasted.swap(0, Ordering::Relaxed)
    }

    /// Says that the connection's task is polled: in each poll it may have one turn.
    pub(super) fn begin_turn(&self) {
        self.fresh.store(true, Ordering::Relaxed);
    }

    /// Whether it has not asked for bytes since then.
    pub(super) fn is_fresh(&self) -> bool {
        self.fresh.load(Ordering::Relaxed)
    }

    /// Whether the meter has cut the connection.
    pub(super) fn flooded(&self) -> bool {
        self.flooded.load(Ordering::Relaxed)
    }
}

/// A stream that knows whether there may be something to read.
pub(super) trait Readable: AsyncRead + Unpin {
    /// Waits until there may be. Most polls of a connection's task are for something else: for these it costs nothing.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Nobody wants to know of anything that comes, until somebody tries to read or to write.
    fn ignore(&mut self);
}

/// The server's end of a connection.
pub(super) struct Wire<T> {
    outbox: Outbox<T>,
    frames: Frames,
    meter: Meter,
    labour: Labour,
    clock: Arc<dyn Clock>,
    seat: Seat,
    turn: Turn,
}

/// How far the turn is.
#[derive(Clone, Copy, Debug)]
enum Turn {
    /// Not in this poll any more.
    Over,
    /// So much may still come.
    Open { heads: u32, bytes: usize },
}

impl<T> Wire<T> {
    pub(super) fn new(outbox: Outbox<T>, clock: Arc<dyn Clock>, seat: Seat) -> Self {
        let meter = Meter::new(clock.now().boot);
        outbox.traffic().begin_turn();
        let labour = Labour::new();
        Self { outbox, frames: Frames::new(), meter, labour, clock, seat, turn: Turn::Over }
    }
}

impl<T: Readable + AsyncWrite> AsyncRead for Wire<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let traffic = this.outbox.traffic();
        let mut outgoing = this.outbox.lock();
        outgoing.fault()?;
        let stream = &mut outgoing.stream;
        let is_fresh = traffic.fresh.swap(false, Ordering::Relaxed);
        if is_fresh {
            this.turn = Turn::Over;
            // A turn is for reading: who has only to write waits for none, and lets the others have his if he waited.
            let Poll::Ready(readable) = stream.poll_readable(cx) else {
                this.seat.pass();
                return Poll::Pending;
            };
            readable?;
            let bytes = match this.seat.poll_turn(cx) {
                Poll::Ready(Length::Whole) => TURN_BYTES,
                Poll::Ready(Length::Short) => SHORT_TURN_BYTES,
                Poll::Pending => {
                    if this.seat.waits_long() {
                        stream.ignore();
                    }
                    return Poll::Pending;
                }
            };
            this.turn = Turn::Open { heads: TURN_HEADS, bytes };
        }
        let Turn::Open { heads, bytes } = this.turn else {
            // In the next poll, which has been seen to.
            return Poll::Pending;
        };
        let before = buf.filled().len();
        let most = buf.remaining().min(SIP).min(bytes);
        let mut sip = ReadBuf::new(buf.initialize_unfilled_to(most));
        let Poll::Ready(read) = Pin::new(stream).poll_read(cx, &mut sip) else {
            if is_fresh {
                this.seat.give_back();
            }
            return Poll::Pending;
        };
        read?;
        let come = sip.filled().len();
        buf.advance(come);
        let seen = this.frames.walk(&mut buf.filled_mut()[before..]);
        this.turn = match (heads.saturating_sub(seen.heads), bytes.saturating_sub(come)) {
            (0, _) | (_, 0) => {
                cx.waker().wake_by_ref();
                Turn::Over
            }
            (heads, bytes) => Turn::Open { heads, bytes },
        };
        this.seat.read(is_fresh, seen.heads, come);
        if seen.heads > 0 {
            traffic.heads.fetch_add(seen.heads, Ordering::Relaxed);
        }
        if seen.settings > 0 {
            traffic.greeted.store(true, Ordering::Relaxed);
        }
        let clock = &this.clock;
        let metered = this.meter.read(seen.heads, seen.cheap, || clock.now().boot);
        let cheap = if this.meter.is_low() { seen.cheap } else { 0 };
        let wasted = this.labour.read(seen.heads, seen.fields, seen.block).saturating_add(cheap);
        if wasted > 0 {
            traffic.wasted.fetch_add(wasted, Ordering::Relaxed);
        }
        Poll::Ready(metered.map_err(|meter::Flood| {
            traffic.flooded.store(true, Ordering::Relaxed);
            io::Error::new(io::ErrorKind::ConnectionAborted, "a flood of frames")
        }))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // HTTP/2 flushes before each message's status. At the end of the turn everything goes.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbox.lock().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(this.outbox.lock().poll_write(cx, bufs))?;
        this.meter.wrote(written);
        Poll::Ready(Ok(written))
    }

    /// Without it h2 copies messages of up to 1 KiB whole, and not of 256 bytes, into a buffer of its own, which nobody wipes
    /// while the connection lives.
    fn is_write_vectored(&self) -> bool {
        true
    }
}
