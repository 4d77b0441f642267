//! When a certificate that was verified expires: all that is read out of it, and only to show it.

/// The end of the validity of a DER certificate (RFC 5280 §4.1), as RFC 3339; none if it is not where it should be.
pub(super) fn not_after(certificate: &[u8]) -> Option<String> {
    let (certificate, _) = element(certificate, 0x30)?;
    let (mut fields, _) = element(certificate, 0x30)?;
    if let Some((_version, rest)) = element(fields, 0xa0) {
        fields = rest;
    }
    for tag in [0x02, 0x30, 0x30] {
        // serialNumber, signature, issuer
        (_, fields) = element(fields, tag)?;
    }
    let (validity, _) = element(fields, 0x30)?;
    let (_, after_first) = element(validity, 0x17).or_else(|| element(validity, 0x18))?;
    if let Some((utc, _)) = element(after_first, 0x17) {
        // RFC 5280 §4.1.2.5.1: two digits from 50 on are of the last century.
        let century = if *utc.first()? >= b'5' { "19" } else { "20" };
        return rfc3339(century, utc);
    }
    rfc3339("", element(after_first, 0x18)?.0)
}

/// The content of the first element, which must have `tag`, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk::<2>()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match first {
        ..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// `YYMMDDhhmmssZ`, after the century.
fn rfc3339(century: &str, digits: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(digits).ok()?.strip_suffix('Z')?;
    let text = format!("{century}{text}");
    if text.len() != 14 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let part = |from: usize, to: usize| text.get(from..to);
    Some(format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0, 4)?,
        part(4, 6)?,
        part(6, 8)?,
        part(8, 10)?,
        part(10, 12)?,
        part(12, 14)?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(year: i32) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 2, 3);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_is_read_in_both_of_its_forms() {
        assert_eq!(not_after(&made(2027)).as_deref(), Some("2027-02-03T00:00:00Z"));
        assert_eq!(not_after(&made(1999)).as_deref(), Some("1999-02-03T00:00:00Z"));
        assert_eq!(not_after(&made(2050)).as_deref(), Some("2050-02-03T00:00:00Z"));
    }

    #[test]
    fn what_is_no_certificate_has_no_end() {
        let whole = made(2027);
        for length in 0..whole.len() {
            assert_eq!(not_after(&whole[..length]), None, "{length}");
        }
        assert_eq!(not_after(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
