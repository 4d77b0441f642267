//! Where a token request goes, and the proxy it goes through. An `http://` endpoint cannot come from a config.

use std::{fmt, net::SocketAddr};

use url::Url;

/// A token endpoint: `https`, no user, no fragment; a query is kept (RFC 6749 §3.2).
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint(Url);

/// Why a text is not a token endpoint. It never holds any of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointFault {
    /// Whitespace, control characters, `\` or non-ASCII: parsers of URLs mend these, each in its own way.
    #[error("holds a character that no URL may hold (a name that is not ASCII is written in its xn-- form)")]
    Character,
    /// No URL, or a relative one.
    #[error("is not an absolute URL (like https://id.example.com/oauth2/token)")]
    NotAUrl,
    /// RFC 6749 §3.2: a token request is sent with TLS, to localhost too.
    #[error("does not start with https://")]
    NotHttps,
    /// A user or a password before the host.
    #[error("names a user or a password (write the client with client_id and client_secret)")]
    UserInfo,
    /// RFC 6749 §3.2.
    #[error("has a fragment, '#…' (RFC 6749 §3.2 forbids it)")]
    Fragment,
    /// A port that nothing can listen on.
    #[error("has the port 0")]
    Port,
    /// RFC 6749 §2.3.1: credentials are never in a URL, which ends up in logs.
    #[error(
        "has a credential in its query (RFC 6749 §2.3.1 forbids it; write the secret with client_secret)"
    )]
    CredentialInQuery,
    /// The one way to an `http://` endpoint is for the loopback only.
    #[error("is not on the loopback")]
    NotLoopback,
}

/// What credentials are called in a query, where they must not stand (RFC 6749 §2.3.1): URLs get into logs.
const CREDENTIALS: [&str; 7] =
    ["client_secret", "client_assertion", "secret", "password", "api_key", "apikey", "access_token"];

impl Endpoint {
    /// Checks `text`, an `https` URL.
    pub fn parse(text: &str) -> Result<Self, EndpointFault> {
        let url = absolute(text).map_err(|fault| match fault {
            UrlFault::Character => EndpointFault::Character,
            UrlFault::NotAUrl => EndpointFault::NotAUrl,
            UrlFault::UserInfo => EndpointFault::UserInfo,
        })?;
        if url.scheme() != "https" {
            return Err(EndpointFault::NotHttps);
        }
        if url.fragment().is_some() {
            return Err(EndpointFault::Fragment);
        }
        if url.port() == Some(0) {
            return Err(EndpointFault::Port);
        }
        let credential = |name: &str| CREDENTIALS.iter().any(|reserved| name.eq_ignore_ascii_case(reserved));
        if url.query_pairs().any(|(name, _)| credential(&name)) {
            return Err(EndpointFault::CredentialInQuery);
        }
        Ok(Self(url))
    }

    /// An `http://` endpoint on the loopback: for `dev`, whose issuer lives in the same process, and for nothing else.
    /// `path` starts with `/`.
    pub fn loopback(address: SocketAddr, path: &str) -> Result<Self, EndpointFault> {
        if !address.ip().is_loopback() {
            return Err(EndpointFault::NotLoopback);
        }
        if !path.starts_with('/') || path.contains(['?', '#']) {
            return Err(EndpointFault::NotAUrl);
        }
        absolute(&format!("http://{address}{path}")).map(Self).map_err(|_| EndpointFault::NotAUrl)
    }

    /// The URL, as it is asked.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The host: a name, an IPv4 address, or an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }

    /// The port; 443 where the URL names none.
    pub fn port(&self) -> u16 {
        self.0.port_or_known_default().unwrap_or(443)
    }

    /// Whether it is one of [`Self::loopback`]'s, without TLS.
    pub fn is_plaintext(&self) -> bool {
        self.0.scheme() == "http"
    }

    /// The URL for people who configure it: of a query, which may hold a credential of a name unknown to us, only that it
    /// is there.
    pub fn without_query(&self) -> String {
        let (address, query) =
            self.0.as_str().split_once('?').map_or((self.as_str(), ""), |(a, _)| (a, "?..."));
        format!("{address}{query}")
    }

    pub(crate) fn url(&self) -> &Url {
        &self.0
    }
}

