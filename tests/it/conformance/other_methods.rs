//! What the agent does not have: none of it can be asked for, and none of it happens by itself.

use bloom_agent::dev_issuer::Dialect;
use http::{HeaderValue, Method};

use super::{
    Row, Standing,
    bench::{Bench, MINUTE, PASSING, REFUSED, answer, error, faults_of, with_header},
};
use crate::support::BLOOM;

const fn not_applicable(what: &'static str, source: &'static str, refused: &'static [&'static str]) -> Row {
    Row { what, source, standing: Standing::NotApplicable(refused) }
}

pub(super) const ROWS: &[Row] = &[
    not_applicable(
        "Discovery: the well-known address, and a document whose `issuer` is the configured one",
        "RFC 8414 §3.3",
        &[
            "issuer = 'https://id.example.com'",
            "discovery = true",
            "metadata_url = 'https://id.example.com/.well-known/x'",
        ],
    ),
    not_applicable(
        "Discovery: a discovered `token_endpoint` is of the issuer's site, and a change needs the operator",
        "policy",
        &[
            "discovery = { pin = true }",
            "token_endpoint = 'https://id.example.com/t'",
            "allow_endpoint_change = true",
        ],
    ),
    not_applicable(
        "Discovery: `token_endpoint_auth_methods_supported` never weakens the configured method",
        "RFC 8414 §2",
        &[
            "auth_method = 'auto'",
            "auth_method = ['client_secret_basic', 'client_secret_post']",
            "auth_method = 'none'",
        ],
    ),
    not_applicable(
        "`private_key_jwt`: the claims, the audience and the type of a client assertion",
        "RFC 7523 §3",
        &[
            "auth_method = 'private_key_jwt'",
            "auth_method = 'client_secret_jwt'",
            "private_key.file = '/k'",
            "key_id = 'k'",
            "client_assertion.file = '/a'",
            "extra = { client_assertion = 'a' }",
            "extra = { client_assertion_type = 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer' }",
        ],
    ),
    not_applicable(
        "Mutual TLS: `client_id` in the body, the alias endpoint, a certificate that is read anew",
        "RFC 8705 §5",
        &[
            "auth_method = 'tls_client_auth'",
            "auth_method = 'self_signed_tls_client_auth'",
            "client_certificate.file = '/c'",
            "client_key.file = '/k'",
            "cert_file = '/c'",
        ],
    ),
    not_applicable(
        "DPoP: a fresh proof for each request, the nonce of the server, and no Bearer token in its place",
        "RFC 9449 §8",
        &["dpop = true", "dpop_key.file = '/k'", "token_type = 'DPoP'"],
    ),
    not_applicable(
        "Revocation of tokens that are not needed any more",
        "RFC 7009",
        &["revocation_url = 'https://id.example.com/revoke'", "revoke_on_exit = true"],
    ),
    not_applicable(
        "Introspection, which is for resource servers",
        "RFC 7662",
        &["introspection_url = 'https://id.example.com/introspect'", "introspect = true"],
    ),
];

#[test]
fn the_config_refuses_the_keys_of_methods_that_are_not_there() {
    for row in ROWS {
        let Standing::NotApplicable(refused) = row.standing else { panic!("{}: checked by what?", row.what) };
        for lines in refused {
            let key = lines.split([' ', '.']).next().unwrap();
            let told = faults_of(lines);
            assert!(told.contains(&format!("tokens.a.{key}")), "{}: {lines}: {told:?}", row.what);
        }
    }
}

#[tokio::test]
async fn nothing_but_the_token_endpoint_is_ever_asked() {
    let bench = Bench::new().await;
    let hints = [
        error(400, "use_dpop_nonce").header("dpop-nonce".parse().unwrap(), HeaderValue::from_static("n")),
        with_header(error(401, "invalid_client"), "www-authenticate", b"DPoP algs=\"ES256\""),
        error(400, "invalid_request")
            .header("link".parse().unwrap(), HeaderValue::from_static("</.well-known/x>; rel=\"y\"")),
    ];
    for reply in hints {
        let before = bench.agent.issuer.request_count();
        bench.rejects_reply("a hint at another method", reply, REFUSED).await;
        assert_eq!(bench.agent.issuer.request_count(), before + 2, "itself, and the good one");
    }
    let bound = answer(&[("token_type", "\"DPoP\"")]);
    bench.rejects_reply("a token that is bound to a key", bound, PASSING).await;
    let more = answer(&[
        ("issuer", "\"https://id.example.com\""),
        ("token_endpoint", "\"https://id.example.com/other\""),
        ("cnf", "{\"jkt\":\"x\"}"),
        ("mtls_endpoint_aliases", "{\"token_endpoint\":\"https://id.example.com/mtls\"}"),
    ]);
    let token = bench.accepts("members of other methods", more).await;
    bench.agent.time.advance(MINUTE);
    bench.client.report(BLOOM, token.generation).await.unwrap();
    bench.client.refresh(BLOOM).await.unwrap();
    let issuer = bench.agent.issuer.clone();
    bench.end().await;
    // The end of the agent revokes nothing either.
    for request in issuer.requests() {
        assert_eq!((request.method, &*request.target), (Method::POST, Dialect::Hydra.token_path()));
        let names = ["dpop", "client_assertion", "x-client-cert"];
        assert!(names.iter().all(|name| !request.headers.contains_key(*name)));
    }
}
