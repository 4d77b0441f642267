//! The bytes of a token request (RFC 6749 §4.4.2). The secret is in the body or in the Authorization header, never in
//! both and never in the URL, and the buffers that hold it are wiped when they are dropped.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::{AuthMethod, BodyFormat, Client};
use crate::secret::Secret;

/// A token request, but for its URL: a POST with these headers and this body.
pub struct EncodedRequest {
    /// The Content-Type header.
    pub content_type: &'static str,
    /// The Authorization header, with `client_secret_basic`.
    pub authorization: Option<Zeroizing<String>>,
    /// The body.
    pub body: Zeroizing<Vec<u8>>,
}

impl EncodedRequest {
    /// The Accept header.
    pub const ACCEPT: &'static str = "application/json";
    /// The Accept-Encoding header. Without it every coding would be acceptable (RFC 9110 §12.5.3).
    pub const ACCEPT_ENCODING: &'static str = "identity";
}

impl fmt::Debug for EncodedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncodedRequest").field("content_type", &self.content_type).finish_non_exhaustive()
    }
}

/// Writes the token request of `client` with `secret`.
///
/// Order: grant_type, client_id, client_secret, audience, resource…, scope, then the extra ones by name. With
/// `client_secret_basic` neither of the client's two is in the body: a request has one way of authenticating the client
/// (RFC 6749 §2.3), and servers that compare the two places refuse more than they gain.
pub fn encode(client: &Client, secret: &Secret) -> EncodedRequest {
    let secret = secret.expose_secret();
    let (in_body, authorization) = match client.auth_method {
        AuthMethod::ClientSecretPost => (Some((&*client.client_id, secret)), None),
        AuthMethod::ClientSecretBasic => (None, Some(basic(&client.client_id, secret))),
    };
    let scope = client.scopes.iter().map(crate::token::Scope::as_str).collect::<Vec<_>>().join(" ");
    let mut extra: Vec<_> = client.extra.iter().map(|(name, value)| (&**name, &**value)).collect();
    extra.sort_unstable();

    let mut single = vec![("grant_type", "client_credentials")];
    if let Some((id, secret)) = in_body {
        single.extend([("client_id", id), ("client_secret", secret)]);
    }
    single.extend(client.audience.as_deref().map(|audience| ("audience", audience)));
    let mut last = Vec::new();
    last.extend((!scope.is_empty()).then_some(("scope", scope.as_str())));
    last.extend(extra);

    let resource = &client.resource;
    match client.body {
        BodyFormat::Form => {
            let all = single.into_iter().chain(resource.iter().map(|uri| ("resource", &**uri))).chain(last);
            EncodedRequest {
                content_type: "application/x-www-form-urlencoded",
                authorization,
                body: form(&all.collect::<Vec<_>>()),
            }
        }
        BodyFormat::Json => EncodedRequest {
            content_type: "application/json",
            authorization,
            body: json(&single, resource, &last),
        },
    }
}

/// `Basic`, with both parts form-encoded before they are joined (RFC 6749 §2.3.1). A server that does not decode them
/// is served by `client_secret_post`.
fn basic(id: &str, secret: &str) -> Zeroizing<String> {
    // Each buffer is made as long as it can get: one that grew would leave a copy behind.
    let mut pair = Zeroizing::new(Vec::with_capacity(3 * (id.len() + secret.len()) + 1));
    push_form(&mut pair, id);
    pair.push(b':');
    push_form(&mut pair, secret);
    let mut header = Zeroizing::new(String::with_capacity("Basic ".len() + pair.len().div_ceil(3) * 4));
    header.push_str("Basic ");
    STANDARD.encode_string(&*pair, &mut header);
    header
}

fn form(parameters: &[(&str, &str)]) -> Zeroizing<Vec<u8>> {
    let longest = parameters.iter().map(|(name, value)| 3 * (name.len() + value.len()) + 2).sum();
    let mut body = Zeroizing::new(Vec::with_capacity(longest));
    for (name, value) in parameters {
        if !body.is_empty() {
            body.push(b'&');
        }
        push_form(&mut body, name);
        body.push(b'=');
        push_form(&mut body, value);
    }
    body
}

/// `application/x-www-form-urlencoded` of the WHATWG, which RFC 6749 appendix B asks for: a space is `+`.
fn push_form(buffer: &mut Vec<u8>, text: &str) {
    for part in form_urlencoded::byte_serialize(text.as_bytes()) {
        buffer.extend_from_slice(part.as_bytes());
    }
}

