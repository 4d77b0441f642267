//! A connection's socket, of which the event loop need not hear anything for a while.
//!
//! Whatever a client sends wakes the event loop, also while the connection may not read it: thousands of clients that wait
//! for their turn could keep the agent awake by that alone. So who waits long is taken off the loop's list. When it may go
//! on, it reads and writes without asking the list first, and is back on it when there is nothing more to be had. If its
//! client has gone by then, so has it.

use std::{
    io::{self, IoSlice, Read as _, Write as _},
    mem,
    os::{fd::AsFd as _, unix::net},
    pin::Pin,
    task::{Context, Poll},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};

use super::Readable;

/// See the module.
pub(in crate::server) struct Socket {
    state: State,
    /// A write waits for the client: the loop has to say when it may go on.
    is_blocked: bool,
}

enum State {
    Heard(UnixStream),
    Unheard(net::UnixStream),
    /// It could not be moved from one to the other: the connection fails.
    Gone,
}

impl Socket {
    pub(in crate::server) const fn new(stream: UnixStream) -> Self {
        Self { state: State::Heard(stream), is_blocked: false }
    }

    /// The stream, on the loop's list.
    fn heard(&mut self) -> io::Result<Pin<&mut UnixStream>> {
        if let State::Unheard(_) = &self.state
            && let State::Unheard(stream) = mem::replace(&mut self.state, State::Gone)
        {
            self.state = State::Heard(UnixStream::from_std(stream)?);
        }
        match &mut self.state {
            State::Heard(stream) => Ok(Pin::new(stream)),
            State::Unheard(_) | State::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn poll_write_by(
        &mut self,
        cx: &mut Context<'_>,
        at_once: impl FnOnce(&mut net::UnixStream) -> io::Result<usize>,
        in_time: impl FnOnce(Pin<&mut UnixStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let State::Unheard(stream) = &mut self.state {
            let written = at_once(stream);
            if !would_block(&written) {
                return Poll::Ready(written);
            }
        }
        let written = in_time(self.heard()?, cx);
        self.is_blocked = written.is_pending();
        written
    }
}

/// Whether the peer has closed its end altogether (poll(2), POLLHUP).
fn is_hung_up(stream: &net::UnixStream) -> bool {
    let mut asked = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let known = poll(&mut asked, PollTimeout::ZERO).is_ok();
    known && asked[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

fn would_block<T>(done: &io::Result<T>) -> bool {
    let is_blocking = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
    done.as_ref().is_err_and(is_blocking)
}

impl Readable for Socket {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.state {
            State::Heard(stream) => stream.poll_read_ready(cx),
            // Whoever reads finds out.
            State::Unheard(_) | State::Gone => Poll::Ready(Ok(())),
        }
    }

    fn ignore(&mut self) {
        if self.is_blocked || !matches!(self.state, State::Heard(_)) {
            return;
        }
        if let State::Heard(stream) = mem::replace(&mut self.state, State::Gone)
            && let Ok(stream) = stream.into_std()
        {
            self.state = State::Unheard(stream);
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let State::Unheard(stream) = &mut self.state {
            // Nobody is there to be answered: what it has left behind would take turns without end.
            if is_hung_up(stream) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let read = stream.read(buf.initialize_unfilled());
            if !would_block(&read) {
                return Poll::Ready(read.map(|read| buf.advance(read)));
            }
        }
        self.heard()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_by(cx, |stream| stream.write(buf), |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The kernel has whatever was written.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.heard()?.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_by(
            cx,
            |stream| stream.write_vectored(bufs),
            |stream, cx| stream.poll_write_vectored(cx, bufs),
        )
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
        task::{Wake, Waker},
    };

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn pair() -> (net::UnixStream, Socket) {
        let (client, server) = net::UnixStream::pair().expect("two sockets");
        server.set_nonblocking(true).expect("nonblocking");
        (client, Socket::new(UnixStream::from_std(server).expect("registered")))
    }

    /// Lets the event loop look at its sockets.
    async fn look() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn nobody_is_woken_by_what_comes_while_it_is_ignored_and_nothing_is_lost() {
        let (mut client, mut socket) = pair();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let mut bytes = [0; 8];
        assert!(Pin::new(&mut socket).poll_read(&mut cx, &mut ReadBuf::new(&mut bytes)).is_pending());
        socket.ignore();
        client.write_all(b"abc").expect("written");
        look().await;
        assert_eq!(woken.0.load(Relaxed), 0);
        assert!(socket.poll_readable(&mut cx).is_ready(), "it may be");
        assert_eq!(socket.read(&mut bytes).await.expect("read"), 3);
        assert!(matches!(socket.state, State::Unheard(_)), "there may be more");
        assert!(Pin::new(&mut socket).poll_read(&mut cx, &mut ReadBuf::new(&mut bytes)).is_pending());
        assert!(matches!(socket.state, State::Heard(_)), "there was not");
        client.write_all(b"d").expect("written");
        look().await;
        assert!(woken.0.load(Relaxed) > 0);
        assert_eq!(socket.read(&mut bytes).await.expect("read"), 1);
        client.write_all(b"efg").expect("written");
        client.shutdown(std::net::Shutdown::Write).expect("shut down");
        socket.ignore();
        assert_eq!(socket.read(&mut bytes).await.expect("read"), 3, "it still listens");
        assert_eq!(socket.read(&mut bytes).await.expect("the end"), 0);
    }

    #[tokio::test]
    async fn what_a_client_that_has_gone_left_behind_is_not_read() {
        let (mut client, mut socket) = pair();
        socket.ignore();
        client.write_all(&[7; 10_000]).expect("written");
        drop(client);
        let error = socket.read(&mut [0; 8]).await.expect_err("nobody is there");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn it_writes_while_it_is_ignored_and_is_heard_of_when_it_cannot() {
        let (mut client, mut socket) = pair();
        socket.ignore();
        socket.write_all(b"abc").await.expect("written");
        assert!(matches!(socket.state, State::Unheard(_)));
        let mut bytes = [0; 3];
        client.read_exact(&mut bytes).expect("read");
        let large = vec![7; 1 << 20];
        let (mut cx, mut written) = (Context::from_waker(Waker::noop()), 0);
        while let Poll::Ready(some) = Pin::new(&mut socket).poll_write(&mut cx, &large) {
            written += some.expect("written");
        }
        socket.ignore();
        assert!(matches!(socket.state, State::Heard(_)), "or nobody would say when it may go on");
        let reader = std::thread::spawn(move || {
            let mut all = vec![0; written + 1];
            client.read_exact(&mut all).map(|()| all.len())
        });
        socket.write_all(b"x").await.expect("written");
        assert_eq!(reader.join().expect("it ended").expect("read"), written + 1);
        socket.ignore();
        assert!(matches!(socket.state, State::Unheard(_)));
        socket.shutdown().await.expect("shut down");
    }
}
