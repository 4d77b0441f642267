//! The authority that the agent is told to trust, and certificates of it and of others, good and bad.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::{ProducesTickets, WebPkiClientVerifier},
    version::{TLS12, TLS13},
};

use super::script::{Certificate, Tls};

/// What the provider is called; only the scripted resolver knows it.
pub(crate) const NAME: &str = "provider.test";

struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), der: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }
}

/// Made once for all tests of a process: keys take their time.
struct Pki {
    trusted: Authority,
    stranger: Authority,
}

fn pki() -> &'static Pki {
    static PKI: OnceLock<Pki> = OnceLock::new();
    PKI.get_or_init(|| Pki { trusted: Authority::new("trusted"), stranger: Authority::new("stranger") })
}

/// What stands in the agent's `ca_file`.
pub(crate) fn ca_pem() -> &'static str {
    &pki().trusted.pem
}

/// What was made before.
type Made = Vec<((Tls, Certificate), Arc<ServerConfig>)>;

/// How the server does TLS: the same each time, but for a certificate that is always another.
pub(crate) fn server_config(tls: Tls, certificate: Certificate) -> Arc<ServerConfig> {
    static MADE: Mutex<Made> = Mutex::new(Vec::new());
    if certificate == Certificate::Another {
        return make(tls, certificate);
    }
    // A panic elsewhere has left nothing half-made.
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, config)) = made.iter().find(|(of, _)| *of == (tls, certificate)) {
        return Arc::clone(config);
    }
    let config = make(tls, certificate);
    made.push(((tls, certificate), Arc::clone(&config)));
    config
}

fn make(tls: Tls, certificate: Certificate) -> Arc<ServerConfig> {
    let versions: &[&SupportedProtocolVersion] = match tls {
        Tls::Only12 | Tls::DemandsCertificate12 | Tls::GarbageTickets12 => &[&TLS12],
        Tls::Only13 => &[&TLS13],
        _ => &[&TLS13, &TLS12],
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions).unwrap();
    let builder = match tls {
        Tls::DemandsCertificate | Tls::DemandsCertificate12 => {
            let mut roots = RootCertStore::empty();
            roots.add(pki().stranger.der.clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
        _ => builder.with_no_client_auth(),
    };
    let (chain, key) = chain(certificate);
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = match tls {
        Tls::Http2 => vec![b"h2".to_vec()],
        Tls::OtherProtocol => vec![b"spdy/3.1".to_vec()],
        Tls::NoProtocol => Vec::new(),
        _ => vec![b"http/1.1".to_vec()],
    };
    match tls {
        Tls::GarbageTickets | Tls::GarbageTickets12 => {
            config.ticketer = Arc::new(Garbage { length: 2_000 });
            config.send_tls13_tickets = 8;
        }
        Tls::TicketFlood => {
            config.ticketer = Arc::new(Garbage { length: 16_000 });
            config.send_tls13_tickets = 32;
        }
        _ => {}
    }
    Arc::new(config)
}

fn chain(certificate: Certificate) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let names: &[&str] = match certificate {
        Certificate::OtherHost => &["other.test"],
        Certificate::OtherSubdomain => &["*.provider.test", "provider.test.example", "xprovider.test"],
        Certificate::NameInSubjectOnly => &[],
        _ => &[NAME, "127.0.0.1"],
    };
    let mut params =
        CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, NAME);
    match certificate {
        Certificate::Expired => params.not_after = rcgen::date_time_ymd(2001, 1, 1),
        Certificate::NotYetValid => params.not_before = rcgen::date_time_ymd(4000, 1, 1),
        _ => {}
    }
    let key = KeyPair::generate().unwrap();
    let authority = match certificate {
        Certificate::OfAStranger => &pki().stranger,
        _ => &pki().trusted,
    };
    let leaf = match certificate {
        Certificate::SelfSigned => params.self_signed(&key).unwrap(),
        _ => params.signed_by(&key, &authority.issuer).unwrap(),
    };
    let mut chain = vec![leaf.der().clone()];
    if certificate == Certificate::OfAStranger {
        // A server may send its authority along; that makes nobody trust it.
        chain.push(authority.der.clone());
    }
    (chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

/// Tickets that mean nothing.
#[derive(Debug)]
struct Garbage {
    length: usize,
}

impl ProducesTickets for Garbage {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::MAX
    }

    fn encrypt(&self, _plain: &[u8]) -> Option<Vec<u8>> {
        Some(vec![0xff; self.length])
    }

    fn decrypt(&self, _cipher: &[u8]) -> Option<Vec<u8>> {
        panic!("a ticket came back: sessions are not resumed")
    }
}
