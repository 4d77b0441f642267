//! The checked constructors of a token request's parameters. A fault never holds the value: it may be a secret.

use url::Url;

/// The longest parameter, in bytes.
const MAX_BYTES: usize = 2048;

/// Why a text cannot be a parameter of a token request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterFault {
    /// RFC 6749 §3.2: a parameter without a value is as good as none.
    #[error("is empty")]
    Empty,
    /// Nobody wrote this by hand.
    #[error("is longer than 2048 bytes")]
    TooLong,
    /// `client_id` is `*VSCHAR` (RFC 6749 appendix A.1).
    #[error("holds a character that no client_id may hold (visible ASCII and space, RFC 6749 appendix A.1)")]
    NotAClientId,
    /// A line break, a NUL: no provider has these in a parameter.
    #[error("holds a control character")]
    ControlCharacter,
    /// RFC 8707 §2.
    #[error("is not an absolute URI (like https://api.example.com; RFC 8707 §2)")]
    NotAnAbsoluteUri,
    /// RFC 8707 §2.
    #[error("has a fragment, '#…' (RFC 8707 §2 forbids it)")]
    Fragment,
    /// `param-name` is `1*( "-" / "." / "_" / DIGIT / ALPHA )` (RFC 6749 §8.2).
    #[error("is not a parameter's name (letters, digits, '-', '.' and '_'; RFC 6749 §8.2)")]
    NotAName,
    /// It has a key of its own, which it would override.
    #[error("is a parameter with a key of its own, or one that the agent sets")]
    Reserved,
    /// What only other grants have, and what is a secret there.
    #[error("is a credential of another grant; a secret has no place in the config")]
    Credential,
}

/// Checks a `client_id`: not empty, visible ASCII and space.
pub fn client_id(text: &str) -> Result<Box<str>, ParameterFault> {
    let text = value(text)?;
    if text.bytes().all(|b| matches!(b, 0x20..=0x7e)) { Ok(text) } else { Err(ParameterFault::NotAClientId) }
}

/// Checks an `audience`: any text of one line. Providers use names (`dev-api`) as well as URLs.
pub fn audience(text: &str) -> Result<Box<str>, ParameterFault> {
    value(text)
}

/// Checks a `resource`: an absolute URI without a fragment (RFC 8707 §2). It is sent as it is written.
pub fn resource(text: &str) -> Result<Box<str>, ParameterFault> {
    let text = value(text)?;
    if text.contains('#') {
        return Err(ParameterFault::Fragment);
    }
    // What RFC 3986 leaves out and `Url` would encode: the provider compares what was written.
    let fits = |b: u8| matches!(b, 0x21..=0x7e) && !b"\"<>\\^`{|}".contains(&b);
    if text.bytes().all(fits) && Url::parse(&text).is_ok() {
        Ok(text)
    } else {
        Err(ParameterFault::NotAnAbsoluteUri)
    }
}

/// Checks a further parameter, `name` and `value`. One with a key of its own is refused, however its letters are
/// written: no extra can change who asks, for what, and how it is proved.
pub fn extra_parameter(name: &str, text: &str) -> Result<(Box<str>, Box<str>), ParameterFault> {
    if name.is_empty() {
        return Err(ParameterFault::Empty);
    }
    if name.len() > MAX_BYTES {
        return Err(ParameterFault::TooLong);
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) {
        return Err(ParameterFault::NotAName);
    }
    let one_of = |names: &[&str]| names.iter().any(|known| name.eq_ignore_ascii_case(known));
    if one_of(&["client_secret", "client_assertion", "password", "refresh_token", "assertion", "code"]) {
        return Err(ParameterFault::Credential);
    }
    if one_of(&["grant_type", "client_id", "client_assertion_type", "audience", "resource", "scope"]) {
        return Err(ParameterFault::Reserved);
    }
    Ok((name.into(), value(text)?))
}

