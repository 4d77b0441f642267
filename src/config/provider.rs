//! What is known of each provider: a set of defaults for `[tokens.NAME]`, every one of which the config may override.
//!
//! The facts are the providers' own (their documentation, and Bloom's client, which moved its sandbox to
//! authn.bloomcredit.dev in December 2025 while the documentation still names authn.bloom.dev).

/// `provider` of `[tokens.NAME]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provider {
    /// Bloom, by Ory Hydra.
    Bloom,
    /// Bloom's first API, by Auth0.
    BloomV1,
    /// Blooma, by Auth0.
    Blooma,
    /// Any other, by RFC 6749.
    OAuth2,
}

/// `environment` of `[tokens.NAME]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Environment {
    /// For trying things out.
    Sandbox,
    /// For real.
    Production,
}

/// The words of the config.
pub(super) const PROVIDERS: [(&str, Provider); 4] = [
    ("bloom", Provider::Bloom),
    ("bloom-v1", Provider::BloomV1),
    ("blooma", Provider::Blooma),
    ("oauth2", Provider::OAuth2),
];

/// The words of the config.
pub(super) const ENVIRONMENTS: [(&str, Environment); 2] =
    [("sandbox", Environment::Sandbox), ("production", Environment::Production)];

/// Where the audience comes from when the config does not say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// Always this one.
    Fixed(&'static str),
    /// `{base_url}/api/`.
    OfBaseUrl,
    /// None is sent.
    None,
}

/// The defaults of one provider in one environment; every provider takes a form and the secret in it.
pub(super) struct Preset {
    provider: Provider,
    environment: Option<Environment>,
    pub(super) token_url: Option<&'static str>,
    pub(super) audience: Audience,
}

const PRESETS: [Preset; 6] = [
    Preset {
        provider: Provider::Bloom,
        environment: Some(Environment::Sandbox),
        token_url: Some("https://authn.bloomcredit.dev/oauth2/token"),
        audience: Audience::Fixed("dev-api"),
    },
    Preset {
        provider: Provider::Bloom,
        environment: Some(Environment::Production),
        token_url: Some("https://authn.bloomcredit.io/oauth2/token"),
        audience: Audience::Fixed("api.bloomcredit.io"),
    },
    Preset {
        provider: Provider::BloomV1,
        environment: Some(Environment::Sandbox),
        token_url: Some("https://auth.bloom.dev/oauth/token"),
        audience: Audience::Fixed("dev-api"),
    },
    Preset {
        provider: Provider::BloomV1,
        environment: Some(Environment::Production),
        token_url: Some("https://auth.bloomcredit.io/oauth/token"),
        audience: Audience::Fixed("api.bloomcredit.io"),
    },
    Preset {
        provider: Provider::Blooma,
        environment: None,
        token_url: Some("https://login.blooma.ai/oauth/token"),
        audience: Audience::OfBaseUrl,
    },
    Preset { provider: Provider::OAuth2, environment: None, token_url: None, audience: Audience::None },
];

/// The defaults of a provider; none if it has environments and this is none of them.
pub(super) fn preset(provider: Provider, environment: Option<Environment>) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.provider == provider && preset.environment == environment)
}

impl Provider {
    /// Whether `environment` is asked for; otherwise it is a fault.
    pub(super) fn has_environments(self) -> bool {
        matches!(self, Self::Bloom | Self::BloomV1)
    }

    /// Whether `base_url` is asked for; otherwise it is a fault.
    pub(super) fn has_base_url(self) -> bool {
        self == Self::Blooma
    }

    /// Whether `scopes` is asked for: there is no default, so that nobody holds more than was meant.
    pub(super) fn needs_scopes(self) -> bool {
        self == Self::Bloom
    }

    /// Whether its token endpoint is known to read a form and nothing else (Ory Hydra).
    pub(super) fn reads_forms_only(self) -> bool {
        self == Self::Bloom
    }
}