/// `host:port`, for people: the path and the query stay out of logs.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host(), self.port())
    }
}

/// The same, because a query that is not known for a credential may be one.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self}/…)")
    }
}

/// A proxy that is asked by CONNECT: `http://host:port` and no more.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProxyUrl(Url);

/// Why a text is not a proxy. It never holds any of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyFault {
    /// Anything but `http://host:port`.
    #[error("is not of the form http://host:port")]
    Form,
    /// A user or a password before the host.
    #[error("names a user or a password (a proxy of the agent has none)")]
    UserInfo,
    /// There is no port that all proxies have.
    #[error("names no port (http://host:port)")]
    NoPort,
}

impl ProxyUrl {
    /// Checks `text`.
    pub fn parse(text: &str) -> Result<Self, ProxyFault> {
        let url = absolute(text).map_err(|fault| match fault {
            UrlFault::UserInfo => ProxyFault::UserInfo,
            UrlFault::Character | UrlFault::NotAUrl => ProxyFault::Form,
        })?;
        if url.scheme() != "http" || url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err(ProxyFault::Form);
        }
        // `url` drops a port that is the scheme's own, so this looks at what was written.
        let written =
            text.trim_end_matches('/').rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        match written {
            Some(port) if port != 0 => Ok(Self(url)),
            _ => Err(ProxyFault::NoPort),
        }
    }

    /// `http://host:port/`; the port is left out where it is 80.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The host: a name, an IPv4 address, or an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.0.port_or_known_default().unwrap_or(80)
    }
}

/// `host:port`.
impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host(), self.port())
    }
}

enum UrlFault {
    Character,
    NotAUrl,
    UserInfo,
}