/// One object of strings. JSON has no member twice, so several resources are an array.
fn json(first: &[(&str, &str)], resource: &[Box<str>], last: &[(&str, &str)]) -> Zeroizing<Vec<u8>> {
    // A control character, the longest escape, is in no value that was checked.
    let pairs =
        first.iter().chain(last).map(|(name, value)| 2 * (name.len() + value.len()) + 6).sum::<usize>();
    let longest = pairs + resource.iter().map(|uri| 2 * uri.len() + 3).sum::<usize>() + 16;
    let mut body = Zeroizing::new(Vec::with_capacity(longest));
    let mut separator = b'{';
    let mut name = |body: &mut Vec<u8>, name: &str| {
        body.push(separator);
        separator = b',';
        push_json(body, name);
        body.push(b':');
    };
    for (key, value) in first {
        name(&mut body, key);
        push_json(&mut body, value);
    }
    match resource {
        [] => {}
        [uri] => {
            name(&mut body, "resource");
            push_json(&mut body, uri);
        }
        several => {
            name(&mut body, "resource");
            let mut separator = b'[';
            for uri in several {
                body.push(separator);
                separator = b',';
                push_json(&mut body, uri);
            }
            body.push(b']');
        }
    }
    for (key, value) in last {
        name(&mut body, key);
        push_json(&mut body, value);
    }
    body.push(b'}');
    body
}

/// A JSON string (RFC 8259 §7): what must be escaped is escaped, the rest is UTF-8.
fn push_json(buffer: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    buffer.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => buffer.extend([b'\\', byte]),
            0x00..=0x1f => {
                buffer.extend(b"\\u00");
                buffer.extend([HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 0xf)]]);
            }
            _ => buffer.push(byte),
        }
    }
    buffer.push(b'"');
}

