//! HPACK field blocks (RFC 7541), walked without decoding them: far enough to find the value of `:authority` and to
//! change characters in it that no authority may have.
//!
//! gRPC clients derive `:authority` from the target. For a Unix socket grpc-core sends the path percent-encoded, grpc-java
//! and old grpc-go send it raw; h2 refuses both before anybody can see the request. The path means nothing to this
//! server, so `%` becomes `.`, `/` becomes `3` and a space becomes `-`:
//!
//! - Each differs from its replacement by one bit, in plain bytes and in the Huffman code alike, and that bit is decided
//!   by bits before it. So nothing is held back, wherever a read ends.
//! - No length changes: both sides' dynamic tables stay of one size, and an indexed reference later gives the value
//!   that was written here.
//! - Names in the dynamic table are not followed: `:authority` is in the static table, so that no encoder has reason to
//!   refer to it there with another value.
//! - A fixed number of bytes of state, nothing allocated. Values longer than 512 bytes are left alone: the bit-wise walk
//!   is the one expensive step, and a socket's path has 107 bytes, 321 when encoded.

/// `:authority`, as grpc-core sends it.
const PLAIN_NAME: &[u8] = b":authority";
/// `:authority` in the Huffman code.
const HUFFMAN_NAME: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];
/// Its index in the static table (RFC 7541 appendix A).
const AUTHORITY: u8 = 1;
/// The longest value that is rewritten.
const LONGEST_VALUE: u32 = 512;

/// Where in a block the walk stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields {
    at: At,
}

#[derive(Clone, Copy, Debug)]
enum At {
    /// Before a field's first byte.
    Field,
    /// Within an integer that did not fit its prefix (§5.1).
    Integer { of: Integer, value: u32, shift: u32 },
    /// Before the byte with H and a string's length (§5.2).
    Length { of: Text },
    /// Within a name.
    Name { left: u32, expected: Option<&'static [u8]> },
    /// Within a value that nobody changes.
    Value { left: u32 },
    /// Within a plain `:authority`.
    PlainAuthority { left: u32 },
    /// Within a `:authority` in the Huffman code.
    HuffmanAuthority { left: u32, code: Huffman },
    /// The block is not HPACK, and h2 will say so. Nothing is changed any more.
    Lost,
}

/// What an integer is.
#[derive(Clone, Copy, Debug)]
enum Integer {
    /// An indexed field, or a table size: its value does not matter.
    Skipped,
    /// The index of a literal's name; too large to be that of `:authority`.
    NameIndex,
    /// A string's length.
    Length { of: Text, huffman: Coding },
}

/// What a string is.
#[derive(Clone, Copy, Debug)]
enum Text {
    Name,
    Value,
    Authority,
}

#[derive(Clone, Copy, Debug)]
enum Coding {
    Plain,
    Huffman,
}

impl Fields {
    pub(super) const fn new() -> Self {
        Self { at: At::Field }
    }

    /// Gives up on this connection's field blocks: what came was not a block.
    pub(super) const fn lose(&mut self) {
        self.at = At::Lost;
    }

    /// The block ends here. One that ends within a field is an error of the connection's (RFC 9113 §4.3).
    pub(super) const fn end(&mut self) {
        if !matches!(self.at, At::Field) {
            self.at = At::Lost;
        }
    }

