//! The frames of one client (RFC 9113 §4, §6), walked as they are read: field blocks go to [`Fields`], and what the
//! meter wants to know is counted. Payloads are stepped over, never kept.
//!
//! Bytes that do not start with the preface are not HTTP/2: they are left alone and not walked, for hyper refuses them.

use super::fields::Fields;

/// RFC 9113 §3.4.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;
const CONTINUATION: u8 = 0x9;

const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// What a stretch of bytes began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// HEADERS frames.
    pub(super) heads: u32,
    /// Bytes of field blocks.
    pub(super) block: u32,
    /// Fields in them: one of a byte can stand for many bytes.
    pub(super) fields: u32,
    /// What the frames cost the meter.
    pub(super) cheap: u32,
    /// SETTINGS frames.
    pub(super) settings: u32,
}

#[derive(Debug)]
pub(super) struct Frames {
    at: At,
    fields: Fields,
    /// A block was begun and has not ended: only CONTINUATION may come.
    block_open: bool,
}

#[derive(Clone, Copy, Debug)]
enum At {
    /// So many bytes of the preface have come.
    Preface(usize),
    /// So many bytes of a frame's head have come.
    Head { bytes: [u8; 9], filled: usize },
    /// Before the pad length of HEADERS.
    PadLength { left: u32, priority: u32, last: Last },
    /// Within the priority of HEADERS.
    Priority { left: u32, priority: u32, padding: u32, last: Last },
    /// Within a part of a field block.
    Block { left: u32, padding: u32, last: Last },
    /// Within bytes that do not matter.
    Skip { left: u32 },
    /// It is not HTTP/2.
    Foreign,
}

/// Whether a frame ends its field block.
#[derive(Clone, Copy, Debug)]
enum Last {
    Yes,
    No,
}

/// What a frame costs the meter. HEADERS are calls, and paid for; but gRPC's own bound for metadata is 8 KiB, half of that
/// is nobody's, and the rest is decoded for nothing. What is neither a call's nor short is read for nothing.
pub(super) const fn price(kind: u8, length: u32) -> u32 {
    match kind {
        HEADERS => length.saturating_sub(4 * 1024) / 256,
        DATA | CONTINUATION => 1,
        _ => 1 + length / 256,
    }
}

const HEAD: At = At::Head { bytes: [0; 9], filled: 0 };

impl Frames {
    pub(super) const fn new() -> Self {
        Self { at: At::Preface(0), fields: Fields::new(), block_open: false }
    }

    /// Walks the next bytes of the connection, and rewrites them in place.
    pub(super) fn walk(&mut self, mut bytes: &mut [u8]) -> Seen {
        let mut seen = Seen::default();
        while !bytes.is_empty() {
            let used = match &mut self.at {
                At::Foreign => return seen,
                At::Preface(come) => {
                    let used = bytes.len().min(PREFACE.len() - *come);
                    if bytes[..used] != PREFACE[*come..*come + used] {
                        self.at = At::Foreign;
                        return seen;
                    }
                    *come += used;
                    if *come == PREFACE.len() {
                        self.at = HEAD;
                    }
                    used
                }
                At::Head { bytes: head, filled } => {
                    let used = bytes.len().min(head.len() - *filled);
                    head[*filled..*filled + used].copy_from_slice(&bytes[..used]);
                    *filled += used;
                    if *filled == head.len() {
                        let head = *head;
                        self.at = self.begin(head, &mut seen);
                        self.settle();
                    }
                    used
                }
                At::PadLength { left, priority, last } => {
                    self.at = At::Priority {
                        left: *left - 1,
                        priority: *priority,
                        padding: u32::from(bytes[0]),
                        last: *last,
                    };
                    self.settle();
                    1
                }
                At::Priority { left, priority, .. } => {
                    let used = bytes.len().min(*priority as usize);
                    *priority -= used as u32;
                    *left -= used as u32;
                    self.settle();
                    used
                }
                At::Block { left, .. } => {
                    let used = bytes.len().min(*left as usize);
                    seen.fields += self.fields.walk(&mut bytes[..used]);
                    seen.block += used as u32;
                    *left -= used as u32;
                    self.settle();
                    used
                }
                At::Skip { left } => {
                    let used = bytes.len().min(*left as usize);
                    *left -= used as u32;
                    self.settle();
                    used
                }
            };
            bytes = &mut bytes[used..];
        }
        seen
    }

    /// A whole head has come.
    fn begin(&mut self, head: [u8; 9], seen: &mut Seen) -> At {
        let [high, middle, low, kind, flags, ..] = head;
        let left = u32::from_be_bytes([0, high, middle, low]);
        seen.cheap += price(kind, left);
        seen.heads += u32::from(kind == HEADERS);
        seen.settings += u32::from(kind == SETTINGS);
        // Anything but CONTINUATION within a block, and CONTINUATION outside of one, is a connection error (§6.10).
        // h2 closes it; until then only the frames are followed.
        if (kind == CONTINUATION) != self.block_open {
            self.fields.lose();
        }
        let last = if flags & END_HEADERS == 0 { Last::No } else { Last::Yes };
        match kind {
            HEADERS => {
                self.block_open = true;
                let priority = if flags & PRIORITY == 0 { 0 } else { 5 };
                let pad_length = u32::from(flags & PADDED != 0);
                if left < pad_length + priority {
                    self.fields.lose();
                    At::Skip { left }
                } else if pad_length > 0 {
                    At::PadLength { left, priority, last }
                } else {
                    At::Priority { left, priority, padding: 0, last }
                }
            }
            CONTINUATION => At::Block { left, padding: 0, last },
            _ => At::Skip { left },
        }
    }

    /// Leaves every part that has no bytes left.
    fn settle(&mut self) {
        loop {
            self.at = match self.at {
                At::Priority { left, priority: 0, padding, last } => match left.checked_sub(padding) {
                    Some(left) => At::Block { left, padding, last },
                    // More padding than there is frame: a connection error (§6.2).
                    None => {
                        self.fields.lose();
                        At::Skip { left }
                    }
                },
                At::Block { left: 0, padding, last } => {
                    if matches!(last, Last::Yes) {
                        self.fields.end();
                        self.block_open = false;
                    }
                    At::Skip { left: padding }
                }
                At::Skip { left: 0 } => HEAD,
                _ => return,
            };
        }
    }
}
