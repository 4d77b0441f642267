//! The adapter against an independent HPACK decoder, over random connections in random pieces.

use std::{collections::BTreeMap, time::Duration};

use fluke_hpack::{Decoder, huffman::HuffmanDecoder};
use proptest::{collection::vec, prelude::*, sample::Index};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{frames::Seen, *};
use crate::clock::{Now, Timestamp};
use crate::server::turns::Turns;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The Huffman code, asked out of the independent decoder: all codes of each length, in canonical order.
struct HuffmanEncoder(BTreeMap<u8, (u32, u32)>);

impl HuffmanEncoder {
    fn new() -> Self {
        let counts =
            [10, 26, 32, 6, 0, 5, 3, 2, 6, 2, 3, 0, 0, 0, 3, 8, 13, 26, 29, 12, 4, 15, 19, 29, 0, 4_u32];
        let mut decoder = HuffmanDecoder::new();
        let mut codes = BTreeMap::new();
        let mut code = 0_u32;
        for (length, count) in (5_u32..).zip(counts) {
            for _ in 0..count {
                let bytes = (length.div_ceil(8)) * 8;
                let padded = (u64::from(code) << (bytes - length)) | ((1 << (bytes - length)) - 1);
                let padded = padded.to_be_bytes();
                // The last code is EOS, which no string holds.
                if let Ok(symbols) = decoder.decode(&padded[8 - bytes as usize / 8..]) {
                    assert_eq!(symbols.len(), 1);
                    codes.insert(symbols[0], (code, length));
                }
                code += 1;
            }
            code <<= 1;
        }
        assert_eq!(codes.len(), 256);
        Self(codes)
    }

    fn encode(&self, text: &[u8]) -> Vec<u8> {
        let mut bits: Vec<u8> = Vec::new();
        for symbol in text {
            let (code, length) = self.0[symbol];
            bits.extend((0..length).rev().map(|n| (code >> n & 1) as u8));
        }
        while !bits.len().is_multiple_of(8) {
            bits.push(1);
        }
        bits.chunks(8).map(|byte| byte.iter().fold(0, |byte, bit| byte << 1 | bit)).collect()
    }
}

fn integer(first: u8, prefix: u8, value: usize) -> Vec<u8> {
    let mask = (1_usize << prefix) - 1;
    if value < mask {
        return vec![first | value as u8];
    }
    let mut bytes = vec![first | mask as u8];
    let mut rest = value - mask;
    while rest >= 128 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Plain,
    Huffman,
}

fn string(huffman: &HuffmanEncoder, form: Form, text: &[u8]) -> Vec<u8> {
    let (flag, bytes) = match form {
        Form::Plain => (0, text.to_vec()),
        Form::Huffman => (0x80, huffman.encode(text)),
    };
    [integer(flag, 7, bytes.len()), bytes].concat()
}

/// How a field's name is written.
#[derive(Clone, Debug)]
enum Name {
    /// An index of the static table.
    Static(usize),
    Text(Form, Vec<u8>),
}

#[derive(Clone, Debug)]
enum Field {
    /// Index in the static table with a value.
    Indexed(usize),
    /// Something from the dynamic table, if there is anything.
    Dynamic(Index),
    Literal {
        first: (u8, u8),
        name: Name,
        form: Form,
        value: Vec<u8>,
    },
    TableSize(usize),
}

#[derive(Clone, Debug)]
enum Frame {
    Headers { fields: Vec<Field>, cuts: Vec<Index>, padding: Option<u8>, priority: bool },
    Other { kind: u8, flags: u8, payload: Vec<u8> },
}

fn form() -> impl Strategy<Value = Form> {
    prop_oneof![Just(Form::Plain), Just(Form::Huffman)]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(b"localhost".to_vec()),
        Just(b"tmp%2Fx.sock".to_vec()),
        Just(b"/run/bloom-agent/agent.sock".to_vec()),
        vec(prop_oneof![Just(b'%'), Just(b'/'), Just(b' '), Just(b'.'), b'a'..=b'z', any::<u8>()], 0..40),
        vec(any::<u8>(), 0..700),
        vec(Just(b'%'), 100..700),
    ]
}

