//! The property of stored records: what a restart takes over.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a property panics where it does not hold"
)]

use std::time::Duration;

use ::bytes::Bytes;
use aws_lc_rs::digest::{SHA256, digest};

use super::{BootId, CHECKSUM, MAGIC, MAX_RECORD, MAX_TEXT, Record, RecordName, Unusable};
use crate::{
    clock::Timestamp,
    token::{MAX_LIFE, MAX_TOKEN_BYTES},
};

const NOW: Timestamp = Timestamp::from_boot(Duration::from_secs(1_000_000));
const BOOT: BootId = BootId([7; 16]);

/// A record's bytes from its name to its checksum, which is made to fit; and the same bytes as a whole record and as a
/// record's name.
pub(crate) fn stored_record(data: &[u8]) {
    let body = [&MAGIC[..], &BOOT.0, data].concat();
    let whole = [&body[..], digest(&SHA256, &body).as_ref()].concat();
    match parse(&whole) {
        Ok(record) => judge(&record, &whole),
        Err(unusable) => {
            assert!(!matches!(unusable, Unusable::Form | Unusable::Damaged | Unusable::OtherBoot));
            assert_eq!(unusable == Unusable::TooLarge, whole.len() > MAX_RECORD);
            assert!(unusable.to_string().bytes().all(|byte| matches!(byte, b' '..=b'~')));
        }
    }
    assert!(parse(data).is_err() || data.len() > CHECKSUM, "nobody guesses a checksum");
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(name) = RecordName::parse(text)
    {
        assert_eq!(name.to_string(), text);
    }
}

fn parse(bytes: &[u8]) -> Result<Record, Unusable> {
    Record::parse(bytes, &BOOT, NOW, Bytes::copy_from_slice)
}

fn judge(record: &Record, bytes: &[u8]) {
    assert_eq!(record.encode().unwrap().as_slice(), bytes, "a record is written in one way");
    let standing = &record.standing;
    assert_eq!(record.token.is_some(), standing.held.is_some());
    if let (Some(token), Some(held)) = (&record.token, &standing.held) {
        let value = token.access_token.expose_secret();
        assert!(
            (1..=MAX_TOKEN_BYTES).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_graphic())
        );
        assert!(
            held.life.requested.boot <= NOW && held.life.length <= MAX_LIFE,
            "no life is longer than is believed"
        );
        assert!(standing.generation >= Some(held.generation));
        assert!(value.len() < 16 || !format!("{record:?}").contains(value), "a token prints");
    }
    if let Some((failure, at)) = &record.failure {
        assert!(failure.text.len() <= MAX_TEXT && !failure.text.contains(char::is_control) && at.boot <= NOW);
    }
    for at in 0..bytes.len().min(64) {
        let mut changed = bytes.to_vec();
        changed[at] ^= 1;
        assert!(parse(&changed).is_err(), "a record with another byte {at} is none");
    }
}
