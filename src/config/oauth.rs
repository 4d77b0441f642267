//! From texts of the config to the checked words of [`crate::oauth2`]: what is wrong with each, and what is right.

use super::{file::Item, key::looks_secret, report::Report};
use crate::{
    oauth2::{self, Endpoint, EndpointFault, ParameterFault, ProxyUrl},
    token::Scope,
};

/// `token_url`.
pub(super) fn endpoint(item: &Item<'_, &str>, report: &mut Report) -> Option<Endpoint> {
    let fault = match Endpoint::parse(item.value) {
        Ok(endpoint) => return Some(endpoint),
        Err(EndpointFault::CredentialInQuery) => {
            report.secret(&item.spot);
            return None;
        }
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

/// `client_id`.
pub(super) fn client_id(item: &Item<'_, &str>, report: &mut Report) -> Option<Box<str>> {
    let right = "write the id as the provider gave it";
    checked(item, oauth2::client_id(item.value), right, report)
}

/// `audience`.
pub(super) fn audience(item: &Item<'_, &str>, report: &mut Report) -> Option<Box<str>> {
    let right = "write the API's identifier, or leave the key out";
    checked(item, oauth2::audience(item.value), right, report)
}

/// `resource`: each kept as it was written.
pub(super) fn resource(items: &[Item<'_, &str>], report: &mut Report) -> Vec<Box<str>> {
    let mut resources = Vec::new();
    for item in items {
        let resource = checked(item, oauth2::resource(item.value), "write \"https://host/path\"", report);
        match resource {
            Some(resource) if resources.contains(&resource) => {
                report.fault(&item.spot, "stands twice in the list", "keep one of the two");
            }
            resource => resources.extend(resource),
        }
    }
    resources
}

fn checked<T>(
    item: &Item<'_, &str>,
    parameter: Result<T, ParameterFault>,
    right: &'static str,
    report: &mut Report,
) -> Option<T> {
    parameter.map_err(|fault| report.fault(&item.spot, fault.to_string(), right)).ok()
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
    if looks_secret(name) {
        report.secret(&item.spot);
        return None;
    }
    let parameter = oauth2::extra_parameter(name, item.value);
    let right = match parameter {
        Err(ParameterFault::Credential) => {
            report.secret(&item.spot);
            return None;
        }
        Err(ParameterFault::Reserved) => "take it out, or use the key of its own",
        Err(ParameterFault::NotAName) => "correct the name, or take it out",
        _ => "write the parameter's value, or leave it out",
    };
    checked(item, parameter, right, report)
}

fn is_visible(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic())
}
