//! What a record is compared by: the boot, the identity, and marks that tell a change and nothing else.

use std::fmt;

use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac,
};
use zeroize::Zeroizing;

use crate::{
    oauth2::{AuthMethod, BodyFormat, Client},
    token::Scope,
};

/// Which boot of the host (random(4), boot_id).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootId(pub(super) [u8; 16]);

/// A text that is not a boot id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a boot id (32 hexadecimal digits)")]
pub struct NotABootId;

impl BootId {
    /// Reads it as systemd's `%b` writes it (32 digits), or as the kernel does (with hyphens and a newline).
    pub fn parse(text: &str) -> Result<Self, NotABootId> {
        let digits: String = text.trim_end_matches('\n').chars().filter(|c| *c != '-').collect();
        // u128's parser takes a sign as well.
        if digits.len() != 32 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotABootId);
        }
        u128::from_str_radix(&digits, 16).map(|id| Self(id.to_be_bytes())).map_err(|_| NotABootId)
    }
}

/// A SHA-256 of what is no secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub(super) [u8; 32]);

impl Digest {
    /// Of these parts, each with its length, so that no two lists of parts are the same bytes.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut canonical = Vec::new();
        parts.into_iter().for_each(|part| counted(&mut canonical, part));
        let mut value = [0; 32];
        value.copy_from_slice(digest(&SHA256, &canonical).as_ref());
        Self(value)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A few digits tell one from another.
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "Digest({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}

fn counted(into: &mut Vec<u8>, part: &[u8]) {
    into.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
    into.extend_from_slice(part);
}

/// What tokens of this client are for: the same for two of them exactly if their profiles have the same identity
/// ([`crate::config::Profile::same_identity`]).
pub fn identity(client: &Client) -> Digest {
    // All of it, by name: what is added there has to be looked at here.
    let Client { endpoint, client_id, auth_method, body, audience, resource, scopes, extra } = client;
    let method: &[u8] = match auth_method {
        AuthMethod::ClientSecretPost => b"client_secret_post",
        AuthMethod::ClientSecretBasic => b"client_secret_basic",
    };
    let body: &[u8] = match body {
        BodyFormat::Form => b"form",
        BodyFormat::Json => b"json",
    };
    // An audience that is left out is not an empty one; a list is one part, so that no neighbour can lend it an item.
    let audience = list(audience.as_deref());
    let resource = list(sorted(resource.iter().map(AsRef::as_ref)));
    let scopes = list(sorted(scopes.iter().map(Scope::as_str)));
    let extra = list(extra.iter().flat_map(|(name, value)| [name.as_ref(), value.as_ref()]));
    let parts: [&[u8]; 8] = [
        endpoint.as_str().as_bytes(),
        client_id.as_bytes(),
        method,
        body,
        &audience,
        &resource,
        &scopes,
        &extra,
    ];
    Digest::of(parts)
}

fn sorted<'a>(items: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut items: Vec<_> = items.collect();
    items.sort_unstable();
    items
}

fn list<'a>(items: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut list = Vec::new();
    items.into_iter().for_each(|item| counted(&mut list, item.as_bytes()));
    list
}

/// Tells whether some texts are others than they were: 16 bits of an HMAC-SHA-256 under a random key of its own.
///
/// It is made for client secrets: it takes 16 bits of guessing off a secret, and confirms no guess. A change is missed once
/// in 65,536 times, and then found when the back-off is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub(super) key: [u8; 16],
    pub(super) tag: [u8; 2],
}

impl Mark {
    /// Of these texts, where there are any, under a `key` that is random, and the same for all marks that one process makes of
    /// them: a second mark says no more than the first.
    pub fn of(key: [u8; 16], texts: &[Option<&[u8]>]) -> Self {
        /// What SHA-256 takes at once.
        const BLOCK: usize = 64;
        let length: usize = texts.iter().map(|text| 9 + text.map_or(0, <[u8]>::len)).sum();
        let whole = length.next_multiple_of(BLOCK);
        let mut message = Zeroizing::new(Vec::with_capacity(whole));
        for text in texts {
            message.push(u8::from(text.is_some()));
            counted(&mut message, text.unwrap_or_default());
        }
        // In whole blocks, which go by the hash's own buffer: on the stack, it would keep the rest of a secret.
        message.resize(whole, 0);
        let hash = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), &message);
        let mut tag = [0; 2];
        tag.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
        Self { key, tag }
    }

    /// Whether these may be the texts that it was made of.
    pub fn fits(&self, texts: &[Option<&[u8]>]) -> bool {
        Self::of(self.key, texts) == *self
    }
}
