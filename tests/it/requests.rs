//! What a provider is sent, byte for byte: from the text of a config to URL, Authorization header and body.

use bloom_agent::{
    config::{self, Kind, SourceFile},
    oauth2,
    secret::Secret,
};

/// Every character of these is written differently in a form, in JSON and in Base64.
const CLIENT: &str = "client_id = 'a+b:c/%'\nclient_secret.file = '/s'\n";
const SECRET: &str = "p&s=s \"%:/é";

struct Case {
    what: &'static str,
    config: &'static str,
    url: &'static str,
    content_type: &'static str,
    authorization: Option<&'static str>,
    body: &'static str,
}

const FORM: &str = "application/x-www-form-urlencoded";
const JSON: &str = "application/json";
/// Base64 of `a%2Bb%3Ac%2F%25:p%26s%3Ds+%22%25%3A%2F%C3%A9`.
const BASIC: &str = "Basic YSUyQmIlM0FjJTJGJTI1OnAlMjZzJTNEcyslMjIlMjUlM0ElMkYlQzMlQTk=";

const CASES: &[Case] = &[
    Case {
        what: "bloom, sandbox",
        config: "provider = 'bloom'\nenvironment = 'sandbox'\nscopes = ['data-access:all']",
        url: "https://authn.bloomcredit.dev/oauth2/token",
        content_type: FORM,
        authorization: None,
        body: "grant_type=client_credentials&client_id=a%2Bb%3Ac%2F%25&client_secret=p%26s%3Ds+%22%25%3A%2F%C3%A9\
               &audience=dev-api&scope=data-access%3Aall",
    },
    Case {
        what: "bloom, production, both scopes",
        config: "provider = 'bloom'\nenvironment = 'production'\nscopes = ['data-access:all', 'furnishment:all']",
        url: "https://authn.bloomcredit.io/oauth2/token",
        content_type: FORM,
        authorization: None,
        body: "grant_type=client_credentials&client_id=a%2Bb%3Ac%2F%25&client_secret=p%26s%3Ds+%22%25%3A%2F%C3%A9\
               &audience=api.bloomcredit.io&scope=data-access%3Aall+furnishment%3Aall",
    },
    Case {
        what: "bloom, sandbox, basic",
        config: "provider = 'bloom'\nenvironment = 'sandbox'\nscopes = ['furnishment:all']\nauth_method = 'client_secret_basic'",
        url: "https://authn.bloomcredit.dev/oauth2/token",
        content_type: FORM,
        authorization: Some(BASIC),
        body: "grant_type=client_credentials&audience=dev-api&scope=furnishment%3Aall",
    },
    Case {
        what: "bloom, production, basic",
        config: "provider = 'bloom'\nenvironment = 'production'\nscopes = ['data-access:all']\nauth_method = 'client_secret_basic'",
        url: "https://authn.bloomcredit.io/oauth2/token",
        content_type: FORM,
        authorization: Some(BASIC),
        body: "grant_type=client_credentials&audience=api.bloomcredit.io&scope=data-access%3Aall",
    },
    Case {
        what: "bloom, JSON: a warning, and what the operator wrote",
        config: "provider = 'bloom'\nenvironment = 'sandbox'\nscopes = ['data-access:all']\nbody = 'json'",
        url: "https://authn.bloomcredit.dev/oauth2/token",
        content_type: JSON,
        authorization: None,
        body: r#"{"grant_type":"client_credentials","client_id":"a+b:c/%","client_secret":"p&s=s \"%:/é","audience":"dev-api","scope":"data-access:all"}"#,
    },
    Case {
        what: "bloom at the address that the documentation still names",
        config: "provider = 'bloom'\nenvironment = 'sandbox'\nscopes = ['data-access:all']\n\
                 token_url = 'https://authn.bloom.dev/oauth2/token'\naudience = 'other api'",
        url: "https://authn.bloom.dev/oauth2/token",
        content_type: FORM,
        authorization: None,
        body: "grant_type=client_credentials&client_id=a%2Bb%3Ac%2F%25&client_secret=p%26s%3Ds+%22%25%3A%2F%C3%A9\
               &audience=other+api&scope=data-access%3Aall",
    },
    Case {
        what: "bloom-v1, sandbox",
        config: "provider = 'bloom-v1'\nenvironment = 'sandbox'",
        url: "https://auth.bloom.dev/oauth/token",
        content_type: FORM,
        authorization: None,
        body: "grant_type=client_credentials&client_id=a%2Bb%3Ac%2F%25&client_secret=p%26s%3Ds+%22%25%3A%2F%C3%A9&audience=dev-api",
    },
    Case {
        what: "bloom-v1, production, JSON",
        config: "provider = 'bloom-v1'\nenvironment = 'production'\nbody = 'json'",
        url: "https://auth.bloomcredit.io/oauth/token",
        content_type: JSON,
        authorization: None,
        body: r#"{"grant_type":"client_credentials","client_id":"a+b:c/%","client_secret":"p&s=s \"%:/é","audience":"api.bloomcredit.io"}"#,
    },
    Case {
        what: "bloom-v1, sandbox, JSON, basic",
        config: "provider = 'bloom-v1'\nenvironment = 'sandbox'\nbody = 'json'\nauth_method = 'client_secret_basic'",
        url: "https://auth.bloom.dev/oauth/token",
        content_type: JSON,
        authorization: Some(BASIC),
        body: r#"{"grant_type":"client_credentials","audience":"dev-api"}"#,
    },
    Case {
        what: "bloom-v1, production, basic",
        config: "provider = 'bloom-v1'\nenvironment = 'production'\nauth_method = 'client_secret_basic'",
        url: "https://auth.bloomcredit.io/oauth/token",
        content_type: FORM,
        authorization: Some(BASIC),
        body: "grant_type=client_credentials&audience=api.bloomcredit.io",
    },
    Case {
        what: "blooma, one trailing slash dropped",
        config: "provider = 'blooma'\nbase_url = 'https://bank.example.com/'",
        url: "https://login.blooma.ai/oauth/token",
        content_type: FORM,
        authorization: None,
        body: "grant_type=client_credentials&client_id=a%2Bb%3Ac%2F%25&client_secret=p%26s%3Ds+%22%25%3A%2F%C3%A9\
               &audience=https%3A%2F%2Fbank.example.com%2Fapi%2F",
    },
    Case {
        what: "blooma, JSON",
        config: "provider = 'blooma'\nbase_url = 'https://bank.example.com'\nbody = 'json'",
        url: "https://login.blooma.ai/oauth/token",
        content_type: JSON,
        authorization: None,
        body: r#"{"grant_type":"client_credentials","client_id":"a+b:c/%","client_secret":"p&s=s \"%:/é","audience":"https://bank.example.com/api/"}"#,
    },
    Case {
        what: "blooma, basic",
        config: "provider = 'blooma'\nbase_url = 'https://bank.example.com'\nauth_method = 'client_secret_basic'",
        url: "https://login.blooma.ai/oauth/token",
        content_type: FORM,
        authorization: Some(BASIC),
        body: "grant_type=client_credentials&audience=https%3A%2F%2Fbank.example.com%2Fapi%2F",
    },
    Case {
        what: "blooma, JSON, basic",
        config: "provider = 'blooma'\nbase_url = 'https://bank.example.com'\nbody = 'json'\nauth_method = 'client_secret_basic'",
        url: "https://login.blooma.ai/oauth/token",
        content_type: JSON,
        authorization: Some(BASIC),
        body: r#"{"grant_type":"client_credentials","audience":"https://bank.example.com/api/"}"#,
    },
    Case {
        what: "oauth2 with nothing optional",
        config: "provider = 'oauth2'\ntoken_url = 'https://id.example.com/t?tenant=a%20b'",
        url: "https://id.example.com/t?tenant=a%20b",
        content_type: FORM,
        authorization: None,
        body: "grant_type=client_credentials&client_id=a%2Bb%3Ac%2F%25&client_secret=p%26s%3Ds+%22%25%3A%2F%C3%A9",
    },
    Case {
        what: "oauth2 with everything: a form",
        config: OAUTH2_FORM,
        url: "https://id.example.com:8443/oauth2/token",
        content_type: FORM,
        authorization: None,
        body: "grant_type=client_credentials&client_id=a%2Bb%3Ac%2F%25&client_secret=p%26s%3Ds+%22%25%3A%2F%C3%A9\
               &audience=https%3A%2F%2Fapi.example.com&resource=https%3A%2F%2Fa.example&resource=urn%3Ab\
               &scope=read+write&a=%26%3D&tenant=x+y",
    },
    Case {
        what: "oauth2 with everything: JSON",
        config: OAUTH2_JSON,
        url: "https://id.example.com:8443/oauth2/token",
        content_type: JSON,
        authorization: None,
        body: r#"{"grant_type":"client_credentials","client_id":"a+b:c/%","client_secret":"p&s=s \"%:/é","audience":"https://api.example.com","resource":["https://a.example","urn:b"],"scope":"read write","a":"&=","tenant":"x y"}"#,
    },
    Case {
        what: "oauth2 with everything: a form, basic",
        config: OAUTH2_FORM_BASIC,
        url: "https://id.example.com:8443/oauth2/token",
        content_type: FORM,
        authorization: Some(BASIC),
        body: "grant_type=client_credentials&audience=https%3A%2F%2Fapi.example.com\
               &resource=https%3A%2F%2Fa.example&resource=urn%3Ab&scope=read+write&a=%26%3D&tenant=x+y",
    },
    Case {
        what: "oauth2 with everything: JSON, basic",
        config: OAUTH2_JSON_BASIC,
        url: "https://id.example.com:8443/oauth2/token",
        content_type: JSON,
        authorization: Some(BASIC),
        body: r#"{"grant_type":"client_credentials","audience":"https://api.example.com","resource":["https://a.example","urn:b"],"scope":"read write","a":"&=","tenant":"x y"}"#,
    },
];

