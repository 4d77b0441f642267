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
    /// All zero.
    static BUFFER: Cell<Box<[u8]>> = Cell::default();
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
    turn: Option<Gathered>,
    /// What the stream had no room for in an earlier one.
    left: Vec<u8>,
    /// The stream took nothing more, ever.
    failed: Option<io::ErrorKind>,
}

/// The thread's buffer, and how much of it is filled.
struct Gathered {
    bytes: Box<[u8]>,
    filled: usize,
}

impl Gathered {
    fn filled(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    /// Adds all of it, if there is room.
    fn add(&mut self, pieces: &[IoSlice<'_>]) -> Option<usize> {
        let length = pieces.iter().map(|piece| piece.len()).sum();
        let mut room = self.bytes[self.filled..].get_mut(..length)?;
        for piece in pieces {
            let (place, rest) = room.split_at_mut(piece.len());
            place.copy_from_slice(piece);
            room = rest;
        }
        self.filled += length;
        Some(length)
    }

    /// Takes the first of it away. Where it was, it is no more.
    fn drop_first(&mut self, count: usize) {
        self.bytes.copy_within(count..self.filled, 0);
        wiping::erase(&mut self.bytes[self.filled - count..self.filled]);
        self.filled -= count;
    }
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
        let mut bytes = BUFFER.take();
        if bytes.is_empty() {
            bytes = vec![0; ROOM].into();
        }
        self.lock().turn = Some(Gathered { bytes, filled: 0 });
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
        let Some(mut turn) = outgoing.turn.take() else { return };
        if turn.filled > 0 {
            if outgoing.failed.is_none() {
                outgoing.left = turn.filled().to_vec();
            }
            turn.drop_first(turn.filled);
        }
        BUFFER.set(turn.bytes);
    }
}

impl<T: AsyncWrite + Unpin> Outgoing<T> {
    /// The error of a turn that is over.
    pub(super) fn fault(&self) -> io::Result<()> {
        self.failed.map_or(Ok(()), |kind| Err(kind.into()))
    }

    /// Sends everything that was taken.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.left.is_empty() {
            let (sent, done) = send(&mut self.stream, cx, &self.left);
            // The old block is wiped when it is freed.
            self.left = self.left[sent..].to_vec();
            ready!(done)?;
        }
        if let Some(turn) = &mut self.turn
            && turn.filled > 0
        {
            let (sent, done) = send(&mut self.stream, cx, turn.filled());
            turn.drop_first(sent);
            ready!(done)?;
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.fault()?;
        if !self.left.is_empty() {
            ready!(self.poll_send(cx))?;
        }
        if let Some(length) = self.gather(pieces) {
            return Poll::Ready(Ok(length));
        }
        ready!(self.poll_send(cx))?;
        match self.gather(pieces) {
            Some(length) => Poll::Ready(Ok(length)),
            None => Pin::new(&mut self.stream).poll_write_vectored(cx, pieces),
        }
    }

    /// Takes all of it, if this is a turn and there is room.
    fn gather(&mut self, pieces: &[IoSlice<'_>]) -> Option<usize> {
        self.turn.as_mut()?.add(pieces)
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.fault()?;
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// How much the stream took, and whether that is all of it.
fn send<T: AsyncWrite + Unpin>(
    stream: &mut T,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> (usize, Poll<io::Result<()>>) {
    let mut sent = 0;
    while sent < bytes.len() {
        match Pin::new(&mut *stream).poll_write(cx, &bytes[sent..]) {
            Poll::Ready(Ok(0)) => return (sent, Poll::Ready(Err(io::ErrorKind::WriteZero.into()))),
            Poll::Ready(Ok(some)) => sent += some,
            Poll::Ready(Err(error)) => return (sent, Poll::Ready(Err(error))),
            Poll::Pending => return (sent, Poll::Pending),
        }
    }
    (sent, Poll::Ready(Ok(())))
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
    fn the_buffer_is_the_threads_and_comes_back_wiped() {
        let outboxes = [with_room(1 << 20), with_room(3), with_room(0)];
        for outbox in &outboxes {
            outbox.open();
            assert_eq!(taken(write(outbox, &[b"a token"])), 7);
            let at = outbox.lock().turn.as_ref().expect("a turn").bytes.as_ptr();
            outbox.close(&mut cx());
            let buffer = BUFFER.take();
            assert_eq!((buffer.as_ptr(), buffer.len()), (at, ROOM));
            assert!(buffer.iter().all(|byte| *byte == 0), "wiped");
            BUFFER.set(buffer);
        }
        assert_eq!(outboxes.map(|outbox| outbox.lock().left.clone()), [&b""[..], b"oken", b"a token"]);
    }

    #[test]
    fn what_went_in_the_midst_of_a_turn_is_wiped_too() {
        let outbox = with_room(ROOM / 2);
        outbox.open();
        assert_eq!(taken(write(&outbox, &[&vec![1; ROOM]])), ROOM);
        assert!(write(&outbox, &[b"more"]).is_pending());
        let gathered = outbox.lock();
        let turn = gathered.turn.as_ref().expect("a turn");
        assert_eq!(turn.filled(), vec![1; ROOM / 2]);
        assert!(turn.bytes[ROOM / 2..].iter().all(|byte| *byte == 0));
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