    /// Walks the next bytes of the block, and rewrites them in place. How many fields began in them.
    pub(super) fn walk(&mut self, mut bytes: &mut [u8]) -> u32 {
        let mut begun = 0;
        while let Some((first, _)) = bytes.split_first_mut() {
            let byte = *first;
            let used = match &mut self.at {
                At::Lost => return begun,
                At::Field => {
                    begun += 1;
                    self.at = field(byte);
                    1
                }
                At::Integer { of, value, shift } => {
                    *value += u32::from(byte & 0x7f) << *shift;
                    *shift += 7;
                    if byte & 0x80 == 0 {
                        self.at = after_integer(*of, *value);
                    } else if *shift == 28 {
                        // h2's own limit: five bytes with the prefix.
                        self.at = At::Lost;
                    }
                    1
                }
                At::Length { of } => {
                    let huffman = if byte & 0x80 == 0 { Coding::Plain } else { Coding::Huffman };
                    self.at = integer(byte, 0x7f, Integer::Length { of: *of, huffman });
                    1
                }
                At::Name { left, expected } => {
                    let used = bytes.len().min(*left as usize);
                    *expected = expected.and_then(|expected| expected.strip_prefix(&bytes[..used]));
                    *left -= used as u32;
                    if *left == 0 {
                        let of = if expected.is_some() { Text::Authority } else { Text::Value };
                        self.at = At::Length { of };
                    }
                    used
                }
                At::Value { left } => {
                    let used = bytes.len().min(*left as usize);
                    *left -= used as u32;
                    if *left == 0 {
                        self.at = At::Field;
                    }
                    used
                }
                At::PlainAuthority { left } => {
                    *first = plain(byte);
                    *left -= 1;
                    if *left == 0 {
                        self.at = At::Field;
                    }
                    1
                }
                At::HuffmanAuthority { left, code } => {
                    *first = code.rewrite(byte);
                    *left -= 1;
                    if *left == 0 {
                        self.at = At::Field;
                    }
                    1
                }
            };
            bytes = &mut bytes[used..];
        }
        begun
    }
}

/// A field's first byte (§6).
const fn field(byte: u8) -> At {
    let mask = match byte {
        0x80.. => return integer(byte, 0x7f, Integer::Skipped),
        0x40..0x80 => 0x3f,
        0x20..0x40 => return integer(byte, 0x1f, Integer::Skipped),
        0x00..0x20 => 0x0f,
    };
    match byte & mask {
        0 => At::Length { of: Text::Name },
        AUTHORITY => At::Length { of: Text::Authority },
        _ => integer(byte, mask, Integer::NameIndex),
    }
}

/// The first byte of an integer whose prefix is `mask`.
const fn integer(byte: u8, mask: u8, of: Integer) -> At {
    let value = (byte & mask) as u32;
    if byte & mask == mask { At::Integer { of, value, shift: 0 } } else { after_integer(of, value) }
}

const fn after_integer(of: Integer, value: u32) -> At {
    match of {
        Integer::Skipped => At::Field,
        Integer::NameIndex => At::Length { of: Text::Value },
        Integer::Length { of: Text::Name, huffman } => {
            let expected = match huffman {
                Coding::Plain => PLAIN_NAME,
                Coding::Huffman => HUFFMAN_NAME,
            };
            match value {
                0 => At::Length { of: Text::Value },
                left if left as usize == expected.len() => At::Name { left, expected: Some(expected) },
                left => At::Name { left, expected: None },
            }
        }
        Integer::Length { of: Text::Value | Text::Authority, .. } if value == 0 => At::Field,
        Integer::Length { of: Text::Authority, huffman } if value <= LONGEST_VALUE => match huffman {
            Coding::Plain => At::PlainAuthority { left: value },
            Coding::Huffman => At::HuffmanAuthority { left: value, code: Huffman::new() },
        },
        Integer::Length { of: Text::Value | Text::Authority, .. } => At::Value { left: value },
    }
}

/// The same map as in the Huffman code, so that a value looks alike however it was sent.
const fn plain(byte: u8) -> u8 {
    match byte {
        b'%' => b'.',
        b' ' => b'-',
        b'/' => b'3',
        other => other,
    }
}

/// How many codes of each length there are (RFC 7541 appendix B). The code is canonical: that is all it takes to see
/// where one ends.
const CODES: [u32; 31] =
    [0, 0, 0, 0, 0, 10, 26, 32, 6, 0, 5, 3, 2, 6, 2, 3, 0, 0, 0, 3, 8, 13, 26, 29, 12, 4, 15, 19, 29, 0, 4];

/// Where in a string in the Huffman code the walk stands.
#[derive(Clone, Copy, Debug)]
struct Huffman {
    /// The bits of the code at hand.
    code: u32,
    /// How many.
    length: usize,
    /// The first code of that length.
    first: u32,
}

impl Huffman {
    const fn new() -> Self {
        Self { code: 0, length: 0, first: 0 }
    }

    /// `%` 010101 becomes `.` 010111, and space 010100 `-` 010110: after 0101 the fifth bit is set. `/` 011000 becomes
    /// `3` 011001: after 01100 the sixth. No other code of 6 bits or more starts like that but the replacements
    /// themselves.
    const fn rewrite(&mut self, byte: u8) -> u8 {
        let mut written = 0;
        let mut shift = 8;
        while shift > 0 {
            shift -= 1;
            let bit = match (self.length, self.code) {
                (4, 0b0101) | (5, 0b0_1100) => 1,
                _ => (byte >> shift) & 1,
            };
            written = written << 1 | bit;
            self.push(bit);
        }
        written
    }