fn name() -> impl Strategy<Value = Name> {
    let near = prop_oneof![
        4 => Just(b":authority".to_vec()),
        1 => Just(b":authoritz".to_vec()),
        1 => Just(b":authorit".to_vec()),
        1 => Just(b":authority0".to_vec()),
        1 => Just(b":Authority".to_vec()),
        1 => Just(b"x-authority".to_vec()),
        1 => Just(b"".to_vec()),
        1 => vec(any::<u8>(), 0..200),
    ];
    prop_oneof![
        2 => Just(Name::Static(1)),
        2 => (2_usize..=61).prop_map(Name::Static),
        4 => (form(), near).prop_map(|(form, text)| Name::Text(form, text)),
    ]
}

fn field() -> impl Strategy<Value = Field> {
    let first = prop_oneof![Just((0x40, 6)), Just((0x00, 4)), Just((0x10, 4))];
    prop_oneof![
        2 => (1_usize..=61).prop_map(Field::Indexed),
        2 => any::<Index>().prop_map(Field::Dynamic),
        6 => (first, name(), form(), value())
            .prop_map(|(first, name, form, value)| Field::Literal { first, name, form, value }),
        1 => prop_oneof![Just(0_usize), 0_usize..=4096].prop_map(Field::TableSize),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    let headers = (vec(field(), 0..8), vec(any::<Index>(), 0..4), any::<Option<u8>>(), any::<bool>())
        .prop_map(|(fields, cuts, padding, priority)| Frame::Headers { fields, cuts, padding, priority });
    let other = (any::<u8>(), any::<u8>(), vec(any::<u8>(), 0..100)).prop_map(|(kind, flags, payload)| {
        // Not HEADERS or CONTINUATION.
        let kind = if kind == 1 || kind == 9 { 0 } else { kind % 12 };
        let kind = if kind == 1 || kind == 9 { 8 } else { kind };
        Frame::Other { kind, flags, payload }
    });
    prop_oneof![3 => headers, 2 => other]
}

type Pair = (Vec<u8>, Vec<u8>);

/// The dynamic table, as RFC 7541 §4 writes it.
struct Table {
    entries: Vec<Pair>,
    size: usize,
}

impl Table {
    fn add(&mut self, name: Vec<u8>, value: Vec<u8>) {
        self.entries.insert(0, (name, value));
        self.resize(self.size);
    }

    fn resize(&mut self, size: usize) {
        self.size = size;
        while self.entries.iter().map(|(name, value)| name.len() + value.len() + 32).sum::<usize>() > size {
            self.entries.pop();
        }
    }
}

struct Made {
    /// The connection's bytes.
    bytes: Vec<u8>,
    /// Which of them are field blocks: start and end, in order, by HEADERS frame.
    blocks: Vec<Vec<(usize, usize)>>,
    /// The fields of each, as they should arrive.
    wanted: Vec<Vec<Pair>>,
    seen: Seen,
}

fn head(kind: u8, flags: u8, length: usize) -> Vec<u8> {
    let [_, high, middle, low] = u32::try_from(length).expect("small").to_be_bytes();
    vec![high, middle, low, kind, flags, 0, 0, 0, 1]
}

fn make(huffman: &HuffmanEncoder, frames: &[Frame]) -> Made {
    let mut made =
        Made { bytes: PREFACE.to_vec(), blocks: Vec::new(), wanted: Vec::new(), seen: Seen::default() };
    let mut table = Table { entries: Vec::new(), size: 4096 };
    for frame in frames {
        match frame {
            Frame::Other { kind, flags, payload } => {
                made.seen.cheap += frames::price(*kind, u32::try_from(payload.len()).expect("small"));
                made.seen.settings += u32::from(*kind == 4);
                made.bytes.extend(head(*kind, *flags, payload.len()));
                made.bytes.extend(payload);
            }
            Frame::Headers { fields, cuts, padding, priority } => {
                let mut block = Vec::new();
                let mut wanted_fields = Vec::new();
                // Table sizes stand at a block's start only (RFC 7541 §4.2).
                for field in fields {
                    if let Field::TableSize(size) = field {
                        table.resize(*size);
                        block.extend(integer(0x20, 5, *size));
                        made.seen.fields += 1;
                    }
                }
                for field in fields {
                    match field {
                        Field::TableSize(_) => {}
                        Field::Indexed(index) => {
                            block.extend(integer(0x80, 7, *index));
                            wanted_fields.push(static_entry(*index));
                        }
                        Field::Dynamic(index) => {
                            if !table.entries.is_empty() {
                                let index = index.index(table.entries.len());
                                block.extend(integer(0x80, 7, 62 + index));
                                wanted_fields.push(table.entries[index].clone());
                            }
                        }
                        Field::Literal { first: (first, prefix), name, form, value } => {
                            let name = match name {
                                Name::Static(index) => {
                                    block.extend(integer(*first, *prefix, *index));
                                    static_entry(*index).0
                                }
                                Name::Text(form, text) => {
                                    block.push(*first);
                                    block.extend(string(huffman, *form, text));
                                    text.clone()
                                }
                            };
                            block.extend(string(huffman, *form, value));
                            let on_the_wire = match form {
                                Form::Plain => value.len(),
                                Form::Huffman => huffman.encode(value).len(),
                            };
                            let value = match &name[..] {
                                b":authority" if on_the_wire <= 512 => rewritten(value),
                                _ => value.clone(),
                            };
                            wanted_fields.push((name.clone(), value.clone()));
                            if *first == 0x40 {
                                table.add(name, value);
                            }
                        }
                    }
                }
                // A block of table sizes alone is an error to the decoder.
                block.push(0x82);
                wanted_fields.push(static_entry(2));
                made.seen.fields += u32::try_from(wanted_fields.len()).expect("few");
                made.seen.block += u32::try_from(block.len()).expect("small");
                made.wanted.push(wanted_fields);
                let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(block.len() + 1)).collect();
                cuts.sort_unstable();
                cuts.push(block.len());
                let mut spans = Vec::new();
                let mut from = 0;
                for (n, to) in cuts.iter().enumerate() {
                    let end = if n + 1 == cuts.len() { 0x4 } else { 0 };
                    let part = &block[from..*to];
                    let start;
                    if n == 0 {
                        made.seen.heads += 1;
                        let flags =
                            end | if padding.is_some() { 0x8 } else { 0 } | if *priority { 0x20 } else { 0 };
                        let around = padding.map_or(0, |padding| 1 + usize::from(padding))
                            + if *priority { 5 } else { 0 };
                        made.seen.cheap +=
                            frames::price(1, u32::try_from(part.len() + around).expect("small"));
                        made.bytes.extend(head(1, flags, part.len() + around));
                        made.bytes.extend(*padding);
                        // Priority and padding look like an `:authority` to be rewritten, and are none.
                        made.bytes.extend(if *priority { &b"\x41\x03a%b"[..] } else { b"" });
                        start = made.bytes.len();
                        made.bytes.extend(part);
                        made.bytes.extend(b"\x41\x7f%/ ".iter().cycle().take(padding.map_or(0, usize::from)));
                    } else {
                        made.seen.cheap += frames::price(9, 0);
                        made.bytes.extend(head(9, end, part.len()));
                        start = made.bytes.len();
                        made.bytes.extend(part);
                    }
                    spans.push((start, start + part.len()));
                    from = *to;
                }
                made.blocks.push(spans);
            }
        }
    }
    made
}

