//! The client of RFC 6749 §4.4, pure: what a token request says, byte for byte, and what an answer means.
//!
//! No network, no clock, no secret kept: [`encode()`] borrows the secret for the bytes it writes, [`read`] borrows the
//! answer. The types here are the checked words of a profile's config; [`crate::http`] carries what they make.

mod answer;
mod deviation;
mod encode;
mod endpoint;
mod expires_in;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod json;
mod parameter;
mod refusal;
mod retry_after;
pub mod words;

pub use answer::{Answer, BodyEnd, Grant, Rules, ScopeRule, read};
pub use deviation::{Deviation, Deviations};
pub use encode::{EncodedRequest, encode};
pub use endpoint::{Endpoint, EndpointFault, ProxyFault, ProxyUrl};
pub use parameter::{ParameterFault, audience, client_id, extra_parameter, resource};
pub use refusal::{Credentials, Rejection};

use std::fmt;

use crate::token::Scope;

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
#[derive(Clone, PartialEq, Eq)]
pub struct Client {
    /// Where to.
    pub endpoint: Endpoint,
    /// `client_id`, checked by [`client_id`].
    pub client_id: Box<str>,
    /// How the secret is sent.
    pub auth_method: AuthMethod,
    /// How the parameters are written.
    pub body: BodyFormat,
    /// `audience`, of Auth0 and Hydra, checked by [`audience`].
    pub audience: Option<Box<str>>,
    /// `resource`, each checked by [`resource`] (RFC 8707).
    pub resource: Vec<Box<str>>,
    /// `scope`, in this order; left out when empty.
    pub scopes: Vec<Scope>,
    /// Further parameters, each checked by [`extra_parameter`]. [`encode()`] writes them sorted by name.
    pub extra: Vec<(Box<str>, Box<str>)>,
}

/// Of the extra parameters only the names: a provider may take one for a credential.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let extra: Vec<_> = self.extra.iter().map(|(name, _)| name).collect();
        f.debug_struct("Client")
            .field("endpoint", &self.endpoint)
            .field("client_id", &self.client_id)
            .field("auth_method", &self.auth_method)
            .field("body", &self.body)
            .field("audience", &self.audience)
            .field("resource", &self.resource)
            .field("scopes", &self.scopes)
            .field("extra", &extra)
            .finish()
    }
}
