//! Properties of the bytes on the socket's wire: what may change on their way to hyper, and what may not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a property panics where it does not hold"
)]

use std::time::Duration;

use fluke_hpack::Decoder;
use http::{HeaderMap, HeaderValue};

use super::frames::{Frames, Seen, price};
use crate::server::deadline_of;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;

/// The first byte says how the rest becomes a connection (low bits) and how long its reads are (high bits).
pub(crate) fn authority(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let bytes = match first & 3 {
        0 => rest.to_vec(),
        1 => [PREFACE, rest].concat(),
        2 => [PREFACE, &framed(rest)].concat(),
        _ => [PREFACE, &blocks(rest)].concat(),
    };
    let mut after = bytes.clone();
    let seen = walk(&mut after, usize::from(first >> 2) + 1);
    for piece in [1, usize::MAX] {
        let mut other = bytes.clone();
        assert_eq!(walk(&mut other, piece), seen, "what is counted hangs on the reads");
        assert_eq!(other, after, "what is written hangs on the reads");
    }
    let Some(sent) = bytes.strip_prefix(PREFACE) else {
        assert_eq!(bytes, after, "what is not HTTP/2 is nobody's business here");
        assert_eq!(seen, Seen::default());
        return;
    };
    let (sent, arrived) = (frames(sent), frames(&after[PREFACE.len()..]));
    let count = |kinds: fn(&Frame<'_>) -> bool| {
        u32::try_from(sent.iter().filter(|frame| kinds(frame)).count()).unwrap()
    };
    assert_eq!(seen.heads, count(|frame| frame.kind == HEADERS));
    assert_eq!(seen.settings, count(|frame| frame.kind == SETTINGS));
    let prices = sent.iter().map(|frame| price(frame.kind, u32::try_from(frame.length).unwrap()));
    assert_eq!(seen.cheap, prices.sum::<u32>());
    assert_eq!(sent.len(), arrived.len(), "a frame's length changed");
    for (one, other) in sent.iter().zip(&arrived) {
        assert_eq!(one.head, other.head, "a frame's head changed");
        assert_eq!(one.payload.len(), other.payload.len());
        if ![HEADERS, CONTINUATION].contains(&one.kind) {
            assert_eq!(one.payload, other.payload, "a frame without fields changed");
        }
        if let (Some(one), Some(other)) = (one.around(), other.around()) {
            assert_eq!(one, other, "padding or a priority changed");
        }
    }
    judge_fields(&sent, &arrived);
}

/// As long as a decoder that knows the dynamic table understands what was sent, it understands what arrives, and only
/// authorities differ.
fn judge_fields(sent: &[Frame<'_>], arrived: &[Frame<'_>]) {
    let (mut before, mut after) = (Decoder::new(), Decoder::new());
    for (one, other) in field_blocks(sent).iter().zip(&field_blocks(arrived)) {
        if structure(one).is_none() {
            return;
        }
        let Ok(one) = before.decode(one) else { return };
        let other = after.decode(other).expect("what was HPACK is HPACK");
        assert_eq!(one.len(), other.len());
        for ((name, value), (new_name, new_value)) in one.iter().zip(&other) {
            assert_eq!(name, new_name, "a name changed");
            let is_authority = name == b":authority";
            assert!(
                value == new_value || is_authority && *new_value == acceptable(value),
                "{value:?} {new_value:?}"
            );
        }
    }
}

fn acceptable(value: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(value).into_owned();
    if text.as_bytes() == value {
        return text.replace('%', ".").replace('/', "3").replace(' ', "-").into_bytes();
    }
    value
        .iter()
        .map(|b| [*b, b'.', b'3', b'-'][b"%/ ".iter().position(|c| c == b).map_or(0, |at| at + 1)])
        .collect()
}

fn walk(bytes: &mut [u8], piece: usize) -> Seen {
    let mut frames = Frames::new();
    let mut seen = Seen::default();
    for part in bytes.chunks_mut(piece.min(bytes.len()).max(1)) {
        let more = frames.walk(part);
        seen.heads += more.heads;
        seen.block += more.block;
        seen.fields += more.fields;
        seen.cheap += more.cheap;
        seen.settings += more.settings;
    }
    seen
}