fn static_entry(index: usize) -> Pair {
    Decoder::new().decode(&integer(0x80, 7, index)).expect("a static entry").remove(0)
}

fn decode(bytes: &[u8], blocks: &[Vec<(usize, usize)>]) -> Vec<Vec<Pair>> {
    let mut decoder = Decoder::new();
    blocks
        .iter()
        .map(|spans| {
            let block: Vec<u8> = spans.iter().flat_map(|(from, to)| bytes[*from..*to].to_vec()).collect();
            decoder.decode(&block).expect("the block is HPACK")
        })
        .collect()
}

fn walk_in_pieces(bytes: &mut [u8], pieces: &[usize]) -> Seen {
    let mut frames = Frames::new();
    let mut seen = Seen::default();
    let mut rest = bytes;
    let mut pieces = pieces.iter().cycle();
    while !rest.is_empty() {
        let (piece, tail) = rest.split_at_mut(rest.len().min(*pieces.next().expect("endless")));
        let more = frames.walk(piece);
        seen.heads += more.heads;
        seen.block += more.block;
        seen.fields += more.fields;
        seen.cheap += more.cheap;
        seen.settings += more.settings;
        rest = tail;
    }
    seen
}

fn rewritten(value: &[u8]) -> Vec<u8> {
    let replaced = |byte: &u8| match byte {
        b'%' => b'.',
        b'/' => b'3',
        b' ' => b'-',
        other => *other,
    };
    value.iter().map(replaced).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_but_the_authority_changes_however_the_bytes_arrive(
        frames in vec(frame(), 0..10),
        pieces in prop_oneof![vec(1_usize..4, 1..5), vec(1_usize..300, 1..5), Just(vec![100_000])],
    ) {
        thread_local!(static HUFFMAN: HuffmanEncoder = HuffmanEncoder::new());
        let made = HUFFMAN.with(|huffman| make(huffman, &frames));
        let mut after = made.bytes.clone();
        let seen = walk_in_pieces(&mut after, &pieces);
        prop_assert_eq!(seen, made.seen);

        // Outside of field blocks no byte is changed.
        let inside = |at: usize| made.blocks.iter().flatten().any(|(from, to)| (*from..*to).contains(&at));
        for (at, (before, after)) in made.bytes.iter().zip(&after).enumerate() {
            prop_assert!(before == after || inside(at), "byte {} changed", at);
        }

        prop_assert_eq!(decode(&after, &made.blocks), made.wanted);
        let sent = decode(&made.bytes, &made.blocks);
        if sent.iter().flatten().all(|(name, _)| name != b":authority") {
            prop_assert_eq!(&made.bytes, &after);
        }
    }

    #[test]
    fn bytes_that_are_not_http2_are_never_touched(
        mut bytes in vec(any::<u8>(), 0..300),
        keep in 0_usize..PREFACE.len(),
        pieces in vec(1_usize..50, 1..5),
    ) {
        // A beginning of the preface, and then something else.
        let mut foreign = PREFACE[..keep].to_vec();
        bytes.insert(0, PREFACE[keep] ^ 1);
        foreign.append(&mut bytes);
        foreign.extend_from_slice(b"\0\0\x08\x01\x04\0\0\0\x01\x41\x06a%2Fb ");
        let mut after = foreign.clone();
        prop_assert_eq!(walk_in_pieces(&mut after, &pieces), Seen::default());
        prop_assert_eq!(after, foreign);
    }

    #[test]
    fn no_bytes_after_the_preface_make_it_fail(
        bytes in vec(any::<u8>(), 0..2_000),
        pieces in vec(1_usize..300, 1..5),
    ) {
        let mut whole = PREFACE.to_vec();
        whole.extend(bytes);
        let mut other = whole.clone();
        prop_assert_eq!(walk_in_pieces(&mut whole, &pieces), walk_in_pieces(&mut other, &[1]));
        prop_assert_eq!(whole, other);
    }
}

