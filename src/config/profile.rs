//! `[tokens.NAME]`: one profile, from its keys to the client, the secrets and the rules that it means.

use std::{path::PathBuf, time::Duration};

use toml::de::DeValue;

use super::{
    agent::{self, AgentConfig},
    credential::CredentialName,
    duration,
    file::{self, Item, Table},
    key, oauth, path,
    provider::{Audience, ENVIRONMENTS, PROVIDERS, Provider, preset},
    report::{Report, SECRET_FORMS},
};
use crate::{
    access::Rules,
    oauth2::{self, AuthMethod, BodyFormat, Client, ParameterFault, ProxyUrl},
    refresh::{Policy, PolicyFault},
    token::{MAX_LIFE, Scope},
};

pub(super) const PROFILE_KEYS: &[&str] = &[
    "provider",
    "environment",
    "base_url",
    "token_url",
    "auth_method",
    "body",
    "audience",
    "resource",
    "scopes",
    "extra",
    "client_id",
    "client_secret",
    "client_secret_next",
    "allow",
    "refresh",
    "assumed_lifetime",
    "require_scope",
    "ca_file",
    "proxy",
];
pub(super) const SECRET_KEYS: &[&str] = &["credential", "file"];
pub(super) const REFRESH_KEYS: &[&str] = &["at", "jitter"];

/// How long a token is taken to live when neither the provider nor the config says it.
pub const DEFAULT_ASSUMED_LIFETIME: Duration = Duration::from_secs(3600);

/// One profile, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// What a token request says, but for the secret.
    pub client: Client,
    /// `client_secret`.
    pub secret: SecretSpec,
    /// `client_secret_next`; never the same as `secret`.
    pub next_secret: Option<SecretSpec>,
    /// `allow`; each line keeps the text it was written as.
    pub rules: Rules,
    /// `refresh`, with the operator's floor; the daemon sets its own.
    pub refresh: Policy,
    /// `assumed_lifetime`: 1 s to 30 days.
    pub assumed_lifetime: Duration,
    /// `require_scope`: a token with fewer scopes than were asked for is refused.
    pub require_scope: bool,
    /// `ca_file`, the profile's own or the agent's: an absolute path.
    pub ca_file: Option<PathBuf>,
    /// `proxy`, the profile's own or the agent's.
    pub proxy: Option<ProxyUrl>,
}

/// Where a secret is read. Two ways, and no third.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSpec {
    /// `credential`: the name of a systemd credential.
    Credential(CredentialName),
    /// `file`: an absolute path.
    File(PathBuf),
}

impl Profile {
    /// Whether tokens of `other` are tokens of this profile too: the same endpoint, client, audience, resources, scopes,
    /// method, and further parameters, whose meaning only the provider knows. Lists are compared without their order,
    /// which changes the bytes of a request but not the token.
    pub fn same_identity(&self, other: &Self) -> bool {
        canonical(&self.client) == canonical(&other.client)
    }

    /// The TCP ports by which its token endpoint is reached, each with the key that says it.
    pub fn ports(&self) -> impl Iterator<Item = (&'static str, u16)> + use<> {
        let proxy = self.proxy.as_ref().map(|proxy| ("proxy", proxy.port()));
        std::iter::once(("token_url", self.client.endpoint.port())).chain(proxy)
    }
}

fn canonical(client: &Client) -> Client {
    let mut client = client.clone();
    client.scopes.sort();
    client.resource.sort();
    client
}

/// Reads a profile. None if its client or its secret cannot be understood; other faults leave it to be judged further.
pub(super) fn profile(table: &Table<'_>, agent: &AgentConfig, report: &mut Report) -> Option<Profile> {
    let client = client(table, report);
    table.require("client_secret", SECRET_FORMS, report);
    let secret = secret(table, "client_secret", report);
    let next_secret = secret_next(table, secret.as_ref(), report);
    let allow = table.strings("allow", report);
    if allow.as_ref().is_some_and(Vec::is_empty) {
        let right = "leave it out to serve the agent's own user as well";
        report.warn(&table.spot_of("allow"), "is empty, so nobody is served but root", right);
    }
    let ca_file = table.string("ca_file", report).and_then(|item| path::ca_file(&item, report));
    let proxy = table.string("proxy", report).and_then(|item| oauth::proxy(&item, report));
    let require_scope = table.boolean("require_scope", report).is_some_and(|item| item.value);
    if require_scope && client.as_ref().is_some_and(|client| client.scopes.is_empty()) {
        report.warn(
            &table.spot_of("require_scope"),
            "has nothing to require without scopes",
            "write scopes, or take it out",
        );
    }
    let refresh = refresh(table, report);
    let assumed_lifetime = assumed_lifetime(table, report);
    let rules = allow.map_or(Rules::OwnerOnly, |items| Rules::Allow(agent::selectors(&items, report)));
    Some(Profile {
        client: client?,
        secret: secret?,
        next_secret,
        rules,
        refresh,
        assumed_lifetime,
        require_scope,
        ca_file: ca_file.or_else(|| agent.ca_file.clone()),
        proxy: proxy.or_else(|| agent.proxy.clone()),
    })
}

