//! Times: one request after the other, and many at a time. Client and server are pinned, rounds are interleaved, and the
//! median of the rounds is told.

pub(crate) fn latency() {}
pub(crate) fn throughput() {}