#[test]
fn the_huffman_code_of_every_byte_is_stepped_over_and_three_are_replaced() {
    let huffman = HuffmanEncoder::new();
    for byte in 0..=u8::MAX {
        for text in [vec![byte], vec![byte, b'%'], vec![b'/', byte], vec![byte, byte, b'a', byte]] {
            let block = [vec![0x41], string(&huffman, Form::Huffman, &text)].concat();
            let mut after = block.clone();
            let mut fields = fields::Fields::new();
            fields.walk(&mut after);
            let decoded = Decoder::new().decode(&after).expect("HPACK");
            assert_eq!(decoded[0].1, rewritten(&text), "{text:?}");
            assert_eq!(block.len(), after.len());
        }
    }
}

#[test]
fn other_protocols_are_left_alone() {
    let foreign: &[&[u8]] = &[
        b"GET /a%2Fb HTTP/1.1\r\nHost: a%2Fb\r\n\r\n",
        b"PRI * HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03%/ %/ ",
        b"\0\0\0\0%%%%////    ",
    ];
    for bytes in foreign {
        let mut after = bytes.to_vec();
        assert_eq!(walk_in_pieces(&mut after, &[3]), Seen::default());
        assert_eq!(after, *bytes);
    }
}

#[test]
fn broken_frames_are_still_counted() {
    let broken: &[(&str, u32, &[u8])] = &[
        ("more padding than frame", 2, b"\0\0\x03\x01\x0c\0\0\0\x01\x09\x41\x00"),
        ("no room for the pad length", 2, b"\0\0\0\x01\x0c\0\0\0\x01"),
        ("no room for the priority", 2, b"\0\0\x04\x01\x24\0\0\0\x01\0\0\0\0"),
        ("CONTINUATION without HEADERS", 1, b"\0\0\x05\x09\x04\0\0\0\x01\x41\x03a%b"),
        ("a block that never ends", 2, b"\0\0\x01\x01\0\0\0\0\x01\x82"),
        ("a block that ends within a field", 2, b"\0\0\x02\x01\x04\0\0\0\x01\x41\x05"),
    ];
    for (what, heads, bytes) in broken {
        let mut bytes = [PREFACE, bytes, b"\0\0\x08\x06\0\0\0\0\0%/ %/ %/"].concat();
        bytes.extend_from_slice(b"\0\0\x05\x01\x04\0\0\0\x03\x41\x03a%b");
        let before = bytes.clone();
        let seen = walk_in_pieces(&mut bytes, &[100_000]);
        assert_eq!((seen.heads, seen.cheap), (*heads, 3 - heads), "{what}");
        assert_eq!(bytes, before, "{what}: nothing is rewritten on a broken connection");
    }
}

