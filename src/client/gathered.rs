//! A socket whose writes are gathered for as long as somebody adds to them.
//!
//! HTTP/2 begins with four writes, preface, SETTINGS, head and message, and each would wake an agent that sleeps. They come
//! from tasks that run one after the other; so what is written goes when a round of the tasks has added nothing. That leaves
//! the greeting in front: what the agent does with it goes on while the call is made ready.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// More than this goes at once.
const MOST: usize = 16 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Gathered<T> {
    stream: T,
    out: Vec<u8>,
    /// Something was added since the last round.
    grows: bool,
}

impl<T> Gathered<T> {
    pub(super) const fn new(stream: T) -> Self {
        Self { stream, out: Vec::new(), grows: false }
    }
}

impl<T: AsyncWrite + Unpin> Gathered<T> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sent = 0;
        let done = loop {
            if sent == self.out.len() {
                break Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.stream).poll_write(cx, &self.out[sent..]) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(some)) => sent += some,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.out.drain(..sent);
        done
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gathered<T> {
    /// HTTP/2 reads first whenever it is polled, and again after it has written.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.grows) {
            cx.waker().wake_by_ref();
        } else if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathered<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        if self.out.len() + length > MOST {
            ready!(self.poll_send(cx))?;
        }
        for buf in bufs {
            self.out.extend_from_slice(buf);
        }
        self.grows = true;
        cx.waker().wake_by_ref();
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // It goes soon, whoever flushes; between a head and its message somebody always does.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn cx() -> Context<'static> {
        Context::from_waker(std::task::Waker::noop())
    }

    fn pair(room: usize) -> (tokio::io::DuplexStream, Gathered<tokio::io::DuplexStream>) {
        let (agent, ours) = tokio::io::duplex(room);
        (agent, Gathered::new(ours))
    }

    fn write(socket: &mut Gathered<tokio::io::DuplexStream>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(socket).poll_write(&mut cx(), bytes)
    }

    /// Polls as a connection does that has nothing to write.
    fn read(socket: &mut Gathered<tokio::io::DuplexStream>) {
        let mut bytes = [0; 8];
        assert!(Pin::new(socket).poll_read(&mut cx(), &mut ReadBuf::new(&mut bytes)).is_pending());
    }

    fn come(agent: &mut tokio::io::DuplexStream) -> Vec<u8> {
        let mut bytes = [0; 64 * 1024];
        let mut buf = ReadBuf::new(&mut bytes);
        // Nothing is empty.
        let _pending = Pin::new(agent).poll_read(&mut cx(), &mut buf);
        buf.filled().to_vec()
    }

    #[test]
    fn what_is_added_round_by_round_goes_when_a_round_adds_nothing() {
        let (mut agent, mut socket) = pair(1 << 20);
        for part in ["head", "message"] {
            read(&mut socket);
            assert!(matches!(write(&mut socket, part.as_bytes()), Poll::Ready(Ok(_))));
        }
        read(&mut socket);
        assert_eq!(come(&mut agent), b"", "the round that it came in");
        read(&mut socket);
        assert_eq!(come(&mut agent), b"headmessage");
    }

    #[test]
    fn it_holds_no_more_than_it_may_and_loses_nothing() {
        let (mut agent, mut socket) = pair(10_000);
        let block = vec![7; 9_000];
        assert!(matches!(write(&mut socket, &block), Poll::Ready(Ok(9_000))));
        assert!(matches!(write(&mut socket, &block), Poll::Ready(Ok(9_000))), "the first went");
        assert!(write(&mut socket, &block).is_pending(), "the second cannot, whole");
        let mut all = come(&mut agent);
        assert!(matches!(write(&mut socket, &block), Poll::Ready(Ok(9_000))));
        read(&mut socket);
        loop {
            read(&mut socket);
            match come(&mut agent) {
                some if some.is_empty() => break,
                some => all.extend(some),
            }
        }
        assert_eq!(all, vec![7; 27_000]);
    }

    #[tokio::test]
    async fn each_write_is_sent_by_whoever_waits_for_an_answer_and_by_the_end() {
        let (mut agent, mut socket) = pair(4);
        socket.write_all(b"question").await.expect("written");
        let (asked, answered) = tokio::join!(
            async {
                let mut asked = [0; 8];
                agent.read_exact(&mut asked).await.expect("read");
                agent.write_all(b"yes").await.expect("written");
                asked
            },
            async {
                let mut answer = [0; 3];
                socket.read_exact(&mut answer).await.expect("read");
                answer
            }
        );
        assert_eq!((&asked, &answered), (b"question", b"yes"));
        socket.write_all(b"good-bye").await.expect("written");
        let mut last = Vec::new();
        let (shut, read) = tokio::join!(socket.shutdown(), agent.read_to_end(&mut last));
        shut.expect("shut down");
        assert_eq!((read.expect("read"), &last[..]), (8, &b"good-bye"[..]));
    }
}
