//! The client of RFC 6749 §4.4, pure: what a token request says, byte for byte, and what an answer means.
//!
//! No network, no clock, no secret kept: [`encode`] borrows the secret for the bytes it writes, [`read`] borrows the
//! answer. The types here are the checked words of a profile's config; [`crate::http`] carries what they make.

use crate::token::Scope;

/// A token endpoint: `https`, no user, no fragment; a query is kept (RFC 6749 §3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(url::Url);

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
