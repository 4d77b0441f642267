//! Durations as they are written in the config: `"90s"`, `"5m"`, `"1h"`.

use std::time::Duration;

/// A text that is not a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a duration; write a whole number and s, m or h, as in \"90s\", \"5m\" or \"1h\"")]
pub struct NotADuration;

/// Reads a whole number followed by `s`, `m` or `h`; nothing else, no fraction and no sum, so that it reads one way.
pub fn parse(text: &str) -> Result<Duration, NotADuration> {
    let (digits, unit) = [("s", 1), ("m", 60), ("h", 3600)]
        .into_iter()
        .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|digits| (digits, unit)))
        .ok_or(NotADuration)?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(NotADuration);
    }
    let number: u64 = digits.parse().map_err(|_| NotADuration)?;
    number.checked_mul(unit).map(Duration::from_secs).ok_or(NotADuration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        for (text, seconds) in
            [("90s", 90), ("5m", 300), ("1h", 3600), ("0s", 0), ("720h", 2_592_000), ("007m", 420)]
        {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "",
            "s",
            "90",
            "1.5h",
            "-1s",
            "+1s",
            "1h30m",
            "1 h",
            " 1h",
            "1d",
            "1S",
            "1ms",
            "١s",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert_eq!(parse(text), Err(NotADuration), "{text:?}");
        }
    }
}