fn client(table: &Table<'_>, report: &mut Report) -> Option<Client> {
    table.require("provider", "write provider = \"bloom\", \"bloom-v1\", \"blooma\" or \"oauth2\"", report);
    table.require("client_id", "write client_id = \"…\" as the provider gave it", report);
    let provider = table.choice("provider", &PROVIDERS, report).map(|item| item.value);
    if let Some(provider) = provider {
        suits(table, provider, report);
    }
    let environment = table.choice("environment", &ENVIRONMENTS, report).map(|item| item.value);
    let base_url = table.string("base_url", report).and_then(|item| oauth::base_url(&item, report));
    let token_url = table.string("token_url", report);
    let audience = table.string("audience", report);
    let written_audience = audience.as_ref().and_then(|item| oauth::audience(item, report));
    let methods = [
        ("client_secret_post", AuthMethod::ClientSecretPost),
        ("client_secret_basic", AuthMethod::ClientSecretBasic),
    ];
    let auth_method =
        table.choice("auth_method", &methods, report).map(|item| item.value).unwrap_or_default();
    let bodies = [("form", BodyFormat::Form), ("json", BodyFormat::Json)];
    let body = table.choice("body", &bodies, report).map(|item| item.value).unwrap_or_default();
    let resource =
        table.strings("resource", report).map(|items| oauth::resource(&items, report)).unwrap_or_default();
    let scopes = scopes(table, provider, report);
    let extra = extra(table, report);
    let client_id = table.string("client_id", report).and_then(|item| oauth::client_id(&item, report));
    let endpoint = token_url.as_ref().and_then(|item| oauth::endpoint(item, report));

    let provider = provider?;
    if body == BodyFormat::Json && provider.reads_forms_only() {
        report.warn(
            &table.spot_of("body"),
            "is not what this provider reads",
            "leave it out, or write body = \"form\"",
        );
    }
    let preset = preset(provider, environment.filter(|_| provider.has_environments()))?;
    let endpoint = match (token_url, preset.token_url) {
        (Some(_), _) => endpoint?,
        (None, Some(url)) => oauth::endpoint(&Item { spot: table.spot.clone(), value: url }, report)?,
        (None, None) => return None,
    };
    let audience = match (audience, preset.audience) {
        (Some(_), _) => Some(written_audience?),
        (None, Audience::Fixed(audience)) => Some(audience.into()),
        (None, Audience::OfBaseUrl) => Some(format!("{}/api/", base_url?).into()),
        (None, Audience::None) => None,
    };
    Some(Client { endpoint, client_id: client_id?, auth_method, body, audience, resource, scopes, extra })
}

/// Whether the keys that not every provider has are there where they are asked for, and nowhere else.
fn suits(table: &Table<'_>, provider: Provider, report: &mut Report) {
    let environments = "write environment = \"sandbox\" or \"production\"";
    let base = "write base_url = \"https://…\", your own Blooma address";
    for (key, asked, right) in [
        ("environment", provider.has_environments(), environments),
        ("base_url", provider.has_base_url(), base),
    ] {
        if asked {
            table.require(key, right, report);
        } else if table.has(key) {
            report.fault(
                &table.spot_of(key),
                "is no key of this provider",
                "take it out, or correct provider",
            );
        }
    }
    if provider == Provider::OAuth2 {
        table.require("token_url", "write token_url = \"https://…\", the provider's token endpoint", report);
    }
    if provider.needs_scopes() {
        table.require(
            "scopes",
            "write scopes = [\"data-access:all\"] or [\"furnishment:all\"], or both",
            report,
        );
    }
}