    const fn push(&mut self, bit: u8) {
        self.code = self.code << 1 | bit as u32;
        self.length += 1;
        let count = CODES[self.length];
        // After 30 bits without a code the string is none; h2 will say so, and what is rewritten does not matter.
        if self.code - self.first < count || self.length == CODES.len() - 1 {
            *self = Self::new();
        } else {
            self.first = (self.first + count) << 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use fluke_hpack::Decoder;

    use super::*;

    fn rewritten(block: &[u8]) -> Vec<u8> {
        let mut whole = block.to_vec();
        let mut fields = Fields::new();
        fields.walk(&mut whole);
        for split in 0..=block.len() {
            let mut parts = block.to_vec();
            let mut fields = Fields::new();
            let (head, tail) = parts.split_at_mut(split);
            fields.walk(head);
            fields.walk(tail);
            assert_eq!(parts, whole, "split at {split}");
        }
        whole
    }

    fn authority(block: &[u8]) -> Vec<u8> {
        let fields = Decoder::new().decode(block).expect("HPACK");
        fields.into_iter().find(|(name, _)| name == b":authority").expect("an authority").1
    }

    #[test]
    fn the_table_of_lengths_is_the_whole_code() {
        let kraft: u64 = (0..CODES.len()).map(|length| u64::from(CODES[length]) << (30 - length)).sum();
        assert_eq!(kraft, 1 << 30);
        assert_eq!(CODES.iter().sum::<u32>(), 257);
    }

    #[test]
    fn grpc_core_sends_the_name_as_a_literal_and_the_path_percent_encoded() {
        let block = b"\x86\x83\x40\x0a:authority\x0ctmp%2Fx.sock";
        assert_eq!(rewritten(block), b"\x86\x83\x40\x0a:authority\x0ctmp.2Fx.sock");
        assert_eq!(authority(&rewritten(block)), b"tmp.2Fx.sock");
    }

    #[test]
    fn grpc_java_sends_the_path_as_it_is() {
        assert_eq!(rewritten(b"\x41\x0b/run/x.sock"), b"\x41\x0b3run3x.sock");
    }

    #[test]
    fn what_is_fine_stays_as_it_is() {
        let blocks: &[&[u8]] = &[
            // localhost, static index, Huffman: Go, Node.
            &[0x41, 0x86, 0xa0, 0xe4, 0x1d, 0x13, 0x9d, 0x09],
            // localhost, plain: curl.
            b"\x41\x09localhost",
            b"\x41\x0f127.0.0.1:50051",
            // An empty one, and an indexed one.
            b"\x41\x00\x84",
            b"\x81\xbe",
            // :path is not our business.
            b"\x44\x0e/bloom/%2F/ x%",
            b"\x04\x0e/bloom/%2F/ x%",
            // Nor are names that only look alike, nor a large index whose low bits are 1.
            b"\x40\x0a:authoritz\x03a%b",
            b"\x40\x09:authorit\x03a%b",
            b"\x40\x0b:authority2\x03a%b",
            b"\x40\x00\x03a%b",
            b"\x7f\x01\x03a%b",
            b"\x0f\x01\x03a%b",
            b"\x1f\x82\x01\x03a%b",
        ];
        for block in blocks {
            assert_eq!(rewritten(block), *block, "{block:02x?}");
        }
    }

    #[test]
    fn every_kind_of_literal_is_rewritten() {
        for first in [0x41_u8, 0x01, 0x11] {
            let mut block = vec![first];
            block.extend_from_slice(b"\x05a%2/ ");
            assert_eq!(rewritten(&block)[2..], *b"a.23-", "{first:02x}");
        }
        for first in [0x40_u8, 0x00, 0x10] {
            let mut block = vec![first, 0x88];
            block.extend_from_slice(HUFFMAN_NAME);
            block.extend_from_slice(b"\x05a%2/ ");
            assert_eq!(rewritten(&block)[11..], *b"a.23-", "{first:02x}");
        }
    }

    #[test]
    fn table_sizes_and_large_indices_are_stepped_over() {
        let block = b"\x3f\xe1\x1f\x20\xff\x80\x01\x41\x03a%b";
        assert_eq!(rewritten(block), b"\x3f\xe1\x1f\x20\xff\x80\x01\x41\x03a.b");
    }

    #[test]
    fn a_value_longer_than_512_bytes_is_left_alone() {
        for (length, prefix, changed) in
            [(512_usize, [0x7f, 0x81, 0x03], true), (513, [0x7f, 0x82, 0x03], false)]
        {
            let mut block = vec![0x41];
            block.extend_from_slice(&prefix);
            block.extend(std::iter::repeat_n(b'%', length));
            block.extend_from_slice(b"\x01\x01%");
            let after = rewritten(&block);
            assert_eq!(after[4..4 + length].contains(&b'.'), changed, "{length}");
            assert_eq!(after.last(), Some(&b'.'), "the walk goes on behind it");
        }
    }

    #[test]
    fn what_is_not_hpack_changes_nothing_more() {
        assert_eq!(rewritten(b"\xff\xff\xff\xff\xff\x01\x41\x01%"), b"\xff\xff\xff\xff\xff\x01\x41\x01%");
        let mut fields = Fields::new();
        fields.walk(&mut b"\x41\x05a".to_vec());
        fields.end();
        let mut next = b"\x41\x01%".to_vec();
        fields.walk(&mut next);
        assert_eq!(next, b"\x41\x01%");
    }
}
