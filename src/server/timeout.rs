//! The caller's deadline: the header `grpc-timeout`. Behind an accept loop of one's own nobody else reads it.

use std::time::Duration;

use http::HeaderMap;

/// How long the caller is willing to wait, counted from the request (gRPC over HTTP/2, "Requests": at most eight ASCII
/// digits and a unit of `H M S m u n`). A header that is not like that says nothing; the first of several counts. Zero is a
/// deadline that has passed already: grpc-go sends it so.
///
/// A `tonic::metadata::MetadataMap` gives its headers by `as_ref()`.
pub fn deadline_of(headers: &HeaderMap) -> Option<Duration> {
    let (unit, digits) = headers.get("grpc-timeout")?.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let mut value: u64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value * 10 + u64::from(digit - b'0');
    }
    match unit {
        b'H' => Some(Duration::from_secs(value.saturating_mul(3600))),
        b'M' => Some(Duration::from_secs(value.saturating_mul(60))),
        b'S' => Some(Duration::from_secs(value)),
        b'm' => Some(Duration::from_millis(value)),
        b'u' => Some(Duration::from_micros(value)),
        b'n' => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn grpc_timeout_is_read_as_the_specification_writes_it() {
        let cases: &[(&str, Option<Duration>)] = &[
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("4m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("6n", Some(Duration::from_nanos(6))),
            ("0n", Some(Duration::ZERO)),
            ("00000001S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_secs(359_999_996_400))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("100000000n", None),
            ("", None),
            ("S", None),
            ("1", None),
            ("1s", None),
            ("1h", None),
            ("-1S", None),
            ("+1S", None),
            ("1.5S", None),
            (" 1S", None),
            ("1S ", None),
            ("1 S", None),
            ("1SS", None),
            ("0x1S", None),
        ];
        for (text, wanted) in cases {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_str(text).expect("a header"));
            assert_eq!(deadline_of(&headers), *wanted, "{text:?}");
        }
    }

    #[test]
    fn no_header_and_an_unreadable_one_say_nothing_and_the_first_counts() {
        let mut headers = HeaderMap::new();
        assert_eq!(deadline_of(&headers), None);
        headers.append("grpc-timeout", HeaderValue::from_static("7S"));
        headers.append("grpc-timeout", HeaderValue::from_static("9S"));
        assert_eq!(deadline_of(&headers), Some(Duration::from_secs(7)));
        headers.insert("grpc-timeout", HeaderValue::from_bytes(b"\xff1S").expect("opaque bytes"));
        assert_eq!(deadline_of(&headers), None);
    }
}
