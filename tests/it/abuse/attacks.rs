//! What a hostile local user does to the socket, as data: its name, what it sends, and what must come of it. The tests
//! and the measuring program (`benches/abuse`) take the same table.
//!
//! Every byte is written by hand: no HTTP/2 library lets itself be misused like this.

use std::{fmt, io, path::Path, pin::pin};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

/// One attack, over one connection; whoever wages it opens as many as it likes.
pub(crate) struct Attack {
    /// In a few words.
    pub(crate) name: &'static str,
    /// What a client that does this says first.
    pub(crate) greeting: Greeting,
    /// The n-th piece of what it sends then; at the end of it it waits.
    pub(crate) piece: fn(u32) -> Option<Vec<u8>>,
    /// What it does with what it is sent.
    pub(crate) reads: Reads,
    /// What must come of it.
    pub(crate) must: Must,
    /// Who can do it.
    pub(crate) by: Standing,
}

impl fmt::Debug for Attack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// How a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// With nothing.
    None,
    /// As RFC 9113 §3.4 has it.
    Http2,
    /// The same, and the server may send 2^31 - 1 bytes without being asked again.
    WideOpen,
    /// The same, and the server may send no answer's body at all.
    Shut,
}

/// What becomes of the server's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// They are read and forgotten.
    Everything,
    /// They are left in the socket.
    Nothing,
}

/// What the agent does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Must {
    /// It cuts the connection, counts it, and says so once.
    Cut,
    /// It ends the connection by HTTP/2's own rules.
    Close,
    /// It cuts the connection when the time for a greeting is over.
    Outwait,
    /// It answers every call, and the connection stays.
    Answer,
    /// It holds what `[limits]` let it hold, and no more.
    Hold,
}

/// Whom the agent knows the hostile user as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// One who may connect, and may have no token.
    Stranger,
    /// One who may have the token.
    Holder,
}

/// The client's preface and an empty SETTINGS.
pub(crate) const GREETING: [u8; 33] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// `:method POST`, `:scheme http`, and the path of GetToken, without indexing.
pub(crate) const GET_TOKEN: &[u8] = b"\x83\x86\x04\x25/bloom.agent.v1.TokenService/GetToken\
    \x0f\x10\x10application/grpc\x00\x02te\x08trailers";

const WATCH_TOKEN: &[u8] = b"\x83\x86\x04\x27/bloom.agent.v1.TokenService/WatchToken\
    \x0f\x10\x10application/grpc\x00\x02te\x08trailers";

const REFLECTION: &[u8] = b"\x83\x86\x04\x39/grpc.reflection.v1.ServerReflection/ServerReflectionInfo\
    \x0f\x10\x10application/grpc\x00\x02te\x08trailers";