fn value(text: &str) -> Result<Box<str>, ParameterFault> {
    if text.is_empty() {
        return Err(ParameterFault::Empty);
    }
    if text.len() > MAX_BYTES {
        return Err(ParameterFault::TooLong);
    }
    if text.chars().any(char::is_control) {
        return Err(ParameterFault::ControlCharacter);
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_id_is_visible_ascii_and_space() {
        for text in ["aYQ", "a b", "x:y~\"\\", &"x".repeat(MAX_BYTES)] {
            assert_eq!(client_id(text).as_deref(), Ok(text));
        }
        assert_eq!(client_id(""), Err(ParameterFault::Empty));
        assert_eq!(client_id("a\nb"), Err(ParameterFault::ControlCharacter));
        assert_eq!(client_id("caf\u{e9}"), Err(ParameterFault::NotAClientId));
        assert_eq!(client_id(&"x".repeat(MAX_BYTES + 1)), Err(ParameterFault::TooLong));
    }

    #[test]
    fn an_audience_is_any_line_of_text() {
        for text in ["dev-api", "https://a.example/api/", "caf\u{e9} au lait"] {
            assert_eq!(audience(text).as_deref(), Ok(text));
        }
        assert_eq!(audience(""), Err(ParameterFault::Empty));
        assert_eq!(audience("a\u{0}"), Err(ParameterFault::ControlCharacter));
    }

    #[test]
    fn a_resource_is_an_absolute_uri_without_a_fragment() {
        for text in ["https://api.example.com", "https://a.example/x?y=z", "urn:example:thing"] {
            assert_eq!(resource(text).as_deref(), Ok(text));
        }
        for (text, fault) in [
            ("", ParameterFault::Empty),
            ("api.example.com", ParameterFault::NotAnAbsoluteUri),
            ("/api", ParameterFault::NotAnAbsoluteUri),
            ("https://a.example/#", ParameterFault::Fragment),
            ("https://a.example/a b", ParameterFault::NotAnAbsoluteUri),
            ("https://a.example/{x}", ParameterFault::NotAnAbsoluteUri),
            ("https://", ParameterFault::NotAnAbsoluteUri),
        ] {
            assert_eq!(resource(text), Err(fault), "{text}");
        }
    }

    #[test]
    fn an_extra_parameter_cannot_take_the_place_of_ours() {
        assert_eq!(
            extra_parameter("organization", "org_1").unwrap(),
            (Box::from("organization"), Box::from("org_1"))
        );
        for name in
            ["grant_type", "client_id", "client_assertion_type", "audience", "resource", "scope", "SCOPE"]
        {
            assert_eq!(extra_parameter(name, "x"), Err(ParameterFault::Reserved), "{name}");
        }
        for name in ["client_secret", "Client_Secret", "client_assertion", "password", "refresh_token"] {
            assert_eq!(extra_parameter(name, "x"), Err(ParameterFault::Credential), "{name}");
        }
        for name in ["a b", "a&b", "a=b", "caf\u{e9}", "a[]"] {
            assert_eq!(extra_parameter(name, "x"), Err(ParameterFault::NotAName), "{name}");
        }
        for (length, expected) in [(MAX_BYTES, Ok(MAX_BYTES)), (MAX_BYTES + 1, Err(ParameterFault::TooLong))]
        {
            let named = extra_parameter(&"x".repeat(length), "x").map(|(name, _)| name.len());
            assert_eq!(named, expected);
        }
        assert_eq!(extra_parameter(&"x".repeat(2 * MAX_BYTES), "x"), Err(ParameterFault::TooLong));
        assert_eq!(extra_parameter("", "x"), Err(ParameterFault::Empty));
        assert_eq!(extra_parameter("x", ""), Err(ParameterFault::Empty));
        assert_eq!(extra_parameter("x", "a\rb"), Err(ParameterFault::ControlCharacter));
    }
}