/// Whether a block ends where its last field does (RFC 7541 §5, §6): the decoder panics where it does not.
fn structure(mut block: &[u8]) -> Option<()> {
    while let [first, ..] = block {
        let (prefix, is_literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let index = integer(&mut block, prefix)?;
        if is_literal && index == 0 {
            string(&mut block)?;
        }
        if is_literal {
            string(&mut block)?;
        }
    }
    Some(())
}

fn integer(block: &mut &[u8], prefix: u8) -> Option<usize> {
    let (first, rest) = block.split_first()?;
    *block = rest;
    let mask = (1_u8 << prefix) - 1;
    let mut value = usize::from(first & mask);
    if first & mask < mask {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let (byte, rest) = block.split_first()?;
        *block = rest;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn string(block: &mut &[u8]) -> Option<()> {
    let length = integer(block, 7)?;
    *block = block.get(length..)?;
    Some(())
}

/// One frame; the last one's payload may be cut off.
struct Frame<'a> {
    head: &'a [u8],
    length: usize,
    kind: u8,
    flags: u8,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The pad length with the priority, and the padding of HEADERS; none if that is more than the frame.
    fn around(&self) -> Option<(&'a [u8], &'a [u8])> {
        let fields = self.fields()?;
        let start = fields.as_ptr() as usize - self.payload.as_ptr() as usize;
        Some((&self.payload[..start], &self.payload[start + fields.len()..]))
    }

    /// Its part of a field block.
    fn fields(&self) -> Option<&'a [u8]> {
        match self.kind {
            CONTINUATION => Some(self.payload),
            HEADERS if self.payload.len() == self.length => {
                let (pad, rest) = match self.flags & 8 {
                    0 => (0, self.payload),
                    _ => (usize::from(*self.payload.first()?), &self.payload[1..]),
                };
                let rest = if self.flags & 0x20 == 0 { rest } else { rest.get(5..)? };
                rest.get(..rest.len().checked_sub(pad)?)
            }
            _ => None,
        }
    }
}

fn frames(mut bytes: &[u8]) -> Vec<Frame<'_>> {
    let mut frames = Vec::new();
    while bytes.len() >= 9 {
        let (head, rest) = bytes.split_at(9);
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (payload, rest) = rest.split_at(length.min(rest.len()));
        frames.push(Frame { head, length, kind: head[3], flags: head[4], payload });
        bytes = rest;
    }
    frames
}

/// Whole blocks, up to the first frame that breaks one (RFC 9113 §6.10).
fn field_blocks(frames: &[Frame<'_>]) -> Vec<Vec<u8>> {
    let mut blocks = Vec::new();
    let mut open: Option<Vec<u8>> = None;
    for frame in frames {
        if (frame.kind == CONTINUATION) != open.is_some() {
            break;
        }
        if ![HEADERS, CONTINUATION].contains(&frame.kind) {
            continue;
        }
        let Some(fields) = frame.fields().filter(|_| frame.payload.len() == frame.length) else { break };
        let mut block = open.take().unwrap_or_default();
        block.extend_from_slice(fields);
        if frame.flags & 4 == 0 { open = Some(block) } else { blocks.push(block) }
    }
    blocks
}

/// Kind, flags, length, payload, and so on.
fn framed(mut data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let [kind, flags, length, rest @ ..] = data {
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        push(&mut out, *kind, *flags, payload);
        data = rest;
    }
    out
}

/// Field blocks parted by 0xff 0xff 0xff, which no block that means something holds; each in HEADERS and CONTINUATION.
fn blocks(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = data;
    while !rest.is_empty() {
        let end = rest.windows(3).position(|three| three == [0xff; 3]).unwrap_or(rest.len());
        let (block, after) = rest.split_at(end);
        let (first, second) = block.split_at(block.len() / 2);
        push(&mut out, HEADERS, 0, first);
        push(&mut out, CONTINUATION, 4, second);
        rest = after.get(3..).unwrap_or_default();
    }
    out
}

fn push(out: &mut Vec<u8>, kind: u8, flags: u8, payload: &[u8]) {
    let [_, high, middle, low] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    out.extend([high, middle, low, kind, flags, 0, 0, 0, 1]);
    out.extend_from_slice(payload);
}

/// The caller's deadline: read exactly, or not at all.
pub(crate) fn grpc_timeout(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let mut headers = HeaderMap::new();
    headers.insert("grpc-timeout", value);
    let found = deadline_of(&headers);
    let units = [
        ("H", 3_600_000_000_000_u64),
        ("M", 60_000_000_000),
        ("S", 1_000_000_000),
        ("m", 1_000_000),
        ("u", 1_000),
        ("n", 1),
    ];
    let wanted = units.into_iter().find_map(|(unit, nanos)| {
        let digits = std::str::from_utf8(data).ok()?.strip_suffix(unit)?;
        let fits = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        Some(Duration::from_nanos(nanos) * fits.then(|| digits.parse::<u32>().ok())??)
    });
    assert_eq!(found, wanted);
}
