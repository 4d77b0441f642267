//! When a provider wants to be asked again: Retry-After (RFC 9110 §10.2.3), or Auth0's X-RateLimit-Reset beside a 429.
//!
//! It is a stranger's input: bounded before it is parsed, saturating, and cut to [`MAX`]. What cannot be read is
//! ignored, and the ordinary back-off holds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::clock::WallTime;

/// The longest that a provider can keep the agent waiting.
pub(super) const MAX: Duration = Duration::from_secs(3600);

/// Longer than any HTTP-date.
const MAX_BYTES: usize = 40;

/// X-RateLimit-Reset is a Unix time at Auth0 and a number of seconds elsewhere; no rate limit lasts 30 years.
const UNIX_TIME_FROM: u64 = 1_000_000_000;

/// How long to wait, at most [`MAX`]; none where nothing readable says so, or a moment that has passed. `wall` is this
/// host's clock; the answer's own Date goes before it, since the two clocks need not agree.
pub(super) fn retry_after(status: u16, headers: &HeaderMap, wall: WallTime) -> Option<Duration> {
    let now = date(headers)
        .or_else(|| UNIX_EPOCH.checked_add(Duration::from_millis(u64::try_from(wall.unix_millis()).ok()?)));
    // Of two values the longer one: to wait too long is the smaller fault.
    let asked = headers.get_all(header::RETRY_AFTER).iter().filter_map(|value| {
        let text = short(value)?;
        number(text).map(Duration::from_secs).or_else(|| {
            let moment = httpdate::parse_http_date(text).ok()?;
            moment.duration_since(now?).ok()
        })
    });
    let asked = asked.max().or_else(|| {
        let limited = status == StatusCode::TOO_MANY_REQUESTS.as_u16();
        let reset = headers.get("x-ratelimit-reset").filter(|_| limited).and_then(short).and_then(number)?;
        if reset < UNIX_TIME_FROM {
            return Some(Duration::from_secs(reset));
        }
        match UNIX_EPOCH.checked_add(Duration::from_secs(reset)) {
            Some(moment) => moment.duration_since(now?).ok(),
            None => Some(MAX),
        }
    });
    asked.filter(|wait| !wait.is_zero()).map(|wait| wait.min(MAX))
}

/// The answer's Date.
pub(super) fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(short(headers.get(header::DATE)?)?).ok()
}

fn short(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok().map(str::trim).filter(|text| text.len() <= MAX_BYTES)
}

/// Digits and nothing else, saturating.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Sun, 22 Nov 2026 14:05:00 GMT
    const NOW: u64 = 1_795_356_300;

    fn wait(status: u16, headers: &[(&'static str, &str)]) -> Option<u64> {
        let map = headers.iter().fold(HeaderMap::new(), |mut map, (name, value)| {
            map.append(*name, HeaderValue::from_str(value).unwrap());
            map
        });
        let wall = WallTime::from_unix_millis(i64::try_from(NOW * 1000).unwrap());
        retry_after(status, &map, wall).map(|wait| wait.as_secs())
    }

    #[test]
    fn retry_after_is_read_in_both_its_forms_and_cut_to_an_hour() {
        for (value, wanted) in [
            ("120", Some(120)),
            (" 120 ", Some(120)),
            ("0", None),
            ("3600", Some(3600)),
            ("3601", Some(3600)),
            ("1000000000000000000", Some(3600)),
            ("99999999999999999999999999999999", Some(3600)),
            ("-5", None),
            ("+5", None),
            ("1.5", None),
            ("1e3", None),
            ("soon", None),
            ("", None),
            ("120, 60", None),
            ("Sun, 22 Nov 2026 14:07:00 GMT", Some(120)),
            ("Sun Nov 22 14:07:00 2026", Some(120)),
            ("Sunday, 22-Nov-26 14:07:00 GMT", Some(120)),
            ("Sun, 22 Nov 2026 14:05:00 GMT", None),
            ("Sun, 22 Nov 2026 14:00:00 GMT", None),
            ("Thu, 01 Jan 1970 00:00:00 GMT", None),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(3600)),
            ("Sun, 99 Nov 2026 14:07:00 GMT", None),
            ("Sun, 22 Nov 2026 14:07:00 GMT (a comment that makes it long)", None),
        ] {
            for status in [429, 503] {
                assert_eq!(wait(status, &[("retry-after", value)]), wanted, "{value:?}");
            }
        }
    }

    #[test]
    fn of_two_headers_the_longer_wait_counts() {
        assert_eq!(wait(429, &[("retry-after", "60"), ("retry-after", "120")]), Some(120));
        assert_eq!(wait(429, &[("retry-after", "garbage"), ("retry-after", "60")]), Some(60));
    }

    #[test]
    fn a_date_is_measured_from_the_providers_own() {
        let later = ("retry-after", "Sun, 22 Nov 2026 14:17:00 GMT");
        assert_eq!(wait(503, &[later, ("date", "Sun, 22 Nov 2026 14:15:00 GMT")]), Some(120));
        assert_eq!(wait(503, &[later, ("date", "Sun, 22 Nov 2026 14:18:00 GMT")]), None);
        assert_eq!(wait(503, &[later, ("date", "garbage")]), Some(720));
    }

    #[test]
    fn auth0s_reset_serves_where_a_429_has_no_retry_after() {
        let reset = (NOW + 90).to_string();
        assert_eq!(wait(429, &[("x-ratelimit-reset", &reset)]), Some(90));
        assert_eq!(wait(429, &[("x-ratelimit-reset", "45")]), Some(45));
        assert_eq!(wait(429, &[("x-ratelimit-reset", &reset), ("retry-after", "7")]), Some(7));
        assert_eq!(wait(429, &[("x-ratelimit-reset", &reset), ("retry-after", "garbage")]), Some(90));
        assert_eq!(wait(429, &[("x-ratelimit-reset", &(NOW - 1).to_string())]), None);
        for (reset, wanted) in [(UNIX_TIME_FROM - 1, Some(3600)), (UNIX_TIME_FROM, None)] {
            assert_eq!(wait(429, &[("x-ratelimit-reset", &reset.to_string())]), wanted, "{reset}");
        }
        assert_eq!(wait(429, &[("x-ratelimit-reset", "99999999999999999999")]), Some(3600));
        assert_eq!(wait(503, &[("x-ratelimit-reset", &reset)]), None);
    }
}
