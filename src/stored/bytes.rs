//! The bytes under a record: big-endian numbers, counted byte strings, a checksum at the end.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use zeroize::Zeroizing;

use super::{CHECKSUM, Unusable};
use crate::clock::Timestamp;

/// Writes into one buffer, which is wiped.
pub(super) struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(bytes)))
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.raw(&[value]);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.raw(&value.to_be_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.raw(&value.to_be_bytes());
    }

    pub(super) fn i64(&mut self, value: i64) {
        self.raw(&value.to_be_bytes());
    }

    /// In nanoseconds, which reach for 584 years.
    pub(super) fn duration(&mut self, value: Duration) {
        self.u64(u64::try_from(value.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn timestamp(&mut self, value: Timestamp) {
        self.duration(value.since_boot());
    }

    /// At most 255 bytes: a longer one is cut, and will not be read as what it was.
    pub(super) fn short(&mut self, bytes: &[u8]) {
        let length = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
        self.u8(length);
        self.raw(bytes.get(..usize::from(length)).unwrap_or(bytes));
    }

    /// At most what a record may have: more is refused when it is finished.
    pub(super) fn long(&mut self, bytes: &[u8]) {
        self.long_count(bytes.len());
        self.raw(bytes);
    }

    pub(super) fn long_count(&mut self, count: usize) {
        self.u32(u32::try_from(count).unwrap_or(u32::MAX));
    }

    pub(super) fn optional<T>(&mut self, value: Option<&T>, write: impl FnOnce(&mut Self, &T)) {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }

    /// With the checksum.
    pub(super) fn finish(mut self) -> Zeroizing<Vec<u8>> {
        let checksum = digest(&SHA256, &self.0);
        self.raw(checksum.as_ref());
        self.0
    }
}

/// Reads what a [`Writer`] wrote.
pub(super) struct Reader<'a>(&'a [u8]);

const SHORT: Unusable = Unusable::Value("a length");

impl<'a> Reader<'a> {
    /// What stands before the checksum; none if that is another's.
    pub(super) fn checked(bytes: &'a [u8]) -> Option<Self> {
        let (body, checksum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM)?)?;
        (digest(&SHA256, body).as_ref() == checksum).then_some(Self(body))
    }

    pub(super) const fn is_at_its_end(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Unusable> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn raw<const N: usize>(&mut self) -> Result<[u8; N], Unusable> {
        self.take(N)?.try_into().map_err(|_| SHORT)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Unusable> {
        self.raw().map(u8::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Unusable> {
        self.raw().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Unusable> {
        self.raw().map(u64::from_be_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, Unusable> {
        self.raw().map(i64::from_be_bytes)
    }

    pub(super) fn duration(&mut self) -> Result<Duration, Unusable> {
        self.u64().map(Duration::from_nanos)
    }

    pub(super) fn timestamp(&mut self) -> Result<Timestamp, Unusable> {
        self.duration().map(Timestamp::from_boot)
    }

    pub(super) fn short(&mut self) -> Result<&'a [u8], Unusable> {
        let length = self.u8()?;
        self.take(usize::from(length))
    }

    pub(super) fn long(&mut self) -> Result<&'a [u8], Unusable> {
        let length = self.count()?;
        self.take(length)
    }

    pub(super) fn count(&mut self) -> Result<usize, Unusable> {
        usize::try_from(self.u32()?).map_err(|_| SHORT)
    }

    pub(super) fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Unusable>,
    ) -> Result<Option<T>, Unusable> {
        match self.u8()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(Unusable::Value("a mark of presence")),
        }
    }
}
