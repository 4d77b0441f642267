//! The client that measures: HTTP/2 by hand over a blocking socket, so that what is timed is the server and not a library
//! (RFC 9113, RFC 7541). It speaks just enough to call one unary method again and again.

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Instant,
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// The largest flow-control window (RFC 9113 §6.9.1).
const LARGEST_WINDOW: u32 = (1 << 31) - 1;
/// What a connection's window starts with.
const FIRST_WINDOW: u32 = 65_535;

/// A method and its message: what each request says.
pub(crate) struct Call {
    /// All header fields, entered into the dynamic table.
    first: Vec<u8>,
    /// The same as indexes, for each later request.
    again: Vec<u8>,
    message: Vec<u8>,
}

impl Call {
    pub(crate) fn new(path: &str, message: &[u8]) -> Self {
        let literal = |name: &[u8], value: &str| {
            let length = u8::try_from(value.len()).expect("a short value");
            assert!(length < 127, "one byte of length");
            [name, &[length], value.as_bytes()].concat()
        };
        // :method POST and :scheme http are in the static table; the others are entered in this order.
        let first = [
            vec![0x83, 0x86],
            literal(&[0x44], path),
            literal(&[0x41], "localhost"),
            literal(&[0x5f], "application/grpc"),
            literal(&[0x40, 2, b't', b'e'], "trailers"),
            literal(&[0x7a], "bench"),
        ]
        .concat();
        // The newest entry is 62.
        let again = vec![0x83, 0x86, 0x80 | 66, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62];
        let length = u32::try_from(message.len()).expect("a short message");
        let message = [&[0], &length.to_be_bytes()[..], message].concat();
        Self { first, again, message }
    }

    /// GetToken for one profile.
    pub(crate) fn get_token(name: &str) -> Self {
        Self::new("/bloom.agent.v1.TokenService/GetToken", &name_field(name))
    }

    /// WatchToken for one profile.
    pub(crate) fn watch_token(name: &str) -> Self {
        Self::new("/bloom.agent.v1.TokenService/WatchToken", &name_field(name))
    }
}

/// `string name = 1`.
fn name_field(name: &str) -> Vec<u8> {
    let length = u8::try_from(name.len()).expect("a short name");
    [&[0x0a, length], name.as_bytes()].concat()
}

fn frame(into: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    into.extend_from_slice(&length[1..]);
    into.extend_from_slice(&[kind, flags]);
    into.extend_from_slice(&stream.to_be_bytes());
    into.extend_from_slice(payload);
}

/// One connection.
pub(crate) struct Connection {
    socket: UnixStream,
    next_stream: u32,
    has_table: bool,
    out: Vec<u8>,
    read: Vec<u8>,
    from: usize,
    /// Bytes of the connection's window that were used up.
    owed: u32,
}

/// What came.
pub(crate) struct Answer {
    /// The number of the request, from 0 on.
    pub(crate) number: u32,
    /// Its DATA.
    pub(crate) data: usize,
}

impl Connection {
    pub(crate) fn open(socket: &Path) -> io::Result<Self> {
        let mut opened = Self {
            socket: UnixStream::connect(socket)?,
            next_stream: 1,
            has_table: false,
            out: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            read: Vec::with_capacity(256 * 1024),
            from: 0,
            owed: 0,
        };
        frame(&mut opened.out, SETTINGS, 0, 0, &[]);
        let more = LARGEST_WINDOW - FIRST_WINDOW;
        frame(&mut opened.out, WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        Ok(opened)
    }

    /// Puts one request into the buffer; [`Self::flush`] sends what is there.
    pub(crate) fn ask(&mut self, call: &Call) {
        let block = if self.has_table { &call.again } else { &call.first };
        frame(&mut self.out, HEADERS, END_HEADERS, self.next_stream, block);
        frame(&mut self.out, DATA, END_STREAM, self.next_stream, &call.message);
        self.has_table = true;
        self.next_stream += 2;
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if self.owed > 1 << 30 {
            let owed = std::mem::take(&mut self.owed);
            frame(&mut self.out, WINDOW_UPDATE, 0, 0, &owed.to_be_bytes());
        }
        if !self.out.is_empty() {
            self.socket.write_all(&self.out)?;
            self.out.clear();
        }
        Ok(())
    }

    /// Reads once, waiting for something, and hands each frame of consequence to `on`.
    fn frames(&mut self, mut on: impl FnMut(u8, u8, u32, &[u8])) -> io::Result<()> {
        if self.from > 0 {
            self.read.drain(..self.from);
            self.from = 0;
        }
        let filled = self.read.len();
        self.read.resize(filled + 64 * 1024, 0);
        let got = self.socket.read(&mut self.read[filled..])?;
        self.read.truncate(filled + got);
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        loop {
            let rest = &self.read[self.from..];
            let Some((head, body)) = rest.split_at_checked(9) else { return Ok(()) };
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let Some(payload) = body.get(..length) else { return Ok(()) };
            let (kind, flags) = (head[3], head[4]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            match kind {
                SETTINGS if flags & ACK == 0 => frame(&mut self.out, SETTINGS, ACK, 0, &[]),
                PING if flags & ACK == 0 => {
                    let echo: [u8; 8] = payload.try_into().expect("eight bytes");
                    frame(&mut self.out, PING, ACK, 0, &echo);
                }
                GOAWAY => return Err(io::Error::other("the server says GOAWAY")),
                RST_STREAM => return Err(io::Error::other(format!("stream {stream} was reset"))),
                DATA => {
                    self.owed += u32::try_from(length).expect("a frame");
                    on(kind, flags, stream, payload);
                }
                HEADERS => on(kind, flags, stream, payload),
                _ => {}
            }
            self.from += 9 + length;
        }
    }

    /// Waits for frames, and hands on every answer that is complete.
    pub(crate) fn answers(&mut self, open: &mut Open, mut on: impl FnMut(Answer)) -> io::Result<()> {
        self.frames(|kind, flags, stream, payload| {
            if kind == DATA {
                *open.data.entry(stream).or_default() += payload.len();
            }
            if flags & END_STREAM != 0 {
                let data = open.data.remove(&stream).unwrap_or(0);
                on(Answer { number: stream / 2, data });
            }
        })
    }

    /// One request, and its answer's message.
    pub(crate) fn call(&mut self, call: &Call) -> io::Result<Vec<u8>> {
        self.ask(call);
        self.flush()?;
        let (mut message, mut ended) = (Vec::new(), false);
        while !ended {
            self.frames(|kind, flags, _, payload| {
                if kind == DATA {
                    message.extend_from_slice(payload);
                }
                ended |= flags & END_STREAM != 0;
            })?;
        }
        Ok(message)
    }

    /// Waits until each of `streams` has had one more DATA frame; says when the last one came.
    pub(crate) fn next_of_each(&mut self, streams: usize) -> io::Result<Instant> {
        let mut heard = 0;
        while heard < streams {
            self.frames(|kind, _, _, _| heard += usize::from(kind == DATA))?;
        }
        Ok(Instant::now())
    }

    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        self.socket.set_nonblocking(true)
    }

    pub(crate) const fn socket(&self) -> &UnixStream {
        &self.socket
    }
}

/// Answers that have begun.
#[derive(Default)]
pub(crate) struct Open {
    data: HashMap<u32, usize>,
}
