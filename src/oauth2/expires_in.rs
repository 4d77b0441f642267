//! `expires_in`, as providers write it: a number, a number in a string, with a fraction or an exponent, of any size.
//!
//! Read from the decimal digits, so that nothing overflows and nothing is rounded up; missing never means endless
//! (golang/oauth2 #67, #279).

use super::json;

/// What `expires_in` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExpiresIn {
    /// `null`, which is as good as absent.
    Absent,
    /// Whole seconds, rounded down, saturating.
    Seconds(u64, Written),
}

/// How a number was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Number,
    Text,
}

/// Why it says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// A token that nobody can use any more.
    NotPositive,
    /// true, an array, "abc", "".
    NotANumber,
}

impl ExpiresIn {
    /// Reads the member's JSON text.
    pub(super) fn parse(raw: &str) -> Result<Self, Unusable> {
        if raw == "null" {
            return Ok(Self::Absent);
        }
        let (seconds, written) = match json::text(raw) {
            Some(text) => (seconds(&text)?, Written::Text),
            None => (seconds(raw)?, Written::Number),
        };
        if seconds == 0 { Err(Unusable::NotPositive) } else { Ok(Self::Seconds(seconds, written)) }
    }
}

/// A number in JSON's grammar (RFC 8259 §6), rounded down; below one it is zero.
fn seconds(text: &str) -> Result<u64, Unusable> {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        None => (text, 0),
        Some((mantissa, exponent)) => (mantissa, self::exponent(exponent)?),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        None => (mantissa, ""),
        Some((_, "")) => return Err(Unusable::NotANumber),
        Some(parts) => parts,
    };
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || (whole.len() > 1 && whole.starts_with('0'))
    {
        return Err(Unusable::NotANumber);
    }
    if negative {
        return Err(Unusable::NotPositive);
    }
    // The number is 0.d1d2d3… × 10^point, with d1 not zero.
    let all = whole.bytes().chain(fraction.bytes());
    let zeros = all.clone().take_while(|b| *b == b'0').count();
    let length = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let point = length(whole.len()).saturating_add(exponent).saturating_sub(length(zeros));
    let significant = all.skip(zeros);
    let mut value = 0_u64;
    // Of a number below one nothing is left. u64::MAX has 20 digits; with more the sum has saturated, as the first digit is not zero.
    for digit in significant.map(|b| u64::from(b - b'0')).chain(std::iter::repeat(0)).zip(0..point.min(21)) {
        value = value.saturating_mul(10).saturating_add(digit.0);
    }
    Ok(value)
}

/// An exponent, saturating: what lies beyond is too large or too small in any case.
fn exponent(text: &str) -> Result<i64, Unusable> {
    let (negative, digits) = match text.as_bytes() {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Unusable::NotANumber);
    }
    let value =
        digits.iter().fold(0_i64, |sum, b| sum.saturating_mul(10).saturating_add(i64::from(b - b'0')));
    Ok(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_number_is_read() {
        use Written::{Number, Text};
        for (raw, seconds, written) in [
            ("86400", 86_400, Number),
            ("\"86400\"", 86_400, Text),
            ("86400.0", 86_400, Number),
            ("86400.9", 86_400, Number),
            ("\"3599.5\"", 3_599, Text),
            ("8.64e4", 86_400, Number),
            ("8.64E+4", 86_400, Number),
            ("864000000e-4", 86_400, Number),
            ("0.000864e8", 86_400, Number),
            ("1", 1, Number),
            ("1.9", 1, Number),
            ("2147483648", 1 << 31, Number),
            ("9007199254740992", 1 << 53, Number),
            ("9223372036854775808", 1 << 63, Number),
            ("18446744073709551615", u64::MAX, Number),
            ("18446744073709551616", u64::MAX, Number),
            ("1e400", u64::MAX, Number),
            ("1e99999999999999999999999", u64::MAX, Number),
            ("\"1e400\"", u64::MAX, Text),
        ] {
            assert_eq!(ExpiresIn::parse(raw), Ok(ExpiresIn::Seconds(seconds, written)), "{raw}");
        }
        assert_eq!(ExpiresIn::parse("null"), Ok(ExpiresIn::Absent));
    }

    #[test]
    fn a_life_that_is_over_is_not_positive() {
        for raw in [
            "0",
            "-0",
            "0.0",
            "0e400",
            "0.9",
            "1e-1",
            "1e-99999999999999999999",
            "-1",
            "-86400",
            "\"-1\"",
            "\"0\"",
        ] {
            assert_eq!(ExpiresIn::parse(raw), Err(Unusable::NotPositive), "{raw}");
        }
    }

    #[test]
    fn anything_else_is_not_a_number() {
        for raw in [
            "true",
            "false",
            "[]",
            "[86400]",
            "{}",
            "\"\"",
            "\"abc\"",
            "\" 86400\"",
            "\"0x10\"",
            "\"1_000\"",
            "\"+1\"",
            "\"1.\"",
            "\".5\"",
            "\"1e\"",
            "\"1e+\"",
            "\"007\"",
            "\"-\"",
            "\"Infinity\"",
            "\"NaN\"",
            "\"\u{664}\"",
            "\"null\"",
        ] {
            assert_eq!(ExpiresIn::parse(raw), Err(Unusable::NotANumber), "{raw}");
        }
    }

    #[test]
    fn whole_numbers_agree_with_the_standard_library() {
        for value in (0..64).flat_map(|bit| [1_u64 << bit, (1 << bit) - 1, (1 << bit) + 1]).filter(|v| *v > 0)
        {
            assert_eq!(ExpiresIn::parse(&value.to_string()), Ok(ExpiresIn::Seconds(value, Written::Number)));
        }
    }
}
