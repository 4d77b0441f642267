//! From texts of the config to the checked words of [`crate::oauth2`]: what is wrong with each, and what is right.

use super::{file::Item, key::looks_secret, report::Report};
use crate::{
    oauth2::{Endpoint, EndpointFault, ProxyUrl},
    token::Scope,
};

/// Parameters that the agent writes itself, or that have a key of their own: none is sent twice (RFC 6749 §3.2).
const RESERVED: [&str; 9] = [
    "grant_type",
    "client_id",
    "client_secret",
    "client_assertion",
    "client_assertion_type",
    "scope",
    "audience",
    "resource",
    "refresh_token",
];

/// `token_url`.
pub(super) fn endpoint(item: &Item<'_, &str>, report: &mut Report) -> Option<Endpoint> {
    let fault = match Endpoint::parse(item.value) {
        Ok(endpoint) if has_secret_in_query(item.value) => {
            // RFC 6749 §2.3.1: the credentials must not be in the request's URI.
            report.secret(&item.spot);
            drop(endpoint);
            return None;
        }
        Ok(endpoint) => return Some(endpoint),
        Err(fault) => fault,
    };
    let right = match fault {
        EndpointFault::NotHttps => "write https://; a test uses TLS with ca_file, or `bloom-agent dev`",
        EndpointFault::UserInfo => "take it out: the client is client_id and client_secret",
        EndpointFault::Fragment => "take out '#' and what follows (RFC 6749 §3.2)",
        _ => "write the token endpoint's URL, as in \"https://id.example.com/oauth2/token\"",
    };
    report.fault(&item.spot, fault.to_string(), right);
    None
}

fn has_secret_in_query(url: &str) -> bool {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    url::form_urlencoded::parse(query.as_bytes()).any(|(name, _)| looks_secret(&name))
}

/// `proxy`.
pub(super) fn proxy(item: &Item<'_, &str>, report: &mut Report) -> Option<ProxyUrl> {
    match ProxyUrl::parse(item.value) {
        Ok(proxy) => Some(proxy),
        Err(fault) => {
            report.fault(&item.spot, fault.to_string(), "write \"http://host:port\"");
            None
        }
    }
}

/// `base_url`, of which one trailing slash is dropped.
pub(super) fn base_url<'a>(item: &Item<'a, &'a str>, report: &mut Report) -> Option<&'a str> {
    let bare =
        |url: &url::Url| url.username().is_empty() && url.password().is_none() && url.query().is_none();
    let text = item.value;
    match url::Url::parse(text) {
        Ok(url) if bare(&url) && url.scheme() == "https" && url.fragment().is_none() && is_visible(text) => {
            Some(text.strip_suffix('/').unwrap_or(text))
        }
        _ => {
            let wrong = "is not an https URL without user, query and fragment";
            report.fault(
                &item.spot,
                wrong,
                "write your own Blooma address, as in \"https://example.blooma.ai\"",
            );
            None
        }
    }
}

/// `client_id`: `*VSCHAR` (RFC 6749 appendix A.1), and not empty.
pub(super) fn client_id(item: &Item<'_, &str>, report: &mut Report) -> Option<Box<str>> {
    if !item.value.is_empty() && item.value.bytes().all(|b| (0x20..=0x7e).contains(&b)) {
        return Some(item.value.into());
    }
    report.fault(
        &item.spot,
        "is empty or holds a character other than visible ASCII",
        "write the id as the provider gave it",
    );
    None
}

/// `audience`: an empty parameter would not be sent at all (RFC 6749 §3.2).
pub(super) fn audience(item: &Item<'_, &str>, report: &mut Report) -> Option<Box<str>> {
    if !item.value.is_empty() && !item.value.chars().any(char::is_control) {
        return Some(item.value.into());
    }
    report.fault(
        &item.spot,
        "is empty or holds a control character",
        "write the API's identifier, or leave the key out",
    );
    None
}

/// `resource`: absolute URIs without a fragment (RFC 8707 §2), kept as they were written.
pub(super) fn resource(items: &[Item<'_, &str>], report: &mut Report) -> Vec<Box<str>> {
    let mut resources = Vec::new();
    for item in items {
        let absolute =
            url::Url::parse(item.value).is_ok() && is_visible(item.value) && !item.value.contains('#');
        if !absolute {
            report.fault(
                &item.spot,
                "is not an absolute URI without a fragment (RFC 8707)",
                "write \"https://host/path\"",
            );
        } else if resources.contains(&Box::from(item.value)) {
            report.fault(&item.spot, "stands twice in the list", "keep one of the two");
        } else {
            resources.push(item.value.into());
        }
    }
    resources
}

/// `scopes`.
pub(super) fn scopes(items: &[Item<'_, &str>], report: &mut Report) -> Vec<Scope> {
    let mut scopes = Vec::new();
    for item in items {
        match Scope::parse(item.value) {
            Ok(scope) if scopes.contains(&scope) => {
                report.fault(&item.spot, "stands twice in the list", "keep one of the two");
            }
            Ok(scope) => scopes.push(scope),
            Err(fault) => {
                report.fault(&item.spot, fault.to_string(), "write one scope in each pair of quotes");
            }
        }
    }
    scopes
}

/// One entry of `extra`; the name is that of the key.
pub(super) fn extra(name: &str, item: &Item<'_, &str>, report: &mut Report) -> Option<(Box<str>, Box<str>)> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if looks_secret(name) {
        report.secret(&item.spot);
    } else if is_reserved(name) {
        let wrong = "is a parameter that the agent writes itself";
        report.fault(&item.spot, wrong, "take it out, or use the key of its own");
    } else if name.is_empty() || !name.bytes().all(fits) {
        // param-name = 1*name-char, name-char = "-" / "." / "_" / DIGIT / ALPHA (RFC 6749 §8.2).
        report.fault(
            &item.spot,
            "is not a parameter's name",
            "use letters, digits, '-', '.' and '_' (RFC 6749 §8.2)",
        );
    } else if item.value.is_empty() || item.value.chars().any(char::is_control) {
        report.fault(
            &item.spot,
            "is empty or holds a control character",
            "write the parameter's value, or leave it out",
        );
    } else {
        return Some((name.into(), item.value.into()));
    }
    None
}

/// Whether `extra` may not have it, in any spelling of its case: some servers do not tell them apart.
pub(super) fn is_reserved(name: &str) -> bool {
    RESERVED.iter().any(|reserved| reserved.eq_ignore_ascii_case(name))
}

fn is_visible(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic())
}