/// Every form in which a request can have carried `secret`: a provider that reflects it reflects one of these.
pub(super) fn forms_of(client_id: &str, secret: &Secret) -> Vec<Zeroizing<String>> {
    let secret = secret.expose_secret();
    let text = |bytes: &[u8]| Zeroizing::new(String::from_utf8_lossy(bytes).into_owned());
    let mut form = Zeroizing::new(Vec::with_capacity(3 * secret.len()));
    push_form(&mut form, secret);
    let mut json = Zeroizing::new(Vec::with_capacity(2 * secret.len() + 2));
    push_json(&mut json, secret);
    let header = basic(client_id, secret);
    let credential = header.trim_start_matches("Basic ").trim_end_matches('=');
    let mut forms = vec![
        Zeroizing::new(credential.to_owned()),
        text(&form),
        text(
            json.trim_ascii_start()
                .strip_prefix(b"\"")
                .and_then(|t| t.strip_suffix(b"\""))
                .unwrap_or_default(),
        ),
        Zeroizing::new(secret.to_owned()),
    ];
    forms.dedup();
    forms
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{oauth2::Endpoint, token::Scope};

    fn secret(text: &str) -> Secret {
        Secret::parse(Zeroizing::new(text.as_bytes().to_vec())).unwrap()
    }

    fn client(auth_method: AuthMethod, body: BodyFormat) -> Client {
        Client {
            endpoint: Endpoint::parse("https://id.example.com/token?tenant=a").unwrap(),
            client_id: "my id".into(),
            auth_method,
            body,
            audience: None,
            resource: Vec::new(),
            scopes: Vec::new(),
            extra: Vec::new(),
        }
    }

    fn full(auth_method: AuthMethod, body: BodyFormat) -> Client {
        Client {
            audience: Some("https://api.example.com/?a=b&c".into()),
            resource: vec!["urn:b".into(), "urn:a".into()],
            scopes: ["write:all", "read"].map(|s| Scope::parse(s).unwrap()).to_vec(),
            extra: vec![("z".into(), "1".into()), ("organization".into(), "\u{e9}\"\\".into())],
            ..client(auth_method, body)
        }
    }

    fn body(request: &EncodedRequest) -> &str {
        std::str::from_utf8(&request.body).unwrap()
    }

    #[test]
    fn what_is_printed_of_a_client_and_its_request_has_neither_a_secret_nor_an_extra_value() {
        let client = full(AuthMethod::ClientSecretBasic, BodyFormat::Form);
        let printed = format!("{client:?}");
        for part in ["id.example.com", "my id", "api.example.com", "urn:b", "write:all", "organization"] {
            assert!(printed.contains(part), "{part}: {printed}");
        }
        assert!(!printed.contains('\u{e9}'), "{printed}");
        let printed = format!("{:?}", encode(&client, &secret("p@s+s")));
        assert!(printed.contains("x-www-form-urlencoded"), "{printed}");
        for part in ["p@s", "p%40s", "bXkraWQ", "organization"] {
            assert!(!printed.contains(part), "{part}: {printed}");
        }
    }

    #[test]
    fn every_request_is_written_byte_for_byte() {
        use AuthMethod::{ClientSecretBasic as Basic, ClientSecretPost as Post};
        use BodyFormat::{Form, Json};
        for (name, client, content_type, authorization, wanted) in [
            (
                "form, post, nothing optional",
                client(Post, Form),
                "application/x-www-form-urlencoded",
                None,
                "grant_type=client_credentials&client_id=my+id&client_secret=p%40s%2Bs",
            ),
            (
                "form, post, everything",
                full(Post, Form),
                "application/x-www-form-urlencoded",
                None,
                "grant_type=client_credentials&client_id=my+id&client_secret=p%40s%2Bs\
                 &audience=https%3A%2F%2Fapi.example.com%2F%3Fa%3Db%26c&resource=urn%3Ab&resource=urn%3Aa\
                 &scope=write%3Aall+read&organization=%C3%A9%22%5C&z=1",
            ),
            (
                "form, basic: neither id nor secret in the body",
                full(Basic, Form),
                "application/x-www-form-urlencoded",
                // my+id:p%40s%2Bs
                Some("Basic bXkraWQ6cCU0MHMlMkJz"),
                "grant_type=client_credentials\
                 &audience=https%3A%2F%2Fapi.example.com%2F%3Fa%3Db%26c&resource=urn%3Ab&resource=urn%3Aa\
                 &scope=write%3Aall+read&organization=%C3%A9%22%5C&z=1",
            ),
            (
                "JSON, post, nothing optional",
                client(Post, Json),
                "application/json",
                None,
                r#"{"grant_type":"client_credentials","client_id":"my id","client_secret":"p@s+s"}"#,
            ),
            (
                "JSON, post, everything",
                full(Post, Json),
                "application/json",
                None,
                "{\"grant_type\":\"client_credentials\",\"client_id\":\"my id\",\"client_secret\":\"p@s+s\",\
                 \"audience\":\"https://api.example.com/?a=b&c\",\"resource\":[\"urn:b\",\"urn:a\"],\
                 \"scope\":\"write:all read\",\"organization\":\"\u{e9}\\\"\\\\\",\"z\":\"1\"}",
            ),
            (
                "JSON, basic",
                client(Basic, Json),
                "application/json",
                Some("Basic bXkraWQ6cCU0MHMlMkJz"),
                r#"{"grant_type":"client_credentials"}"#,
            ),
            (
                "JSON, one resource is a string",
                Client { resource: vec!["urn:a".into()], ..client(Basic, Json) },
                "application/json",
                Some("Basic bXkraWQ6cCU0MHMlMkJz"),
                r#"{"grant_type":"client_credentials","resource":"urn:a"}"#,
            ),
        ] {
            let request = encode(&client, &secret("p@s+s"));
            assert_eq!(request.content_type, content_type, "{name}");
            assert_eq!(request.authorization.as_ref().map(|value| value.as_str()), authorization, "{name}");
            assert_eq!(body(&request), wanted, "{name}");
        }
    }

    #[test]
    fn basic_form_encodes_each_part_before_base64() {
        let long = "x".repeat(1024);
        for (id, secret_text, pair) in [
            ("id", "a b", "id:a+b"),
            ("id", "a+b", "id:a%2Bb"),
            ("i:d", "a:b", "i%3Ad:a%3Ab"),
            ("id", "100%", "id:100%25"),
            ("id", "a/b~", "id:a%2Fb%7E"),
            ("id", "caf\u{e9}", "id:caf%C3%A9"),
            ("id", "-._*", "id:-._*"),
            ("id", &long, &format!("id:{long}")),
        ] {
            let client =
                Client { client_id: id.into(), ..client(AuthMethod::ClientSecretBasic, BodyFormat::Form) };
            let request = encode(&client, &secret(secret_text));
            let header = request.authorization.unwrap();
            let decoded = STANDARD.decode(header.strip_prefix("Basic ").unwrap()).unwrap();
            assert_eq!(std::str::from_utf8(&decoded).unwrap(), pair);
            assert_eq!(
                body(&EncodedRequest { authorization: None, ..request }),
                "grant_type=client_credentials"
            );
        }
    }

    #[test]
    fn no_buffer_that_holds_the_secret_ever_grows() {
        // What encodes longest: three bytes for one in a form, two for one in JSON.
        let worst = "\u{e9}".repeat(500);
        assert_eq!(form(&[("a", &worst)]).capacity(), 3 * (1 + worst.len()) + 2);
        let worst = "\"\\".repeat(500);
        let uri = Box::<str>::from("urn:a");
        let body = json(&[("a", &worst)], &[uri.clone(), uri.clone()], &[("b", &worst)]);
        assert_eq!(body.capacity(), 2 * (2 * (1 + worst.len()) + 6) + 2 * (2 * uri.len() + 3) + 16);
        let header = basic(&worst, &worst);
        assert_eq!(header.len(), header.capacity());
    }

    #[test]
    fn json_escapes_what_json_forbids_and_nothing_else() {
        let mut buffer = Vec::new();
        push_json(&mut buffer, "a\"\\\u{1}\u{1f}/\u{e9}\u{2028}");
        assert_eq!(std::str::from_utf8(&buffer).unwrap(), "\"a\\\"\\\\\\u0001\\u001f/\u{e9}\u{2028}\"");
        assert_eq!(serde_json::from_slice::<String>(&buffer).unwrap(), "a\"\\\u{1}\u{1f}/\u{e9}\u{2028}");
    }

    #[test]
    fn a_request_does_not_print() {
        let request = encode(&client(AuthMethod::ClientSecretPost, BodyFormat::Form), &secret("canary"));
        assert!(!format!("{request:?}").contains("canary"));
    }
}