/// An empty message, framed for gRPC.
pub(crate) const EMPTY_MESSAGE: &[u8] = b"\0\0\0\0\0";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// One frame (RFC 9113 §4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = u32::try_from(payload.len()).expect("small").to_be_bytes();
    let mut frame = vec![high, middle, low, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The n-th stream that a client opens.
const fn id(n: u32) -> u32 {
    2 * n + 1
}

/// A piece made of many: one write for each frame would be the slowest part of the attack.
fn many(n: u32, count: u32, one: impl Fn(u32) -> Vec<u8>) -> Option<Vec<u8>> {
    Some((n * count..(n + 1) * count).flat_map(one).collect())
}

/// Only the first so many pieces.
fn first(n: u32, pieces: u32, piece: impl FnOnce() -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    if n < pieces { piece() } else { None }
}

/// A whole call.
fn call(n: u32, fields: &[u8], message: &[u8]) -> Vec<u8> {
    [frame(HEADERS, END_HEADERS, id(n), fields), frame(DATA, END_STREAM, id(n), message)].concat()
}

/// A literal field that is not put into the table; the name has one byte.
fn literal(name: u8, value: &[u8]) -> Vec<u8> {
    let mut field = vec![0x00, 1, name];
    length(0, value.len(), &mut field);
    field.extend(value);
    field
}

/// A string's length (RFC 7541 §5.1, §5.2).
fn length(huffman: u8, mut length: usize, block: &mut Vec<u8>) {
    if length < 127 {
        block.push(huffman | u8::try_from(length).expect("small"));
        return;
    }
    block.push(huffman | 127);
    length -= 127;
    while length >= 128 {
        block.push(0x80 | u8::try_from(length % 128).expect("small"));
        length /= 128;
    }
    block.push(u8::try_from(length).expect("small"));
}

/// GetToken with so many more fields of three bytes, each a reference to one entry of the table, which is made here.
fn referring(fields: usize) -> Vec<u8> {
    [GET_TOKEN, b"\x40\x01x\x01y", &b"\xbe".repeat(fields)].concat()
}

/// GetToken with so many bytes in fields that nobody reads.
fn ballast(bytes: usize) -> Vec<u8> {
    let fields = (0..bytes / 1024).flat_map(|_| literal(b'x', &[b'y'; 1000]));
    GET_TOKEN.iter().copied().chain(fields).collect()
}

/// GetToken whose fields all go into the table, none like another.
fn churning(n: u32) -> Vec<u8> {
    let fields =
        (0..60).flat_map(|m| [b"\x40\x01x\x08".as_slice(), format!("{n:05}{m:03}").as_bytes()].concat());
    GET_TOKEN.iter().copied().chain(fields).collect()
}

/// Opens as many streams as a connection may have, and a few more.
const STREAMS: u32 = 1024;

/// Every attack.
pub(crate) const ATTACKS: &[Attack] = &[
    Attack {
        name: "requests that never end",
        piece: |n| many(n, 64, |n| frame(HEADERS, END_HEADERS, id(n), GET_TOKEN)),
        must: Must::Close,
        ..HTTP2
    },
    Attack {
        name: "requests without :path",
        piece: |n| many(n, 64, |n| frame(HEADERS, END_HEADERS, id(n), b"\x83\x86")),
        must: Must::Answer,
        ..HTTP2
    },
    Attack {
        name: "requests that are reset at once",
        piece: |n| {
            many(n, 64, |n| {
                let request = frame(HEADERS, END_HEADERS | END_STREAM, id(n), GET_TOKEN);
                [request, frame(RST_STREAM, 0, id(n), &[0, 0, 0, 8])].concat()
            })
        },
        must: Must::Close,
        ..HTTP2
    },
    Attack {
        name: "streams that the server has to reset",
        piece: |n| {
            many(n, 64, |n| {
                let request = frame(HEADERS, END_HEADERS, id(n), GET_TOKEN);
                [request, frame(WINDOW_UPDATE, 0, id(n), &[0, 0, 0, 0])].concat()
            })
        },
        must: Must::Close,
        ..HTTP2
    },
    Attack {
        name: "a field block without end",
        piece: |n| match n {
            0 => Some(frame(HEADERS, 0, 1, GET_TOKEN)),
            _ => Some(frame(CONTINUATION, 0, 1, &literal(b'x', &[b'y'; 256]).repeat(40))),
        },
        must: Must::Close,
        ..HTTP2
    },
    Attack {
        name: "empty CONTINUATION without end",
        piece: |n| match n {
            0 => Some(frame(HEADERS, 0, 1, GET_TOKEN)),
            _ => Some(frame(CONTINUATION, 0, 1, b"").repeat(100)),
        },
        must: Must::Close,
        ..HTTP2
    },
    Attack { name: "PING", piece: |_| Some(frame(PING, 0, 0, &[7; 8]).repeat(100)), ..HTTP2 },
    Attack { name: "answers to PINGs", piece: |_| Some(frame(PING, 1, 0, &[7; 8]).repeat(100)), ..HTTP2 },
    Attack { name: "SETTINGS", piece: |_| Some(frame(SETTINGS, 0, 0, &[]).repeat(100)), ..HTTP2 },
    Attack {
        name: "SETTINGS that move every window",
        piece: |n| {
            Some(match n {
                0 => (0..1000).flat_map(|n| call(n, WATCH_TOKEN, EMPTY_MESSAGE)).collect(),
                _ => [[0, 4, 0, 0, 0, 0], [0, 4, 0, 0, 0xff, 0xff]]
                    .iter()
                    .flat_map(|setting| frame(SETTINGS, 0, 0, setting))
                    .collect::<Vec<_>>()
                    .repeat(50),
            })
        },
        by: Standing::Holder,
        ..HTTP2
    },
    Attack {
        name: "WINDOW_UPDATE",
        piece: |_| Some(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(100)),
        ..HTTP2
    },
    Attack {
        name: "PRIORITY",
        piece: |_| Some(frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]).repeat(100)),
        ..HTTP2
    },
    Attack {
        name: "RST_STREAM for a stream that is over",
        piece: |n| {
            Some(match n {
                0 => call(0, GET_TOKEN, EMPTY_MESSAGE),
                _ => frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]).repeat(100),
            })
        },
        ..HTTP2
    },
    Attack {
        name: "frames of an unknown type",
        piece: |_| Some(frame(0xbe, 0, 0, b"greased").repeat(100)),
        ..HTTP2
    },
    Attack {
        name: "GOAWAY",
        piece: |_| Some(frame(GOAWAY, 0, 0, &[0; 8]).repeat(100)),
        must: Must::Close,
        ..HTTP2
    },
    Attack {
        name: "empty DATA",
        piece: |n| {
            Some(match n {
                0 => frame(HEADERS, END_HEADERS, 1, GET_TOKEN),
                _ => frame(DATA, 0, 1, b"").repeat(100),
            })
        },
        must: Must::Close,
        ..HTTP2
    },
    Attack {
        name: "DATA of one byte",
        piece: |n| {
            Some(match n {
                0 => frame(HEADERS, END_HEADERS, 1, GET_TOKEN),
                _ => frame(DATA, 0, 1, b"\0").repeat(100),
            })
        },
        must: Must::Cut,
        ..HTTP2
    },
    Attack {
        name: "DATA of padding",
        piece: |n| {
            Some(match n {
                0 => frame(HEADERS, END_HEADERS, 1, GET_TOKEN),
                _ => frame(DATA, 0x8, 1, &[&b"\xff"[..], &[0; 255]].concat()).repeat(20),
            })
        },
        must: Must::Close,
        ..HTTP2
    },
    Attack {
        name: "an HPACK bomb of one large entry",
        piece: |n| {
            many(n, 4, |n| {
                let mut fields = [GET_TOKEN, b"\x40\x01x"].concat();
                length(0, 3900, &mut fields);
                fields.extend([b'y'; 3900]);
                fields.extend(b"\xbe".repeat(10_000));
                frame(HEADERS, END_HEADERS | END_STREAM, id(n), &fields)
            })
        },
        must: Must::Close,
        ..HTTP2
    },
    Attack {
        name: "an HPACK bomb of many small fields",
        piece: |n| {
            first(n, STREAMS / 16 - 1, || {
                many(n, 16, |n| frame(HEADERS, END_HEADERS, id(n), &referring(440)))
            })
        },
        must: Must::Hold,
        ..HTTP2
    },
    Attack {
        name: "a table that never holds still",
        piece: |n| many(n, 16, |n| call(n, &churning(n), EMPTY_MESSAGE)),
        must: Must::Answer,
        ..HTTP2
    },
    Attack {
        name: "an authority of 16,000 bytes in the Huffman code",
        piece: |n| {
            many(n, 4, |n| {
                let mut fields = GET_TOKEN.to_vec();
                fields.push(0x01);
                length(0x80, 16_000, &mut fields);
                // `0` is 00000 (RFC 7541 appendix B).
                fields.extend([0; 16_000]);
                frame(HEADERS, END_HEADERS | END_STREAM, id(n), &fields)
            })
        },
        ..HTTP2
    },
    Attack {
        name: "calls with 15 KiB of fields",
        piece: |n| many(n, 4, |n| call(n, &ballast(15 * 1024), EMPTY_MESSAGE)),
        ..HTTP2
    },
    Attack {
        name: "a message that says it has 1 GiB",
        piece: |n| many(n, 16, |n| call(n, GET_TOKEN, b"\0\x40\0\0\0")),
        must: Must::Answer,
        ..HTTP2
    },
    Attack {
        name: "compressed messages",
        piece: |n| {
            many(n, 16, |n| {
                let fields = [GET_TOKEN, b"\x00\x0dgrpc-encoding\x04gzip"].concat();
                call(n, &fields, b"\x01\0\0\0\x14\x1f\x8b\x08\0\0\0\0\0\0\x03\x03\0\0\0\0\0\0\0\0\0")
            })
        },
        must: Must::Answer,
        ..HTTP2
    },
    Attack {
        name: "calls whose answers are never read",
        piece: |n| first(n, STREAMS / 64, || many(n, 64, |n| call(n, GET_TOKEN, EMPTY_MESSAGE))),
        greeting: Greeting::Shut,
        reads: Reads::Nothing,
        must: Must::Hold,
        by: Standing::Holder,
    },
    Attack {
        name: "watches that are never read",
        piece: |n| first(n, STREAMS / 64, || many(n, 64, |n| call(n, WATCH_TOKEN, EMPTY_MESSAGE))),
        greeting: Greeting::WideOpen,
        reads: Reads::Nothing,
        must: Must::Hold,
        by: Standing::Holder,
    },
    Attack {
        name: "requests that hold 15 KiB of fields",
        piece: |n| first(n, 30, || many(n, 1, |n| frame(HEADERS, END_HEADERS, id(n), &ballast(15 * 1024)))),
        must: Must::Hold,
        ..HTTP2
    },
    Attack {
        name: "requests that hold many fields",
        piece: |n| {
            first(n, STREAMS / 64, || many(n, 64, |n| frame(HEADERS, END_HEADERS, id(n), &referring(80))))
        },
        must: Must::Hold,
        ..HTTP2
    },
    Attack {
        name: "a field block left open",
        piece: |n| {
            first(n, 1, || {
                Some(frame(HEADERS, 0, 1, &[GET_TOKEN, &b"\x90".repeat(80), &ballast(10 * 1024)].concat()))
            })
        },
        must: Must::Hold,
        ..HTTP2
    },
    Attack {
        name: "a table whose entries keep what they were read with",
        piece: |n| {
            first(n, 60, || {
                many(n, 1, |n| {
                    let pinned =
                        [GET_TOKEN, b"\x40\x01x\x01", &[b'a' + u8::try_from(n % 26).expect("small")]]
                            .concat();
                    [frame(0xbe, 0, 0, &[0; 16 * 1024 - 200]), call(n, &pinned, EMPTY_MESSAGE)].concat()
                })
            })
        },
        must: Must::Cut,
        ..HTTP2
    },
    Attack {
        name: "questions whose answers are never read",
        piece: |n| {
            first(n, 1, || {
                many(n, 16, |n| {
                    // ListServices, as often as the connection's window lets it.
                    let question = b"\0\0\0\0\x02\x3a\0".repeat(500);
                    let body = frame(DATA, 0, id(n), &question);
                    [frame(HEADERS, END_HEADERS, id(n), REFLECTION), body].concat()
                })
            })
        },
        greeting: Greeting::Shut,
        reads: Reads::Nothing,
        must: Must::Hold,
        ..HTTP2
    },
    Attack {
        name: "a client that says nothing",
        piece: |_| None,
        greeting: Greeting::None,
        must: Must::Outwait,
        ..HTTP2
    },
    Attack {
        name: "a preface and no SETTINGS",
        piece: |n| first(n, 1, || Some(GREETING[..24].to_vec())),
        greeting: Greeting::None,
        must: Must::Outwait,
        ..HTTP2
    },
    Attack {
        name: "garbage",
        piece: |n| {
            Some(
                (0..4096)
                    .map(|m: u32| (n.wrapping_mul(31) ^ m.wrapping_mul(2_654_435_761) >> 7) as u8)
                    .collect(),
            )
        },
        greeting: Greeting::None,
        must: Must::Close,
        ..HTTP2
    },
    Attack {
        name: "HTTP/1.1",
        piece: |_| Some(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n".to_vec()),
        greeting: Greeting::None,
        must: Must::Close,
        ..HTTP2
    },
    Attack {
        name: "a client hello of TLS",
        piece: |_| Some(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a client hello of TLS".to_vec()),
        greeting: Greeting::None,
        must: Must::Close,
        ..HTTP2
    },
    Attack {
        name: "a call, byte by byte",
        piece: |n| {
            let call = call(0, GET_TOKEN, EMPTY_MESSAGE);
            call.get(n as usize).map(|byte| vec![*byte])
        },
        must: Must::Answer,
        ..HTTP2
    },
    Attack {
        name: "frames that say more than they have",
        piece: |n| first(n, 1, || Some(frame(DATA, 0, 1, &[0; 64])[..40].to_vec())),
        must: Must::Hold,
        ..HTTP2
    },
    Attack {
        name: "a frame larger than any may be",
        piece: |_| Some(b"\xff\xff\xff\0\0\0\0\0\x01".to_vec()),
        must: Must::Close,
        ..HTTP2
    },
];

/// What most of them have in common.
pub(crate) const HTTP2: Attack = Attack {
    name: "",
    greeting: Greeting::Http2,
    piece: |_| None,
    reads: Reads::Everything,
    must: Must::Cut,
    by: Standing::Stranger,
};

/// How a connection of an attack ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The socket let nobody in.
    NotConnected,
    /// By the agent, after so many bytes had been taken.
    ByTheAgent {
        /// Written by the attacker; the socket's buffer is among them.
        sent: u64,
        /// Read by it.
        read: u64,
    },
}

