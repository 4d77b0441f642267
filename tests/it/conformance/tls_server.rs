//! A provider behind real TLS that a row leads by the hand: it accepts, shakes hands, reads and writes when the row says.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd},
    sync::{Arc, Mutex},
};

use bloom_agent::http::LookUps;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::NamedTempFile;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion,
        crypto::CryptoProvider,
        pki_types::{CertificateDer, PrivateKeyDer},
    },
    server::TlsStream,
};

use super::bench::{Bench, body};
use crate::support::{BLOOM, Setting, profile, soon};

/// The name that the row's resolver knows.
pub(super) const NAME: &str = "id.story.example";

/// The listener, what it presents, and the file that trusts it.
pub(super) struct TlsServer {
    pub(super) listener: TcpListener,
    pub(super) config: ServerConfig,
    /// For `ca_file`: the certificate of the CA that issues this server's.
    pub(super) ca: NamedTempFile,
    issuer: Issuer<'static, KeyPair>,
}

impl TlsServer {
    /// For [`NAME`] and 127.0.0.1.
    pub(super) async fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = NamedTempFile::new().unwrap();
        std::fs::write(ca.path(), params.self_signed(&key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(params, key);
        let config = server_config(rustls::ALL_VERSIONS, leaf(&issuer, &[NAME, "127.0.0.1"], |_| ()));
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap(), config, ca, issuer }
    }

    /// Another certificate of the same CA.
    pub(super) fn present(&mut self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) {
        self.config = server_config(rustls::ALL_VERSIONS, leaf(&self.issuer, names, change));
    }

    /// TLS 1.2 with this cipher suite alone, and with keys that the row can have.
    pub(super) fn speak_one(&mut self, suite: SupportedCipherSuite) {
        let provider =
            CryptoProvider { cipher_suites: vec![suite], ..rustls::crypto::aws_lc_rs::default_provider() };
        let certified = leaf(&self.issuer, &[NAME], |_| ());
        self.config = config_of(provider, &[&rustls::version::TLS12], certified);
        self.config.enable_secret_extraction = true;
    }

    /// The usual certificate, and no other version of TLS.
    pub(super) fn speak(&mut self, version: &'static SupportedProtocolVersion) {
        self.config = server_config(&[version], leaf(&self.issuer, &[NAME, "127.0.0.1"], |_| ()));
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// The lines of a profile whose provider this is, by its name.
    pub(super) fn lines(&self) -> String {
        self.lines_at(&format!("https://{NAME}:{}/token?tenant=a%20b", self.address().port()))
    }

    /// The same at another URL.
    pub(super) fn lines_at(&self, url: &str) -> String {
        format!("token_url = '{url}'\nca_file = '{}'\n", self.ca.path().display())
    }

    /// An agent whose provider this is, after its first token.
    pub(super) async fn bench(&self) -> Bench {
        self.bench_with(&self.lines(), here()).await
    }

    /// The same with other lines and another resolver; the first answer is a good one.
    pub(super) async fn bench_with(&self, lines: &str, look_ups: LookUps) -> Bench {
        let tokens = profile(BLOOM, lines);
        let setting = Setting { tokens, look_ups, ..Setting::default() };
        let (bench, _) = tokio::join!(Bench::start(setting), self.answer_well());
        bench
    }

    pub(super) async fn accept(&self) -> TcpStream {
        soon("a connection", self.listener.accept()).await.unwrap().0
    }

    pub(super) async fn handshake(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        soon("a handshake", TlsAcceptor::from(Arc::new(self.config.clone())).accept(stream)).await
    }

    pub(super) async fn accept_tls(&self) -> TlsStream<TcpStream> {
        let stream = self.accept().await;
        self.handshake(stream).await.unwrap()
    }

    /// Answers one request with a good answer.
    pub(super) async fn answer_well(&self) -> String {
        self.answer(&good()).await
    }

    /// Answers one request with these bytes, closes, and returns the request.
    pub(super) async fn answer(&self, answer: &[u8]) -> String {
        let mut stream = self.accept_tls().await;
        let request = request(&mut stream).await;
        // The client may have had enough before the end.
        let _enough = stream.write_all(answer).await;
        let _closed = stream.shutdown().await;
        request
    }

    /// Whether nobody waits to be accepted.
    pub(super) fn nobody_came(&self) -> bool {
        nobody_came(self.listener.as_fd())
    }
}

/// A certificate for these names, and its key.
type Certified = (CertificateDer<'static>, KeyPair);

fn leaf(
    issuer: &Issuer<'static, KeyPair>,
    names: &[&str],
    change: impl FnOnce(&mut CertificateParams),
) -> Certified {
    let names = names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let mut params = CertificateParams::new(names).unwrap();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap().der().clone(), key)
}

/// What a server presents that nobody has issued but itself.
pub(super) fn self_signed() -> ServerConfig {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![NAME.to_owned()]).unwrap().self_signed(&key).unwrap();
    server_config(rustls::ALL_VERSIONS, (certificate.der().clone(), key))
}

fn server_config(versions: &[&'static SupportedProtocolVersion], certified: Certified) -> ServerConfig {
    config_of(rustls::crypto::aws_lc_rs::default_provider(), versions, certified)
}

fn config_of(
    provider: CryptoProvider,
    versions: &[&'static SupportedProtocolVersion],
    (certificate, key): Certified,
) -> ServerConfig {
    ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap()
}

/// Whether nobody waits at a listening socket.
pub(super) fn nobody_came(listener: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(listener, PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).unwrap() == 0
}

/// A resolver that knows every name, and says 127.0.0.1.
pub(super) fn here() -> LookUps {
    LookUps::asking(|_| Ok(vec![SocketAddr::from(([127, 0, 0, 1], 0))]))
}

/// An HTTP/1.1 answer of JSON, whole.
pub(super) fn http(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// A good answer with a token that was never given before.
pub(super) fn good() -> Vec<u8> {
    http("200 OK", &body(&[]))
}

/// Reads one request, with the body that its Content-Length announces.
pub(super) async fn request(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(soon("a request", stream.read_u8()).await.unwrap());
    }
    let head = String::from_utf8(bytes).unwrap();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    head + std::str::from_utf8(&body).unwrap()
}

/// Carries bytes both ways until both ends are closed, and keeps those from `near` to `far`.
pub(super) async fn carry(near: TcpStream, far: TcpStream, seen: &Mutex<Vec<u8>>) {
    let (mut near_in, mut near_out) = near.into_split();
    let (mut far_in, mut far_out) = far.into_split();
    let there = async {
        let mut buffer = vec![0; 4096];
        while let Ok(length @ 1..) = near_in.read(&mut buffer).await {
            seen.lock().unwrap().extend_from_slice(&buffer[..length]);
            if far_out.write_all(&buffer[..length]).await.is_err() {
                break;
            }
        }
        let _closed = far_out.shutdown().await;
    };
    let back = async {
        // A side that is gone ends it, which is all there is to know.
        let _carried = tokio::io::copy(&mut far_in, &mut near_out).await;
        let _closed = near_out.shutdown().await;
    };
    tokio::join!(there, back);
}

/// Writes all, and says whether the other side still took it.
pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> bool {
    stream.write_all(bytes).await.is_ok() && stream.flush().await.is_ok()
}
