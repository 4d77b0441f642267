//! TLS as it is spoken with providers: 1.2 or 1.3, a hybrid key exchange first, verified, and nothing remembered.

use std::sync::Arc;

use rustls::{
    ClientConfig, NamedGroup, RootCertStore,
    client::Resumption,
    crypto::aws_lc_rs,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use rustls_platform_verifier::BuilderVerifierExt as _;

/// Why no provider can be reached, before any was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportFault {
    /// A `ca_file` without a certificate trusts nobody.
    #[error("the ca_file holds no certificate (PEM, -----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// One that cannot be a trust anchor.
    #[error("certificate {number} of the ca_file is broken")]
    BrokenCertificate {
        /// The first is 1.
        number: usize,
    },
    /// No CA certificate on this host.
    #[error(
        "the system's store of CA certificates is empty or unreadable (install ca-certificates, or set ca_file)"
    )]
    NoSystemStore,
    /// The TLS library refuses its own defaults.
    #[error("TLS cannot be set up on this host")]
    Unsupported,
}

/// The configuration with the system's store, or with `ca_file` in its place.
pub(super) fn client_config(ca_file: Option<&[u8]>) -> Result<ClientConfig, TransportFault> {
    let mut provider = aws_lc_rs::default_provider();
    // What is recorded today is not to be read by tomorrow's machines.
    provider.kx_groups.sort_by_key(|group| group.name() != NamedGroup::X25519MLKEM768);
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|_| TransportFault::Unsupported)?;
    let builder = match ca_file {
        Some(pem) => builder.with_root_certificates(roots(pem)?),
        None => builder.with_platform_verifier().map_err(|_| TransportFault::NoSystemStore)?,
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Hours lie between two exchanges: a ticket would have expired, and be a secret to keep meanwhile.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn roots(pem: &[u8]) -> Result<RootCertStore, TransportFault> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
        let broken = TransportFault::BrokenCertificate { number: index + 1 };
        roots.add(certificate.map_err(|_| broken)?).map_err(|_| broken)?;
    }
    if roots.is_empty() { Err(TransportFault::NoCertificate) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ca() -> String {
        rcgen::generate_simple_self_signed(["ca.example".to_owned()]).unwrap().cert.pem()
    }

    #[test]
    fn a_ca_file_replaces_the_systems_store() {
        assert_eq!(roots((ca() + &ca()).as_bytes()).unwrap().len(), 2);
        assert_eq!(roots(("a comment\n".to_owned() + &ca()).as_bytes()).unwrap().len(), 1);
    }

    #[test]
    fn a_ca_file_that_trusts_nobody_or_is_broken_is_refused() {
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        for (pem, fault) in [
            ("", TransportFault::NoCertificate),
            ("no PEM at all", TransportFault::NoCertificate),
            (&key, TransportFault::NoCertificate),
            (
                &(ca() + "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"),
                TransportFault::BrokenCertificate { number: 2 },
            ),
            (
                "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n",
                TransportFault::BrokenCertificate { number: 1 },
            ),
        ] {
            assert_eq!(roots(pem.as_bytes()).unwrap_err(), fault, "{pem}");
        }
    }

    #[test]
    fn tls_is_1_2_or_1_3_with_a_hybrid_key_exchange_first_and_no_tickets() {
        let config = client_config(Some(ca().as_bytes())).unwrap();
        assert_eq!(config.crypto_provider().kx_groups[0].name(), NamedGroup::X25519MLKEM768);
        assert_eq!(config.alpn_protocols, [&b"h2"[..], b"http/1.1"]);
        assert!(!config.enable_early_data);
    }
}