/// A clock that stands still.
struct Still;

impl Clock for Still {
    fn now(&self) -> Now {
        Now { boot: Timestamp::from_boot(Duration::from_secs(1)), ..Now::default() }
    }
}

impl Readable for tokio::io::DuplexStream {
    fn poll_readable(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn ignore(&mut self) {}
}

/// A place that nobody else wants.
fn seat() -> Seat {
    Seat::new(1, Turns::new(Arc::new(Still)))
}

/// Reads as a connection's task does: each poll of it may have a turn.
async fn read_exact<T>(wire: &mut Wire<T>, traffic: &Traffic, bytes: &mut [u8]) -> io::Result<usize>
where
    T: Readable + AsyncWrite,
{
    let mut read = std::pin::pin!(wire.read_exact(bytes));
    std::future::poll_fn(|cx| {
        traffic.begin_turn();
        read.as_mut().poll(cx)
    })
    .await
}

#[tokio::test]
async fn the_wire_says_when_the_client_has_greeted_and_when_it_floods() {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let outbox = Outbox::new(server);
    let (mut wire, traffic) = (Wire::new(outbox.clone(), Arc::new(Still), seat()), outbox.traffic());
    let mut buffer = [0; 64];

    client.write_all(PREFACE).await.expect("writes");
    read_exact(&mut wire, traffic, &mut buffer[..24]).await.expect("reads");
    assert!(!traffic.greeted());
    client.write_all(b"\0\0\0\x04\0\0\0\0\0").await.expect("writes");
    read_exact(&mut wire, traffic, &mut buffer[..9]).await.expect("reads");
    assert!(traffic.greeted());

    let ping = b"\0\0\x08\x06\0\0\0\0\0________";
    client.write_all(&ping.repeat(1_999)).await.expect("writes");
    let mut flood = vec![0; 17 * 1_999];
    read_exact(&mut wire, traffic, &mut flood).await.expect("the budget is 2,000 with the SETTINGS");
    assert!(!traffic.flooded());
    client.write_all(ping).await.expect("writes");
    let error = read_exact(&mut wire, traffic, &mut buffer[..17]).await.expect_err("cut");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    assert!(traffic.flooded());
}

#[tokio::test]
async fn what_the_server_writes_pays_for_frames_and_reads_keep_what_was_there() {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let outbox = Outbox::new(server);
    let (mut wire, traffic) = (Wire::new(outbox.clone(), Arc::new(Still), seat()), outbox.traffic());
    wire.write_all(&[0; 256 * 500]).await.expect("writes");
    client.write_all(PREFACE).await.expect("writes");
    client.write_all(&b"\0\0\x08\x06\0\0\0\0\0________".repeat(2_500)).await.expect("writes");
    let mut bytes = vec![0; 24 + 17 * 2_500];
    read_exact(&mut wire, traffic, &mut bytes).await.expect("500 more than the budget");
    assert!(!traffic.flooded());
}

#[tokio::test]
async fn a_turn_ends_after_so_many_bytes_or_calls_and_the_next_one_goes_on() {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let outbox = Outbox::new(server);
    let (mut wire, traffic) = (Wire::new(outbox.clone(), Arc::new(Still), seat()), outbox.traffic());
    let calls = b"\0\0\x01\x01\x05\0\0\0\x01\x82".repeat(1_000);
    client.write_all(PREFACE).await.expect("writes");
    client.write_all(&calls).await.expect("writes");
    let (woken, mut turns, mut read) = (std::task::Waker::noop(), 0, 0);
    let mut cx = Context::from_waker(woken);
    let whole = PREFACE.len() + calls.len();
    while read < whole {
        traffic.begin_turn();
        turns += 1;
        assert!(turns < 100, "{read} of {whole}");
        loop {
            let mut bytes = [0; 100];
            let mut buffer = ReadBuf::new(&mut bytes);
            if Pin::new(&mut wire).poll_read(&mut cx, &mut buffer).is_pending() {
                break;
            }
            read += buffer.filled().len();
        }
    }
    // 16 calls a turn, ten in each read; one turn in seven, which are 128 calls and their reads, is spent on waiting
    // for the others.
    assert_eq!((turns, traffic.heads()), (52 + 52 / 7, 1_000));
}

/// A stream that says itself whether there is something to read.
struct Told {
    stream: tokio::io::DuplexStream,
    readable: bool,
}

impl Readable for Told {
    fn poll_readable(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.readable { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn ignore(&mut self) {}
}

impl AsyncRead for Told {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Told {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn who_leads_and_has_nothing_to_read_any_more_lets_the_others_go_on() {
    let turns = Turns::new(Arc::new(Still));
    let connection = |id| {
        let (client, stream) = tokio::io::duplex(1024);
        let outbox = Outbox::new(Told { stream, readable: true });
        let wire = Wire::new(outbox.clone(), Arc::new(Still), Seat::new(id, Arc::clone(&turns)));
        (client, outbox, wire)
    };
    let (_first, first, mut leads) = connection(1);
    let (mut client, second, mut waits) = connection(2);
    client.write_all(PREFACE).await.expect("writes");
    let read = |wire: &mut Wire<Told>, outbox: &Outbox<Told>| {
        let mut bytes = [0; 64];
        outbox.traffic().begin_turn();
        Pin::new(wire)
            .poll_read(&mut Context::from_waker(std::task::Waker::noop()), &mut ReadBuf::new(&mut bytes))
    };
    assert!(read(&mut leads, &first).is_pending(), "it leads");
    assert!(read(&mut waits, &second).is_pending(), "it waits");
    first.lock().stream.readable = false;
    assert!(read(&mut leads, &first).is_pending(), "there is nothing to read");
    assert!(read(&mut waits, &second).is_pending(), "now this one leads");
    assert!(read(&mut waits, &second).is_ready());
}