fn absolute(text: &str) -> Result<Url, UrlFault> {
    if !text.bytes().all(|b| matches!(b, 0x21..=0x7e) && b != b'\\') {
        return Err(UrlFault::Character);
    }
    // The first colon ends the scheme: `url` takes `https:user@host://path` for `https://user@host://path`.
    let rest = text.split_once(':').and_then(|(_, rest)| rest.strip_prefix("//")).ok_or(UrlFault::NotAUrl)?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    // `url` drops an empty user, and takes `https:///host` for `https://host`.
    if authority.contains('@') {
        return Err(UrlFault::UserInfo);
    }
    if authority.is_empty() {
        return Err(UrlFault::NotAUrl);
    }
    Url::parse(text).ok().filter(Url::has_host).ok_or(UrlFault::NotAUrl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_https_url_is_an_endpoint_and_keeps_its_query() {
        for (text, host, port, url) in [
            ("https://a.example/token", "a.example", 443, "https://a.example/token"),
            ("HTTPS://A.example:443/t", "a.example", 443, "https://a.example/t"),
            ("https://a.example", "a.example", 443, "https://a.example/"),
            (
                "https://a.example:8443/t?tenant=b&x=%20",
                "a.example",
                8443,
                "https://a.example:8443/t?tenant=b&x=%20",
            ),
            ("https://[::1]:1/t", "[::1]", 1, "https://[::1]:1/t"),
            ("https://a.example/t@b?user=c@d", "a.example", 443, "https://a.example/t@b?user=c@d"),
        ] {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!((endpoint.host(), endpoint.port(), endpoint.as_str()), (host, port, url), "{text}");
            assert!(!endpoint.is_plaintext());
        }
    }

    #[test]
    fn anything_else_is_refused_by_the_rule_that_it_breaks() {
        for (text, fault) in [
            ("", EndpointFault::NotAUrl),
            ("a.example/token", EndpointFault::NotAUrl),
            ("https://", EndpointFault::NotAUrl),
            ("https:///a.example", EndpointFault::NotAUrl),
            ("https://:443/", EndpointFault::NotAUrl),
            ("https:a.example/token", EndpointFault::NotAUrl),
            ("https:user@a.example://b", EndpointFault::NotAUrl),
            ("https://a.example:70000/", EndpointFault::NotAUrl),
            ("http://a.example/token", EndpointFault::NotHttps),
            ("http://localhost/token", EndpointFault::NotHttps),
            ("http://127.0.0.1:1/token", EndpointFault::NotHttps),
            ("ftp://a.example/", EndpointFault::NotHttps),
            ("https://user@a.example/", EndpointFault::UserInfo),
            ("https://@a.example/", EndpointFault::UserInfo),
            ("https://u:p@a.example/", EndpointFault::UserInfo),
            ("https://a.example/#", EndpointFault::Fragment),
            ("https://a.example/t#x", EndpointFault::Fragment),
            ("https://a.example:0/", EndpointFault::Port),
            (" https://a.example/", EndpointFault::Character),
            ("https://a.exa\nmple/", EndpointFault::Character),
            ("https:\\\\a.example/", EndpointFault::Character),
            ("https://b\u{fc}cher.example/", EndpointFault::Character),
            ("https://a.example/?client_secret=x", EndpointFault::CredentialInQuery),
            ("https://a.example/?a=b&Client%5FSecret=x", EndpointFault::CredentialInQuery),
            ("https://a.example/?api_key=x", EndpointFault::CredentialInQuery),
        ] {
            assert_eq!(Endpoint::parse(text), Err(fault), "{text}");
        }
    }

    #[test]
    fn the_one_http_endpoint_is_on_the_loopback() {
        let endpoint = Endpoint::loopback("127.0.0.1:80".parse().unwrap(), "/token").unwrap();
        assert_eq!((endpoint.host(), endpoint.port(), endpoint.is_plaintext()), ("127.0.0.1", 80, true));
        assert!(Endpoint::loopback("[::1]:9".parse().unwrap(), "/token").is_ok());
        assert_eq!(
            Endpoint::loopback("192.0.2.1:9".parse().unwrap(), "/token"),
            Err(EndpointFault::NotLoopback)
        );
        for path in ["token", "@a.example/", "/t?q", "/t#f", "/t t"] {
            assert_eq!(
                Endpoint::loopback("127.0.0.1:9".parse().unwrap(), path),
                Err(EndpointFault::NotAUrl),
                "{path}"
            );
        }
    }

    #[test]
    fn an_endpoint_prints_without_path_and_query() {
        let endpoint = Endpoint::parse("https://a.example/t?tenant=b").unwrap();
        assert_eq!(endpoint.to_string(), "a.example:443");
        assert_eq!(endpoint.without_query(), "https://a.example/t?...");
        assert_eq!(Endpoint::parse("https://a.example/t").unwrap().without_query(), "https://a.example/t");
        assert_eq!(format!("{endpoint:?}"), "Endpoint(a.example:443/…)");
    }

    #[test]
    fn a_proxy_is_a_host_and_a_port() {
        for (text, host, port, url) in [
            ("http://proxy.example:3128", "proxy.example", 3128, "http://proxy.example:3128/"),
            ("http://proxy.example:80", "proxy.example", 80, "http://proxy.example/"),
            ("http://[::1]:3128/", "[::1]", 3128, "http://[::1]:3128/"),
        ] {
            let proxy = ProxyUrl::parse(text).unwrap();
            assert_eq!((proxy.host(), proxy.port(), proxy.as_str()), (host, port, url), "{text}");
            assert_eq!(proxy.to_string(), format!("{host}:{port}"));
        }
        for (text, fault) in [
            ("http://proxy.example", ProxyFault::NoPort),
            ("http://proxy.example:", ProxyFault::NoPort),
            ("http://proxy.example:0", ProxyFault::NoPort),
            ("http://[::1]", ProxyFault::NoPort),
            ("https://proxy.example:3128", ProxyFault::Form),
            ("socks5://proxy.example:3128", ProxyFault::Form),
            ("http://proxy.example:3128/x", ProxyFault::Form),
            ("http://proxy.example:3128/?x", ProxyFault::Form),
            ("http://proxy.example:3128#x", ProxyFault::Form),
            ("proxy.example:3128", ProxyFault::Form),
            ("http:u@proxy.example://:3128", ProxyFault::Form),
            ("http://u:p@proxy.example:3128", ProxyFault::UserInfo),
            ("http://u@proxy.example:3128", ProxyFault::UserInfo),
        ] {
            assert_eq!(ProxyUrl::parse(text), Err(fault), "{text}");
        }
    }
}
