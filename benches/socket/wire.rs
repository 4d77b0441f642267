//! The client that measures: HTTP/2 by hand over a socket, so that what is timed is the server and not a library
//! (RFC 9113, RFC 7541). It speaks just enough to make the same call again and again.

use std::{
    io::{self, Read as _, Write as _},
    mem,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
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
    fn new(path: &str, message: &[u8]) -> Self {
        Self::with(&[], path, message)
    }

    fn with(more: &[(&str, &str)], path: &str, message: &[u8]) -> Self {
        let text = |text: &str| {
            let length = u8::try_from(text.len()).expect("a short text");
            assert!(length < 127, "one byte of length");
            [&[length], text.as_bytes()].concat()
        };
        let of_static_name = |name: u8, value: &str| [vec![name], text(value)].concat();
        let mut entered = vec![
            of_static_name(0x44, path),
            of_static_name(0x41, "localhost"),
            of_static_name(0x5f, "application/grpc"),
            of_static_name(0x7a, "bench"),
        ];
        for (name, value) in [("te", "trailers")].iter().chain(more) {
            entered.push([vec![0x40], text(name), text(value)].concat());
        }
        // :method POST and :scheme http are in the static table; the others are entered, and the newest entry is 62.
        let newest_last = 0..u8::try_from(entered.len()).expect("a few fields");
        let mut again = vec![0x83, 0x86];
        again.extend(newest_last.rev().map(|age| 0x80 | (62 + age)));
        let first = [vec![0x83, 0x86], entered.concat()].concat();
        let length = u32::try_from(message.len()).expect("a short message");
        let message = [&[0], &length.to_be_bytes()[..], message].concat();
        Self { first, again, message }
    }

    /// GetToken for one profile.
    pub(crate) fn get_token(name: &str) -> Self {
        Self::new("/bloom.agent.v1.TokenService/GetToken", &name_field(name))
    }

    /// The same, as the agent leaves it to its router: what GetToken costs without the way before it.
    pub(crate) fn get_token_by_the_router(name: &str) -> Self {
        let encoding = ("grpc-encoding", "identity");
        Self::with(&[encoding], "/bloom.agent.v1.TokenService/GetToken", &name_field(name))
    }

    /// WatchToken for one profile.
    pub(crate) fn watch_token(name: &str) -> Self {
        Self::new("/bloom.agent.v1.TokenService/WatchToken", &name_field(name))
    }

    /// The operator's word that a profile wants another token now.
    pub(crate) fn refresh_token(name: &str) -> Self {
        Self::new("/bloom.agent.v1.AdminService/RefreshToken", &name_field(name))
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

/// What is read into, by all connections of one thread.
pub(crate) struct Scratch(Box<[u8]>);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(vec![0; 256 * 1024].into())
    }
}

/// One connection.
pub(crate) struct Connection {
    socket: UnixStream,
    /// The number of the next request, from 0 on.
    next: u32,
    out: Vec<u8>,
    /// A frame that has not come whole.
    carried: Vec<u8>,
    /// Bytes of the connection's window that were used up.
    owed: u32,
}

/// Something that came for a request.
pub(crate) struct Part<'a> {
    /// The request's number.
    pub(crate) number: u32,
    /// A piece of its answer's messages.
    pub(crate) data: &'a [u8],
    /// Whether the answer ends here.
    pub(crate) ends: bool,
}

impl Connection {
    pub(crate) fn open(socket: &Path) -> io::Result<Self> {
        let mut opened = Self {
            socket: UnixStream::connect(socket)?,
            next: 0,
            out: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            carried: Vec::new(),
            owed: 0,
        };
        frame(&mut opened.out, SETTINGS, 0, 0, &[]);
        let more = LARGEST_WINDOW - FIRST_WINDOW;
        frame(&mut opened.out, WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        Ok(opened)
    }

    /// Puts one request into the buffer, and returns its number; [`Self::flush`] sends what is there.
    pub(crate) fn ask(&mut self, call: &Call) -> u32 {
        let number = self.next;
        let block = if number == 0 { &call.first } else { &call.again };
        frame(&mut self.out, HEADERS, END_HEADERS, 2 * number + 1, block);
        frame(&mut self.out, DATA, END_STREAM, 2 * number + 1, &call.message);
        self.next += 1;
        number
    }

    /// How many requests there have been.
    pub(crate) const fn asked(&self) -> u32 {
        self.next
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if self.owed > 1 << 30 {
            let owed = mem::take(&mut self.owed);
            frame(&mut self.out, WINDOW_UPDATE, 0, 0, &owed.to_be_bytes());
        }
        if !self.out.is_empty() {
            self.socket.write_all(&self.out)?;
            self.out.clear();
        }
        Ok(())
    }

    /// Reads once, and hands on what came.
    pub(crate) fn read(&mut self, scratch: &mut Scratch, mut on: impl FnMut(Part<'_>)) -> io::Result<()> {
        let got = self.socket.read(&mut scratch.0)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut carried = mem::take(&mut self.carried);
        let mut rest = &scratch.0[..got];
        if !carried.is_empty() {
            carried.extend_from_slice(rest);
            rest = &carried;
        }
        while let Some((head, body)) = rest.split_at_checked(9) {
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let Some((payload, behind)) = body.split_at_checked(length) else { break };
            let (kind, flags) = (head[3], head[4]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let part = |data| Part { number: stream / 2, data, ends: flags & END_STREAM != 0 };
            match kind {
                SETTINGS if flags & ACK == 0 => frame(&mut self.out, SETTINGS, ACK, 0, &[]),
                PING if flags & ACK == 0 => frame(&mut self.out, PING, ACK, 0, payload),
                GOAWAY => return Err(io::Error::other("the server says GOAWAY")),
                RST_STREAM => return Err(io::Error::other(format!("stream {stream} was reset"))),
                DATA => {
                    self.owed += u32::try_from(length).expect("a frame");
                    on(part(payload));
                }
                HEADERS => on(part(&[])),
                _ => {}
            }
            rest = behind;
        }
        self.carried = rest.to_vec();
        Ok(())
    }

    /// One request, and the first message of its answer, which may go on.
    pub(crate) fn begin(&mut self, call: &Call, scratch: &mut Scratch) -> io::Result<()> {
        self.ask(call);
        self.flush()?;
        let mut come = 0;
        while come == 0 {
            self.read(scratch, |part| come += part.data.len())?;
        }
        Ok(())
    }

    /// One request, and its answer's message, framed.
    pub(crate) fn call(&mut self, call: &Call, scratch: &mut Scratch) -> io::Result<Vec<u8>> {
        self.ask(call);
        self.flush()?;
        let (mut message, mut ended) = (Vec::new(), false);
        while !ended {
            self.read(scratch, |part| {
                message.extend_from_slice(part.data);
                ended |= part.ends;
            })?;
        }
        Ok(message)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
