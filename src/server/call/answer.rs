//! An answer's body, from its first frame to its last: the one message of a call that was answered at once, or whatever the
//! service says, one message of it under way at a time.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::{Code, Status, body::Body};

use super::{Guard, drop_quietly};

/// An answer's body. The call is open until it has ended or is dropped.
pub(in crate::server) enum Reply {
    /// One message, then the status OK, which is what `guard` waits for.
    Once { message: Option<Bytes>, guard: Option<Guard> },
    /// Whatever the service says.
    Served(Served),
}

impl Reply {
    pub(super) fn unguarded(body: Body) -> Self {
        Self::Served(Served::new(body, None))
    }
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let (message, guard) = match self.get_mut() {
            Self::Served(served) => return served.poll_frame(cx),
            Self::Once { message, guard } => (message, guard),
        };
        if let Some(message) = message.take() {
            return Poll::Ready(Some(Ok(Frame::data(message))));
        }
        Poll::Ready(guard.take().map(|mut guard| {
            guard.counted.code = Code::Ok;
            let mut trailers = HeaderMap::with_capacity(1);
            trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
            Ok(Frame::trailers(trailers))
        }))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Served(served) => served.is_end_stream(),
            Self::Once { guard, .. } => guard.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Served(served) => served.size_hint(),
            // As a service's: the status is no part of it, and a stream has no length.
            Self::Once { .. } => SizeHint::default(),
        }
    }
}

/// What the service answers.
pub(in crate::server) struct Served {
    body: Option<Body>,
    guard: Option<Guard>,
    /// Whether the last message has left the agent.
    sent: Option<Arc<Sent>>,
    /// The next one, until it has. HTTP/2 would hoard 4 KiB of them for each stream of a client that does not read; so it is
    /// this one, and the next after it is what is true by then.
    next: Option<Bytes>,
}

impl Served {
    /// Of a call that `guard` keeps open, if any does.
    pub(super) const fn new(body: Body, guard: Option<Guard>) -> Self {
        Self { body: Some(body), guard, sent: None, next: None }
    }

    /// A message goes, when the last one has gone.
    fn poll_send(&mut self, message: Bytes, cx: &mut Context<'_>) -> Poll<Bytes> {
        if let Some(sent) = &self.sent
            && sent.poll(cx).is_pending()
        {
            self.next = Some(message);
            return Poll::Pending;
        }
        let sent = self.sent.get_or_insert_default();
        sent.begin();
        Poll::Ready(Bytes::from_owner(Sending { message, sent: Arc::clone(sent) }))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(message) = self.next.take() {
            return self.poll_send(message, cx).map(|message| Some(Ok(Frame::data(message))));
        }
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(cx)));
        match polled {
            Ok(Poll::Ready(None)) => {
                self.body = None;
                self.guard = None;
                Poll::Ready(None)
            }
            Ok(Poll::Ready(Some(Ok(frame)))) => match frame.into_data() {
                Ok(message) => self.poll_send(message, cx).map(|message| Some(Ok(Frame::data(message)))),
                Err(frame) => {
                    if let (Some(trailers), Some(guard)) = (frame.trailers_ref(), &mut self.guard) {
                        guard.counted.note(trailers);
                    }
                    Poll::Ready(Some(Ok(frame)))
                }
            },
            Ok(polled) => polled,
            Err(_) => {
                drop_quietly(self.body.take());
                Poll::Ready(self.guard.take().map(|mut guard| {
                    let mut trailers = HeaderMap::new();
                    guard.panicked().add_header(&mut trailers)?;
                    Ok(Frame::trailers(trailers))
                }))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_none() && self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        // It is asked for once, before anything is held back.
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

/// A message on its way: HTTP/2 drops it when it is written, or will never be.
struct Sending {
    message: Bytes,
    sent: Arc<Sent>,
}

impl AsRef<[u8]> for Sending {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.sent.end();
    }
}

/// How far a message is.
#[derive(Default)]
struct Sent(Mutex<Way>);

#[derive(Default)]
enum Way {
    #[default]
    Gone,
    Leaving,
    /// And somebody waits for it.
    Awaited(Waker),
}

impl Sent {
    fn lock(&self) -> MutexGuard<'_, Way> {
        // Nothing in there panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) {
        *self.lock() = Way::Leaving;
    }

    fn end(&self) {
        let way = std::mem::take(&mut *self.lock());
        if let Way::Awaited(waker) = way {
            waker.wake();
        }
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        let mut way = self.lock();
        if matches!(*way, Way::Gone) {
            return Poll::Ready(());
        }
        *way = Way::Awaited(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;

    use super::*;

    fn poll(reply: &mut Reply) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(reply).poll_frame(&mut Context::from_waker(std::task::Waker::noop()))
    }

    fn message(polled: Poll<Option<Result<Frame<Bytes>, Status>>>) -> Bytes {
        let Poll::Ready(Some(Ok(frame))) = polled else { panic!("a message: {polled:?}") };
        frame.into_data().expect("a message")
    }

    #[test]
    fn a_message_goes_when_the_last_one_has_gone_and_the_status_without_waiting() {
        let frames = ["one", "two"].map(|text| Frame::data(Bytes::from_static(text.as_bytes())));
        let trailers = Frame::trailers(HeaderMap::new());
        let stream = tokio_stream::iter(frames.into_iter().chain([trailers]).map(Ok::<_, Status>));
        let mut reply = Reply::unguarded(Body::new(StreamBody::new(stream)));
        let first = message(poll(&mut reply));
        assert_eq!(first, "one");
        assert!(poll(&mut reply).is_pending(), "it has not gone");
        assert!(poll(&mut reply).is_pending(), "nor has it now");
        assert!(!reply.is_end_stream());
        drop(first);
        let second = message(poll(&mut reply));
        assert_eq!(second, "two");
        let Poll::Ready(Some(Ok(last))) = poll(&mut reply) else { panic!("the status") };
        assert!(last.is_trailers());
        assert!(matches!(poll(&mut reply), Poll::Ready(None)) && reply.is_end_stream());
    }
}
