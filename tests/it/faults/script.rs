//! What the server does on a connection, as data: move by move, and answer by answer.

use std::{fmt, sync::Arc, time::Duration};

use super::server::Seen;

/// One move. A script is a list of them; at its end the server says goodbye and waits until the agent hangs up.
#[derive(Clone)]
pub(crate) enum Move {
    /// Reads what the agent sends first (a ClientHello), and never looks at it.
    Hear,
    /// From here on so many bytes leave in so much time, and never more at once.
    Pace(usize, Duration),
    /// The handshake. Where it fails, the script is over.
    Handshake(Tls, Certificate),
    /// Reads one request, and counts it.
    Request,
    /// An answer over HTTP/1.1.
    Answer(Answer),
    /// These bytes. `{TOKEN}` is a new token.
    Bytes(Vec<u8>),
    /// The same, one byte after the other, with so much time after each.
    Drip(Vec<u8>, Duration),
    /// The same so many times over, then a second, and again, until the agent hangs up.
    Flood(Vec<u8>, usize),
    /// The same over and over, as fast as the agent reads, until it hangs up.
    Pour(Vec<u8>),
    /// Lets so much time go by.
    Pause(Duration),
    /// Nothing any more, until the agent hangs up.
    Stall,
    /// Nothing any more, and no time goes by until the agent hangs up.
    Linger,
    /// RST.
    Reset,
    /// FIN, without TLS's close_notify; the other half of the connection stays open.
    Fin,
    /// Looks at the request and answers as it must be answered.
    Judge(Judge),
    /// Everything of a connection that speaks HTTP/2.
    Http2(Http2),
}

/// What a server that thinks answers to a request.
pub(crate) type Judge = Arc<dyn Fn(&Seen) -> Answer + Send + Sync>;

/// How a handshake is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    /// TLS 1.3 or 1.2, HTTP/1.1.
    Usual,
    /// 1.2 alone.
    Only12,
    /// 1.3 alone.
    Only13,
    /// ALPN agrees on HTTP/2.
    Http2,
    /// ALPN offers what the agent does not speak.
    OtherProtocol,
    /// No ALPN at all.
    NoProtocol,
    /// A client certificate is required.
    DemandsCertificate,
    /// The same over TLS 1.2.
    DemandsCertificate12,
    /// Session tickets that mean nothing.
    GarbageTickets,
    /// Dozens, as long as a record.
    TicketFlood,
    /// One over TLS 1.2.
    GarbageTickets12,
}

/// Which certificate is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Certificate {
    /// The right one.
    Good,
    /// A right one, but on each connection another.
    Another,
    /// One that was good.
    Expired,
    /// One that will be good.
    NotYetValid,
    /// Of another name.
    OtherHost,
    /// Of names that look much like it.
    OtherSubdomain,
    /// Of no name at all but in the subject, where it was read long ago.
    NameInSubjectOnly,
    /// Of nobody's word but its own.
    SelfSigned,
    /// Of an authority that is not in `ca_file`.
    OfAStranger,
}

/// What is done over HTTP/2, by the library or byte by byte.
#[derive(Clone)]
pub(crate) enum Http2 {
    /// An answer.
    Answer(Answer),
    /// The stream is reset with this code.
    Reset(h2::Reason),
    /// GOAWAY with this code when the request has come.
    GoAway(h2::Reason),
    /// GOAWAY before anything is read.
    GoAwayAtOnce,
    /// An answer with so many headers.
    ManyHeaders(usize),
    /// An answer with a header of so many bytes.
    LongHeader(usize),
    /// SETTINGS, and then these bytes, which are no frames as they should be.
    Raw(Vec<u8>),
}

/// How a body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Content-Length, its own.
    Length,
    /// Content-Length, this one.
    Says(usize),
    /// Transfer-Encoding: chunked.
    Chunked,
    /// HTTP/1.0: the end of the connection.
    Close,
    /// Chunked, and a Content-Length of 5.
    Both,
}

/// An answer. In headers and body stand for what is known only later: `{TOKEN}` a new token, `{JWT}` one that reads as
/// another client's, `{LAST}` the last one that was
/// given, `{SECRET}` the secret of the request as JSON writes it, `{FORM}` in the form encoding, `{BASE64}` in Base64.
#[derive(Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) framing: Framing,
}

/// Of the body nothing: it may hold a token.
impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.status, self.headers)
    }
}

/// How long the tokens of these stories live: few attempts fit between the refresh point and the end.
pub(crate) const LIFE: Duration = Duration::from_secs(200);

impl Answer {
    /// A token, as it should be.
    pub(crate) fn good() -> Self {
        let life = LIFE.as_secs();
        Self::json(
            200,
            &format!(r#"{{"access_token":"{{TOKEN}}","token_type":"bearer","expires_in":{life}}}"#),
        )
    }

    /// JSON with this status.
    pub(crate) fn json(status: u16, body: &str) -> Self {
        Self::empty(status)
            .with("content-type", "application/json")
            .with("cache-control", "no-store")
            .body(body)
    }

    /// No body, and no headers.
    pub(crate) fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), framing: Framing::Length }
    }

    /// An error of RFC 6749.
    pub(crate) fn error(status: u16, code: &str) -> Self {
        Self::json(status, &format!(r#"{{"error":"{code}","error_description":"because"}}"#))
    }

    /// With a further header.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Without the headers of this name.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(other, _)| other != name);
        self
    }

    /// With another body.
    pub(crate) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    /// With another framing.
    pub(crate) fn framed(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }
}

/// The moves of an answer to one request, as a good server makes them.
pub(crate) fn answered(answer: Answer) -> Vec<Move> {
    request_then([Move::Answer(answer)])
}

/// A good handshake and a request read, and what then.
pub(crate) fn request_then(then: impl IntoIterator<Item = Move>) -> Vec<Move> {
    let begin = [Move::Handshake(Tls::Usual, Certificate::Good), Move::Request];
    begin.into_iter().chain(then).collect()
}

/// Good but for the handshake.
pub(crate) fn shaken(tls: Tls, certificate: Certificate) -> Vec<Move> {
    vec![Move::Handshake(tls, certificate), Move::Request, Move::Answer(Answer::good())]
}

/// Whether the script lets time go by: such a one needs a clock that it can move.
pub(crate) fn takes_time(moves: &[Move]) -> bool {
    moves.iter().any(|one| {
        matches!(one, Move::Pace(..) | Move::Drip(..) | Move::Flood(..) | Move::Pause(_) | Move::Stall)
    })
}
