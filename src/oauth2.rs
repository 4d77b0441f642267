//! The client of RFC 6749 §4.4, pure: what a token request says, byte for byte, and what an answer means.
//!
//! No network, no clock, no secret kept: [`encode`] borrows the secret for the bytes it writes, [`read`] borrows the
//! answer. The types here are the checked words of a profile's config; [`crate::http`] carries what they make.

use crate::token::Scope;

/// A token endpoint: `https`, no user, no fragment; a query is kept (RFC 6749 §3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(url::Url);

/// Why a text is not the URL of a token endpoint. It never holds any of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointFault {
    /// No absolute URL with a host.
    #[error("is not a URL")]
    NotAUrl,
    /// `http://`, also on loopback (RFC 6749 §3.2).
    #[error("is not https")]
    NotHttps,
    /// `user:password@`.
    #[error("holds a user or a password")]
    UserInfo,
    /// `#…` (RFC 6749 §3.2).
    #[error("holds a fragment")]
    Fragment,
}

impl Endpoint {
    /// Checks `text`.
    pub fn parse(text: &str) -> Result<Self, EndpointFault> {
        let url = url::Url::parse(text).map_err(|_| EndpointFault::NotAUrl)?;
        if url.scheme() != "https" {
            return Err(EndpointFault::NotHttps);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(EndpointFault::UserInfo);
        }
        if url.fragment().is_some() {
            return Err(EndpointFault::Fragment);
        }
        Ok(Self(url))
    }

    /// The URL.
    pub fn as_url(&self) -> &url::Url {
        &self.0
    }
}

/// A proxy that is asked by CONNECT: `http://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyUrl(url::Url);

/// Why a text is not the URL of a proxy. It never holds any of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not http://host:port without a user, a password or a path")]
pub struct ProxyFault;

impl ProxyUrl {
    /// Checks `text`.
    pub fn parse(text: &str) -> Result<Self, ProxyFault> {
        let url = url::Url::parse(text).map_err(|_| ProxyFault)?;
        let bare = url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        let port = text
            .trim_end_matches('/')
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|p| p > 0));
        let whole =
            url.scheme() == "http" && url.host().is_some() && matches!(url.path(), "" | "/") && bare && port;
        if whole { Ok(Self(url)) } else { Err(ProxyFault) }
    }

    /// The URL.
    pub fn as_url(&self) -> &url::Url {
        &self.0
    }
}

/// How the client proves who it is (RFC 6749 §2.3.1; names of the RFC 7591 registry).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthMethod {
    /// In the body.
    #[default]
    ClientSecretPost,
    /// In the Authorization header, each part form-encoded before Base64.
    ClientSecretBasic,
}

/// How the parameters are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyFormat {
    /// `application/x-www-form-urlencoded`, RFC 6749's own.
    #[default]
    Form,
    /// `application/json`, which Auth0 takes as well.
    Json,
}

/// Everything of a token request but the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Where to.
    pub endpoint: Endpoint,
    /// `client_id`: not empty, visible ASCII and space (RFC 6749 appendix A.1).
    pub client_id: Box<str>,
    /// How the secret is sent.
    pub auth_method: AuthMethod,
    /// How the parameters are written.
    pub body: BodyFormat,
    /// `audience`, of Auth0 and Hydra.
    pub audience: Option<Box<str>>,
    /// `resource`, absolute URIs without a fragment (RFC 8707).
    pub resource: Vec<Box<str>>,
    /// `scope`, in this order; left out when empty.
    pub scopes: Vec<Scope>,
    /// Further parameters, sorted by name; none of them is reserved.
    pub extra: Vec<(Box<str>, Box<str>)>,
}