fn scopes(table: &Table<'_>, provider: Option<Provider>, report: &mut Report) -> Vec<Scope> {
    let Some(items) = table.strings("scopes", report) else { return Vec::new() };
    if items.is_empty() && provider.is_some_and(Provider::needs_scopes) {
        let right = "write scopes = [\"data-access:all\"] or [\"furnishment:all\"], or both";
        report.fault(&table.spot_of("scopes"), "is empty, or holds nothing that can be read", right);
    }
    oauth::scopes(&items, report)
}

fn extra(table: &Table<'_>, report: &mut Report) -> Vec<(Box<str>, Box<str>)> {
    let Some(table) = table.free("extra", report) else { return Vec::new() };
    let mut extra = Vec::new();
    for (name, at, value) in table.entries() {
        // A word of the protocol is nobody's secret, however its letters are written.
        let known = matches!(
            oauth2::extra_parameter(name, "-"),
            Err(ParameterFault::Reserved | ParameterFault::Credential)
        );
        let shown = if known { name } else { key::printable(name) };
        if let Some(item) = file::string(table.entry(at, shown), value.get_ref(), report) {
            extra.extend(oauth::extra(name, &item, report));
        }
    }
    extra.sort();
    extra
}

/// `client_secret` or `client_secret_next`. Whatever is not a table is taken for the secret itself.
fn secret(table: &Table<'_>, key: &str, report: &mut Report) -> Option<SecretSpec> {
    let (spot, value) = table.get(key)?;
    if !matches!(value, DeValue::Table(_)) {
        report.secret(&spot);
        return None;
    }
    let table = Table::of(spot, value, SECRET_KEYS, report)?;
    let credential = table.string("credential", report);
    let file = table.string("file", report);
    let spec = match (table.has("credential"), table.has("file")) {
        (true, true) => {
            report.fault(&table.spot, "has both a credential and a file", "keep one of the two");
            None
        }
        (false, false) => {
            // A key of another name was reported already, and says enough.
            if table.is_empty() {
                report.fault(&table.spot, "names neither a credential nor a file", SECRET_FORMS);
            }
            None
        }
        (true, false) => credential.and_then(|item| match CredentialName::parse(item.value) {
            Ok(name) => Some(SecretSpec::Credential(name)),
            Err(fault) => {
                report.fault(&item.spot, fault.to_string(), "write the ID of LoadCredential=ID:/path");
                None
            }
        }),
        (false, true) => file.and_then(|item| path::file(&item, report)).map(SecretSpec::File),
    };
    report.secrets.extend(spec.clone().map(|spec| table.spot.written(spec)));
    spec
}

fn secret_next(table: &Table<'_>, first: Option<&SecretSpec>, report: &mut Report) -> Option<SecretSpec> {
    let next = secret(table, "client_secret_next", report)?;
    if first == Some(&next) {
        let right = "name the place of the next secret, or take it out";
        report.fault(&table.spot_of("client_secret_next"), "is the same as client_secret", right);
    }
    Some(next)
}

fn refresh(table: &Table<'_>, report: &mut Report) -> Policy {
    let usual = Policy::default();
    let Some(table) = table.table("refresh", REFRESH_KEYS, report) else { return usual };
    let at = table.float("at", report).map(|item| item.value);
    let jitter = table.float("jitter", report).map(|item| item.value);
    let fault = match Policy::new(at.unwrap_or(usual.at()), jitter.unwrap_or(usual.jitter())) {
        Ok(policy) => return policy,
        Err(fault) => fault,
    };
    let (key, right) = match fault {
        PolicyFault::At => ("at", "write a share of the token's life, as in at = 0.8"),
        PolicyFault::Jitter => ("jitter", "write a share of the token's life, as in jitter = 0.05"),
        PolicyFault::Window => (if jitter.is_some() { "jitter" } else { "at" }, "write a smaller jitter"),
    };
    report.fault(&table.spot_of(key), fault.to_string(), right);
    usual
}

fn assumed_lifetime(table: &Table<'_>, report: &mut Report) -> Duration {
    let Some(item) = table.string("assumed_lifetime", report) else { return DEFAULT_ASSUMED_LIFETIME };
    match duration::parse(item.value) {
        Ok(life) if (Duration::from_secs(1)..=MAX_LIFE).contains(&life) => return life,
        Ok(_) => report.fault(&item.spot, "is not within 1s to 720h (30 days)", "write it as in \"1h\""),
        Err(_) => report.fault(&item.spot, "is not a duration", "write it as in \"90s\", \"5m\" or \"1h\""),
    }
    DEFAULT_ASSUMED_LIFETIME
}