/// Wages an attack over one connection until the agent ends that. Dropping the future leaves as a process that is killed
/// does: in the middle of whatever there was.
pub(crate) async fn strike(socket: &Path, attack: &Attack) -> Ended {
    let Ok(stream) = UnixStream::connect(socket).await else { return Ended::NotConnected };
    strike_over(stream, attack).await
}

/// The same over a connection that is there.
pub(crate) async fn strike_over(mut stream: UnixStream, attack: &Attack) -> Ended {
    let (mut reader, mut writer) = stream.split();
    let (mut sent, mut read) = (0, 0);
    let write = async {
        let mut write = async |bytes: &[u8]| -> io::Result<()> {
            writer.write_all(bytes).await?;
            sent += bytes.len() as u64;
            // Whoever reads, and whoever else attacks, has a turn.
            tokio::task::yield_now().await;
            Ok(())
        };
        write(&greeting(attack.greeting)).await?;
        let mut n = 0;
        while let Some(piece) = (attack.piece)(n) {
            write(&piece).await?;
            n += 1;
        }
        io::Result::Ok(())
    };
    let all_read = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            match attack.reads {
                Reads::Everything => match reader.read(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(length) => read += length as u64,
                },
                Reads::Nothing => std::future::pending().await,
            }
        }
    };
    {
        let (mut write, mut all_read) = (pin!(write), pin!(all_read));
        tokio::select! {
            () = &mut all_read => {}
            written = &mut write => if written.is_ok() { all_read.await },
        }
    }
    Ended::ByTheAgent { sent, read }
}

/// What comes first.
pub(crate) fn greeting(greeting: Greeting) -> Vec<u8> {
    let windows = |stream: &[u8; 4], connection: &[u8; 4]| {
        let mut bytes = GREETING[..24].to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &[&[0, 4], &stream[..]].concat()));
        if connection != &[0; 4] {
            bytes.extend(frame(WINDOW_UPDATE, 0, 0, connection));
        }
        bytes
    };
    match greeting {
        Greeting::None => Vec::new(),
        Greeting::Http2 => GREETING.to_vec(),
        // The connection's window has 65,535 already.
        Greeting::WideOpen => windows(b"\x7f\xff\xff\xff", b"\x7f\xff\0\0"),
        Greeting::Shut => windows(&[0; 4], &[0; 4]),
    }
}
