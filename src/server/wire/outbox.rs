//! What a connection writes, gathered until its turn is over. HTTP/2 hands an answer over in pieces, message and status, and
//! each piece would be a system call of its own and might wake the client by itself.
//!
//! - There is one buffer for each thread, not for each connection. It is lent for one poll of a connection's task and is wiped
//!   when it comes back: tokens are in it for as long as that takes.
//! - What the socket has no room for at the end of the turn stays with the connection; until that has gone, nothing more is
//!   taken. So the most that a client who does not read makes the agent keep here is [`ROOM`].

use std::{
    cell::Cell,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::io::AsyncWrite;

use super::Traffic;
use crate::wiping;

/// The calls of a whole turn are answered by one write, if their tokens are of the usual size.
const ROOM: usize = 32 * 1024;

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A connection's stream, what is on its way there, and what has come. Clones share all of it.
pub(in crate::server) struct Outbox<T>(Arc<Shared<T>>);

struct Shared<T> {
    traffic: Traffic,
    outgoing: Mutex<Outgoing<T>>,
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

pub(super) struct Outgoing<T> {
    pub(super) stream: T,
    /// What was written in this turn. Outside of turns nothing is gathered: nobody would send it.
    turn: Option<Vec<u8>>,
    /// What the stream had no room for in an earlier one.
    left: Vec<u8>,
    /// The stream took nothing more, ever.
    failed: Option<io::ErrorKind>,
}

impl<T> Outbox<T> {
    pub(in crate::server) fn new(stream: T) -> Self {
        let outgoing = Mutex::new(Outgoing { stream, turn: None, left: Vec::new(), failed: None });
        Self(Arc::new(Shared { traffic: Traffic::default(), outgoing }))
    }

    pub(in crate::server) fn traffic(&self) -> &Traffic {
        &self.0.traffic
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Outgoing<T>> {
        // Nothing in there panics.
        self.0.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn begins: from now on what is written is gathered.
    pub(in crate::server) fn open(&self) {
        let mut buffer = BUFFER.take();
        if buffer.capacity() == 0 {
            buffer.reserve_exact(ROOM);
        }
        self.lock().turn = Some(buffer);
    }
}

impl<T: AsyncWrite + Unpin> Outbox<T> {
    /// The turn is over: everything goes, now or when there is room. An error is the connection's at its next turn, which
    /// is at once.
    pub(in crate::server) fn close(&self, cx: &mut Context<'_>) {
        let mut outgoing = self.lock();
        if let Poll::Ready(Err(error)) = outgoing.poll_send(cx) {
            outgoing.failed = Some(error.kind());
            cx.waker().wake_by_ref();
        }
        let Some(mut buffer) = outgoing.turn.take() else { return };
        if !buffer.is_empty() {
            if outgoing.failed.is_none() {
                outgoing.left = buffer.clone();
            }
            wiping::erase(&mut buffer);
            buffer.clear();
        }
        BUFFER.set(buffer);
    }
}

impl<T: AsyncWrite + Unpin> Outgoing<T> {
    /// The error of a turn that is over.
    pub(super) fn fault(&self) -> io::Result<()> {
        self.failed.map_or(Ok(()), |kind| Err(kind.into()))
    }

    /// Sends everything that was taken.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let turn = self.turn.iter_mut();
        for buffer in std::iter::once(&mut self.left).chain(turn).filter(|buffer| !buffer.is_empty()) {
            let mut sent = 0;
            let done = loop {
                if sent == buffer.len() {
                    break Poll::Ready(Ok(()));
                }
                match Pin::new(&mut self.stream).poll_write(cx, &buffer[sent..]) {
                    Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(some)) => sent += some,
                    Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                    Poll::Pending => break Poll::Pending,
                }
            };
            // The rest moves to the front; where the tokens were, they are no more.
            buffer.copy_within(sent.., 0);
            let rest = buffer.len() - sent;
            wiping::erase(&mut buffer[rest..]);
            buffer.truncate(rest);
            ready!(done)?;
        }
        // Free again: most connections never need it.
        self.left = Vec::new();
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.fault()?;
        let length = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let gathered = self.turn.as_ref().map_or(0, Vec::len);
        if !self.left.is_empty() || gathered + length > ROOM {
            ready!(self.poll_send(cx))?;
        }
        match &mut self.turn {
            Some(buffer) if length <= ROOM => {
                for piece in pieces {
                    buffer.extend_from_slice(piece);
                }
                Poll::Ready(Ok(length))
            }
            _ => Pin::new(&mut self.stream).poll_write_vectored(cx, pieces),
        }
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.fault()?;
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn cx() -> Context<'static> {
        Context::from_waker(std::task::Waker::noop())
    }

    fn write(outbox: &Outbox<Counted>, pieces: &[&[u8]]) -> Poll<io::Result<usize>> {
        let pieces: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        outbox.lock().poll_write(&mut cx(), &pieces)
    }

    fn taken(written: Poll<io::Result<usize>>) -> usize {
        let Poll::Ready(Ok(taken)) = written else { panic!("{written:?}") };
        taken
    }

    /// A stream that counts the writes that it took, has so much room, and then perhaps an error.
    #[derive(Default)]
    struct Counted {
        writes: usize,
        took: Vec<u8>,
        room: usize,
        breaks: bool,
    }

    impl AsyncWrite for Counted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let some = bytes.len().min(self.room);
            if some == 0 && self.breaks {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if some == 0 {
                return Poll::Pending;
            }
            self.room -= some;
            self.writes += 1;
            self.took.extend_from_slice(&bytes[..some]);
            Poll::Ready(Ok(some))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn with_room(room: usize) -> Outbox<Counted> {
        Outbox::new(Counted { room, ..Counted::default() })
    }

    #[test]
    fn what_is_written_in_a_turn_is_one_write() {
        let outbox = with_room(1 << 20);
        outbox.open();
        assert_eq!(taken(write(&outbox, &[b"head", b"message"])), 11);
        assert_eq!(taken(write(&outbox, &[b"status"])), 6);
        assert_eq!(outbox.lock().stream.writes, 0);
        outbox.close(&mut cx());
        let outgoing = outbox.lock();
        assert_eq!((outgoing.stream.writes, &outgoing.stream.took[..]), (1, &b"headmessagestatus"[..]));
        assert!(outgoing.turn.is_none() && outgoing.left.capacity() == 0);
    }

    #[test]
    fn outside_of_turns_it_goes_at_once() {
        let outbox = with_room(1 << 20);
        assert_eq!(taken(write(&outbox, &[b"at once"])), 7);
        assert_eq!(outbox.lock().stream.took, b"at once");
    }

    #[test]
    fn more_than_there_is_room_for_goes_in_between_in_order() {
        let outbox = with_room(1 << 20);
        let piece = |byte| vec![byte; ROOM / 2 - 1];
        outbox.open();
        for byte in 0..5 {
            assert_eq!(taken(write(&outbox, &[&piece(byte)])), ROOM / 2 - 1);
        }
        let large = vec![9; ROOM + 1];
        assert_eq!(taken(write(&outbox, &[&large])), ROOM + 1);
        outbox.close(&mut cx());
        let outgoing = outbox.lock();
        assert_eq!(outgoing.stream.took, [(0..5).flat_map(piece).collect(), large].concat());
        assert_eq!(outgoing.stream.writes, 4, "two, two, one and the large one");
    }

    #[test]
    fn what_the_stream_has_no_room_for_goes_later_and_until_then_nothing_is_taken() {
        let outbox = with_room(5);
        outbox.open();
        assert_eq!(taken(write(&outbox, &[b"0123456789"])), 10);
        outbox.close(&mut cx());
        assert_eq!(outbox.lock().left, b"56789");
        outbox.open();
        assert!(write(&outbox, &[b"abc"]).is_pending());
        outbox.lock().stream.room = 2;
        assert!(write(&outbox, &[b"abc"]).is_pending());
        outbox.close(&mut cx());
        assert_eq!(outbox.lock().left, b"789");
        // Without anything new.
        outbox.lock().stream.room = 2;
        outbox.open();
        outbox.close(&mut cx());
        outbox.lock().stream.room = 100;
        outbox.open();
        assert_eq!(taken(write(&outbox, &[b"abc"])), 3);
        outbox.close(&mut cx());
        let outgoing = outbox.lock();
        assert_eq!((&outgoing.stream.took[..], outgoing.left.len()), (&b"0123456789abc"[..], 0));
    }

    #[test]
    fn the_buffer_is_the_threads_and_comes_back() {
        let outboxes = [with_room(1 << 20), with_room(3), with_room(0)];
        for outbox in &outboxes {
            outbox.open();
            assert_eq!(taken(write(outbox, &[b"a token"])), 7);
            let at = outbox.lock().turn.as_ref().expect("a turn").as_ptr();
            outbox.close(&mut cx());
            // That it is wiped, the scan of a whole agent's memory shows (tests/it/leaks).
            let buffer = BUFFER.take();
            assert_eq!((buffer.as_ptr(), buffer.len(), buffer.capacity()), (at, 0, ROOM));
            BUFFER.set(buffer);
        }
        assert_eq!(outboxes.map(|outbox| outbox.lock().left.clone()), [&b""[..], b"oken", b"a token"]);
    }

    #[test]
    fn an_error_at_the_end_of_a_turn_is_the_next_ones() {
        let outbox = with_room(0);
        outbox.lock().stream.breaks = true;
        outbox.open();
        assert_eq!(taken(write(&outbox, &[b"lost"])), 4);
        outbox.close(&mut cx());
        outbox.open();
        let Poll::Ready(Err(error)) = write(&outbox, &[b"more"]) else { panic!("it is broken") };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert!(outbox.lock().fault().is_err() && outbox.lock().left.is_empty());
        outbox.close(&mut cx());
    }

    #[tokio::test]
    async fn what_was_gathered_goes_before_the_end() {
        let (mut client, server) = tokio::io::duplex(4);
        let outbox = Outbox::new(server);
        outbox.open();
        let pieces = [IoSlice::new(b"0123456789")];
        assert!(outbox.lock().poll_write(&mut cx(), &pieces).is_ready());
        let shut = std::future::poll_fn(|cx| outbox.lock().poll_shutdown(cx));
        let mut read = Vec::new();
        let (shut, whole) = tokio::join!(shut, client.read_to_end(&mut read));
        shut.expect("shut down");
        assert_eq!((whole.expect("read"), &read[..]), (10, &b"0123456789"[..]));
    }
}