macro_rules! oauth2_with {
    ($more:literal) => {
        concat!(
            "provider = 'oauth2'\ntoken_url = 'https://id.example.com:8443/oauth2/token'\n",
            "audience = 'https://api.example.com'\nresource = ['https://a.example', 'urn:b']\n",
            "scopes = ['read', 'write']\nextra = { tenant = 'x y', a = '&=' }\n",
            $more
        )
    };
}

const OAUTH2_FORM: &str = oauth2_with!("");
const OAUTH2_JSON: &str = oauth2_with!("body = 'json'");
const OAUTH2_FORM_BASIC: &str = oauth2_with!("auth_method = 'client_secret_basic'");
const OAUTH2_JSON_BASIC: &str = oauth2_with!("auth_method = 'client_secret_basic'\nbody = 'json'");

#[test]
fn every_preset_sends_these_bytes_and_no_others() {
    for Case { what, config, url, content_type, authorization, body } in CASES {
        let text = format!("[tokens.a]\n{config}\n{CLIENT}");
        let source = SourceFile { name: "config.toml".into(), text, kind: Kind::Main };
        let config = config::read(&[source]).unwrap_or_else(|problems| panic!("{what}: {problems:?}"));
        let client = &config.tokens.values().next().expect("one profile").client;
        let secret = Secret::parse(SECRET.as_bytes().to_vec().into()).unwrap();
        let request = oauth2::encode(client, &secret);
        assert_eq!(client.endpoint.as_str(), *url, "{what}");
        assert_eq!(request.content_type, *content_type, "{what}");
        assert_eq!(request.authorization.as_ref().map(|header| header.as_str()), *authorization, "{what}");
        assert_eq!(std::str::from_utf8(&request.body).unwrap(), *body, "{what}");
    }
}
