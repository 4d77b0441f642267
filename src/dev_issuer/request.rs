//! A token request as the server reads it: parameters and client credentials, from a form, from JSON, from the
//! Authorization header. Pure.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, header};
use serde::de;

use super::Dialect;

/// What was asked. It holds a secret and does not print.
pub(super) struct TokenRequest {
    params: Vec<(String, String)>,
    pub(super) client: Option<Credentials>,
    pub(super) method: AuthMethod,
}

/// What the client says of itself. It does not print.
#[derive(PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) id: String,
    pub(super) secret: String,
}

/// Where the credentials were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AuthMethod {
    Post,
    Basic,
}

/// Why a request cannot be read: the hint of an `invalid_request`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("The POST body can not be empty.")]
    NoForm,
    #[error("The body is neither a form nor a JSON object of strings.")]
    Malformed,
    #[error("A parameter is included more than once.")]
    Twice,
    #[error("The client authenticates in the header and in the body.")]
    TwoMethods,
    #[error("The Authorization header can not be read.")]
    Authorization,
}

impl TokenRequest {
    pub(super) fn read(dialect: Dialect, headers: &HeaderMap, body: &[u8]) -> Result<Self, Unreadable> {
        let mut params = parameters(dialect, headers, body)?;
        for (index, (name, _)) in params.iter().enumerate() {
            // RFC 6749 §3.2; RFC 8707 §2 lets `resource` be repeated.
            if name != "resource" && params.iter().skip(index + 1).any(|(other, _)| other == name) {
                return Err(Unreadable::Twice);
            }
        }
        let mut take = |name| {
            let at = params.iter().position(|(key, _)| key == name)?;
            Some(params.swap_remove(at).1)
        };
        let (id, secret) = (take("client_id"), take("client_secret"));
        let Some(basic) = headers.get(header::AUTHORIZATION) else {
            let client = id.zip(secret).map(|(id, secret)| Credentials { id, secret });
            return Ok(Self { params, client, method: AuthMethod::Post });
        };
        if secret.is_some() {
            return Err(Unreadable::TwoMethods);
        }
        let client = basic_credentials(basic.as_bytes()).ok_or(Unreadable::Authorization)?;
        Ok(Self { params, client: Some(client), method: AuthMethod::Basic })
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

fn parameters(
    dialect: Dialect,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Vec<(String, String)>, Unreadable> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let media_type = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    match (media_type.as_str(), dialect) {
        ("application/x-www-form-urlencoded", _) => {
            if body.is_empty() {
                return Err(Unreadable::NoForm);
            }
            // Lossy decoding would let two secrets be the same.
            if std::str::from_utf8(&percent_encoding::percent_decode(body).collect::<Vec<_>>()).is_err() {
                return Err(Unreadable::Malformed);
            }
            Ok(url::form_urlencoded::parse(body).into_owned().collect())
        }
        ("application/json", Dialect::Auth0) => {
            serde_json::from_slice::<Object>(body).map(|object| object.0).map_err(|_| Unreadable::Malformed)
        }
        // Hydra looks for a form, and finds none.
        (_, Dialect::Hydra) => Err(Unreadable::NoForm),
        (_, Dialect::Auth0) => Err(Unreadable::Malformed),
    }
}

/// RFC 6749 §2.3.1: each part is form-encoded, then joined with a colon, then Base64.
fn basic_credentials(header: &[u8]) -> Option<Credentials> {
    let (scheme, encoded) = std::str::from_utf8(header).ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(BASE64_STANDARD.decode(encoded.trim_start()).ok()?).ok()?;
    let (id, secret) = decoded.split_once(':')?;
    Some(Credentials { id: form_decode(id)?, secret: form_decode(secret)? })
}

fn form_decode(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    percent_encoding::percent_decode_str(&spaced).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

/// A JSON object as it was written, double members included; an array is a parameter repeated.
struct Object(Vec<(String, String)>);

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Value {
    One(String),
    Many(Vec<String>),
}

impl<'de> de::Deserialize<'de> for Object {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> de::Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    match value {
                        Value::One(value) => members.push((name, value)),
                        Value::Many(values) => {
                            members.extend(values.into_iter().map(|value| (name.clone(), value)));
                        }
                    }
                }
                Ok(Object(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn basic(text: &str) -> Option<(String, String)> {
        let header = format!("Basic {}", BASE64_STANDARD.encode(text));
        basic_credentials(header.as_bytes()).map(|client| (client.id, client.secret))
    }

    #[test]
    fn basic_credentials_are_form_decoded() {
        let cases = [
            ("id:secret", Some(("id", "secret"))),
            ("id:", Some(("id", ""))),
            ("a+b:c%2Bd", Some(("a b", "c+d"))),
            ("a%3Ab:c%3Ad:e", Some(("a:b", "c:d:e"))),
            ("id:%25%2F%C3%A9%26%3D", Some(("id", "%/é&="))),
            ("id", None),
            ("id:%FF", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|(id, secret)| (id.to_owned(), secret.to_owned()));
            assert_eq!(basic(text), expected, "{text}");
        }
        for header in ["Bearer aWQ6eA==", "Basic", "Basic !", ""] {
            assert!(basic_credentials(header.as_bytes()).is_none(), "{header}");
        }
        assert!(basic_credentials(b"bAsIc aWQ6eA==").is_some());
    }

    fn read(dialect: Dialect, media_type: &str, body: &str) -> Result<TokenRequest, Unreadable> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(media_type).unwrap());
        TokenRequest::read(dialect, &headers, body.as_bytes())
    }

    const FORM: &str = "application/x-www-form-urlencoded";
    const JSON: &str = "application/json; charset=UTF-8";

    #[test]
    fn a_form_and_json_say_the_same() {
        let requests = [
            read(Dialect::Hydra, FORM, "client_id=i+d&client_secret=s%2B%C3%A9&scope=a+b").unwrap(),
            read(Dialect::Auth0, FORM, "client_secret=s%2B%C3%A9&client_id=i+d&scope=a+b").unwrap(),
            read(Dialect::Auth0, JSON, r#"{"client_id":"i d","client_secret":"s+é","scope":"a b"}"#).unwrap(),
        ];
        for request in requests {
            let client = request.client.as_ref().unwrap();
            assert_eq!((client.id.as_str(), client.secret.as_str()), ("i d", "s+é"));
            assert_eq!(request.get("scope"), Some("a b"));
            assert_eq!(request.get("client_secret"), None);
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_a_reason() {
        let cases = [
            (Dialect::Hydra, JSON, r#"{"client_id":"i"}"#, Unreadable::NoForm),
            (Dialect::Hydra, FORM, "", Unreadable::NoForm),
            (Dialect::Hydra, "text/plain", "a=b", Unreadable::NoForm),
            (Dialect::Auth0, "text/plain", "a=b", Unreadable::Malformed),
            (Dialect::Auth0, JSON, "[]", Unreadable::Malformed),
            (Dialect::Auth0, JSON, r#"{"a":1}"#, Unreadable::Malformed),
            (Dialect::Auth0, JSON, r#"{"a":"1","a":"1"}"#, Unreadable::Twice),
            (Dialect::Auth0, JSON, r#"{"a":["1","2"]}"#, Unreadable::Twice),
            (Dialect::Hydra, FORM, "a=1&a=1", Unreadable::Twice),
            (Dialect::Hydra, FORM, "a=%FF", Unreadable::Malformed),
        ];
        for (dialect, media_type, body, expected) in cases {
            assert_eq!(read(dialect, media_type, body).err(), Some(expected), "{media_type} {body}");
        }
        assert!(read(Dialect::Hydra, FORM, "resource=a&resource=b").is_ok());
    }

    #[test]
    fn one_method_at_a_time() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(FORM));
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Basic aWQ6eA=="));
        let read = |body: &str| TokenRequest::read(Dialect::Hydra, &headers, body.as_bytes());
        assert_eq!(read("client_secret=x").err(), Some(Unreadable::TwoMethods));
        assert_eq!(read("client_id=id&grant_type=g").unwrap().method, AuthMethod::Basic);
    }
}
