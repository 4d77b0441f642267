//! Exchanges with a server on the loopback that answers, or fails, byte by byte as a test says.

use std::net::SocketAddr;

use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    join,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::*;
use crate::failure::FailureKind;

/// Longer than any test takes, for those that do not wait for it.
const PATIENT: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(300);
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}";

struct Provider {
    listener: TcpListener,
    tls: ServerConfig,
    ca: Arc<[u8]>,
}

impl Provider {
    async fn new() -> Self {
        Self::with(["127.0.0.1", "localhost"].map(str::to_owned).to_vec(), |_| ()).await
    }

    async fn with(names: Vec<String>, change: impl FnOnce(&mut CertificateParams)) -> Self {
        Self::at("127.0.0.1:0", names, change).await.unwrap()
    }

    async fn at(
        address: &str,
        names: Vec<String>,
        change: impl FnOnce(&mut CertificateParams),
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from(certificate.der().to_vec())],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        Ok(Self { listener, tls, ca: certificate.pem().into_bytes().into() })
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::parse(&format!("https://{}/oauth2/token?tenant=a", self.address())).unwrap()
    }

    fn client(&self) -> HttpClient {
        self.client_through(None)
    }

    fn client_through(&self, proxy: Option<&str>) -> HttpClient {
        let proxy = proxy.map(|proxy| ProxyUrl::parse(proxy).unwrap());
        HttpClient::new(&Transport { ca_file: Some(Arc::clone(&self.ca)), proxy })
            .unwrap()
            .with_deadline(PATIENT)
    }

    async fn accept(&self) -> TcpStream {
        self.listener.accept().await.unwrap().0
    }

    async fn accept_tls(&self) -> TlsStream<TcpStream> {
        self.handshake(self.accept().await).await.unwrap()
    }

    async fn handshake(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(Arc::new(self.tls.clone())).accept(stream).await
    }

    /// Whether anybody else has connected.
    fn nobody_else_came(self) -> bool {
        let listener = self.listener.into_std().unwrap();
        listener.set_nonblocking(true).unwrap();
        listener.accept().is_err()
    }

    /// Answers one request with `answer`, closes, and returns the request.
    async fn answer(&self, answer: &[u8]) -> String {
        let mut stream = self.accept_tls().await;
        let request = request(&mut stream).await;
        stream.write_all(answer).await.unwrap();
        // The client may have had enough before the end.
        let _ = stream.shutdown().await;
        request
    }
}

/// Reads one request, with the body that its Content-Length announces.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(bytes).unwrap();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    head + std::str::from_utf8(&body).unwrap()
}

fn token_request() -> EncodedRequest {
    EncodedRequest {
        content_type: "application/x-www-form-urlencoded",
        authorization: Some(Zeroizing::new("Basic Y2FuYXJ5".to_owned())),
        body: Zeroizing::new(b"grant_type=client_credentials&client_secret=canary".to_vec()),
    }
}

async fn post(provider: &Provider, answer: &[u8]) -> Result<Answered, NetworkFault> {
    let (client, endpoint) = (provider.client(), provider.endpoint());
    join!(client.post(&endpoint, token_request()), provider.answer(answer)).0
}

fn assert_fault(result: Result<Answered, NetworkFault>, step: Step, reached: Reached, why: &str) {
    let fault = result.map(|answered| answered.status).unwrap_err();
    assert_eq!((fault.step(), fault.reached()), (step, reached), "{}", fault.why());
    assert!(fault.why().contains(why), "{}", fault.why());
    let failure = fault.into_failure(&Endpoint::parse("https://id.example.com/?canary=canary").unwrap());
    assert!(!failure.text.contains("canary"), "{}", failure.text);
}

#[tokio::test]
async fn a_token_request_is_one_post_with_these_headers() {
    let provider = Provider::new().await;
    let (client, endpoint) = (provider.client(), provider.endpoint());
    let (answered, seen) = join!(client.post(&endpoint, token_request()), provider.answer(OK));
    let answered = answered.unwrap();
    assert_eq!(
        (answered.status, answered.body.as_slice(), &answered.end),
        (200, &b"{}"[..], &BodyEnd::Whole)
    );
    assert_eq!(answered.as_answer().headers["content-type"], "application/json");

    let (head, body) = seen.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<_> = head.lines().collect();
    assert_eq!(lines.remove(0), "POST /oauth2/token?tenant=a HTTP/1.1");
    lines.sort_unstable();
    let host = format!("host: {}", provider.address());
    assert_eq!(
        lines,
        [
            "accept-encoding: identity",
            "accept: application/json",
            "authorization: Basic Y2FuYXJ5",
            "content-length: 50",
            "content-type: application/x-www-form-urlencoded",
            &host,
            concat!("user-agent: bloom-agent/", env!("CARGO_PKG_VERSION")),
        ]
    );
    assert_eq!(body, "grant_type=client_credentials&client_secret=canary");
    assert!(provider.nobody_else_came());
}

#[tokio::test]
async fn no_redirect_is_followed_to_anywhere() {
    for status in [300, 301, 302, 303, 304, 307, 308] {
        let (provider, other) = (Provider::new().await, Provider::new().await);
        for location in [other.endpoint(), provider.endpoint()] {
            let answer = format!(
                "HTTP/1.1 {status} Elsewhere\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n",
                location.as_str()
            );
            let answered = post(&provider, answer.as_bytes()).await.unwrap();
            assert_eq!(answered.status, status);
        }
        assert!(other.nobody_else_came() && provider.nobody_else_came(), "{status}");
    }
}

#[tokio::test]
async fn interim_answers_are_skipped_but_for_a_switch_of_protocols() {
    let provider = Provider::new().await;
    let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
    assert_eq!(post(&provider, &[interim, OK].concat()).await.unwrap().status, 200);
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n";
    assert_eq!(post(&provider, switch).await.unwrap().status, 101);
}

#[tokio::test]
async fn every_framing_of_http_1_is_read() {
    let provider = Provider::new().await;
    for (answer, body, whole) in [
        (&b"HTTP/1.0 200 OK\r\n\r\n{\"a\":1}"[..], &b"{\"a\":1}"[..], true),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{\"a\r\n4\r\n\":1}\r\n0\r\n\r\n",
            b"{\"a\":1}",
            true,
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{\"a\r\nzz\r\n\":1}\r\n0\r\n\r\n",
            b"{\"a",
            false,
        ),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{\"a\":1}", b"{\"a\":1}", false),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n{\"a\":1}", b"{\"a\"", true),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"", true),
    ] {
        let answered = post(&provider, answer).await.unwrap();
        let text = String::from_utf8_lossy(answer);
        assert_eq!(answered.body.as_slice(), body, "{text}");
        assert_eq!(answered.end == BodyEnd::Whole, whole, "{text}");
    }
}

#[tokio::test]
async fn a_body_without_end_is_read_up_to_its_limit() {
    let provider = Provider::new().await;
    let (client, endpoint) = (provider.client(), provider.endpoint());
    let endless = async {
        let mut stream = provider.accept_tls().await;
        request(&mut stream).await;
        let mut sent = stream.write_all(b"HTTP/1.1 500 No\r\n\r\n").await;
        while sent.is_ok() {
            sent = stream.write_all(&[b'x'; 4096]).await;
        }
    };
    let (answered, ()) = join!(client.post(&endpoint, token_request()), async {
        tokio::time::timeout(PATIENT, endless).await.expect("the client stops reading");
    });
    let answered = answered.unwrap();
    assert_eq!((answered.body.len(), answered.end), (MAX_BODY, BodyEnd::TooLong));
}

#[tokio::test]
async fn a_body_of_the_limit_is_whole() {
    let provider = Provider::new().await;
    for (length, end) in [(MAX_BODY, BodyEnd::Whole), (MAX_BODY + 1, BodyEnd::TooLong)] {
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{}", "x".repeat(length));
        let answered = post(&provider, answer.as_bytes()).await.unwrap();
        assert_eq!((answered.body.len(), answered.end), (MAX_BODY, end));
    }
}

#[tokio::test]
async fn a_head_that_is_no_head_is_the_providers_fault() {
    let provider = Provider::new().await;
    let many = "x: y\r\n".repeat(10_000);
    let long = format!("x: {}\r\n", "y".repeat(1 << 20));
    for answer in [
        "SSH-2.0-OpenSSH_9.9\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nno header\r\n\r\n".to_owned(),
        "HTTP/1.1 2000 OK\r\n\r\n".to_owned(),
        format!("HTTP/1.1 200 OK\r\n{many}\r\n"),
        format!("HTTP/1.1 200 OK\r\n{long}\r\n"),
    ] {
        let (client, endpoint) = (provider.client(), provider.endpoint());
        let serve = async {
            let mut stream = provider.accept_tls().await;
            request(&mut stream).await;
            // It may be closed before the end of a long one.
            let _ = stream.write_all(answer.as_bytes()).await;
        };
        let (result, ()) = join!(client.post(&endpoint, token_request()), serve);
        let fault = result.map(|answered| answered.status).unwrap_err();
        assert_eq!(fault.reached(), Reached::Perhaps);
        let failure = fault.into_failure(&endpoint);
        assert_eq!(failure.kind, FailureKind::ProviderError, "{} {}", failure.text, &answer[..30]);
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_off_says_where() {
    for sent in [&b""[..], b"HTTP/1.1 200 OK\r\ncont"] {
        let provider = Provider::new().await;
        let (client, endpoint) = (provider.client(), provider.endpoint());
        let reset = async {
            let mut stream = provider.accept_tls().await;
            request(&mut stream).await;
            stream.write_all(sent).await.unwrap();
            stream.flush().await.unwrap();
            stream.get_ref().0.set_zero_linger().unwrap();
        };
        let (result, ()) = join!(client.post(&endpoint, token_request()), reset);
        assert_fault(result, Step::Request, Reached::Perhaps, "connection");
        assert!(provider.nobody_else_came(), "nothing is sent twice");
    }

    let provider = Provider::new().await;
    let (client, endpoint) = (provider.client(), provider.endpoint());
    let (done, wait) = tokio::sync::oneshot::channel::<()>();
    let exchange = async {
        let answered = client.post(&endpoint, token_request()).await;
        drop(done);
        answered
    };
    let mid_body = async {
        let mut stream = provider.accept_tls().await;
        request(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 429 Slow\r\nretry-after: 7\r\ncontent-length: 9\r\n\r\n{\"er")
            .await
            .unwrap();
        stream.flush().await.unwrap();
        stream.shutdown().await.unwrap();
        let _ = wait.await;
    };
    let (answered, ()) = join!(exchange, mid_body);
    let answered = answered.unwrap();
    assert_eq!((answered.status, &answered.headers["retry-after"]), (429, &HeaderValue::from_static("7")));
    assert!(matches!(answered.end, BodyEnd::Broken(_)));
}

#[tokio::test]
async fn the_deadline_ends_a_stall_wherever_it_is() {
    let provider = Provider::new().await;
    let (client, endpoint) = (provider.client().with_deadline(SHORT), provider.endpoint());

    // Nobody accepts: the kernel does, and the handshake stalls.
    let result = client.post(&endpoint, token_request()).await;
    assert_fault(result, Step::Connect, Reached::No, "time-out");
    drop(provider.accept().await);

    // A handshake byte by byte that never ends.
    let (hold, held) = tokio::sync::oneshot::channel::<()>();
    let (result, ()) = join!(
        async {
            let result = client.post(&endpoint, token_request()).await;
            drop(hold);
            result
        },
        async {
            let mut stream = provider.accept().await;
            stream.write_all(b"\x16\x03\x03\x40").await.unwrap();
            let _ = held.await;
        }
    );
    assert_fault(result, Step::Connect, Reached::No, "time-out");

    let (hold, held) = tokio::sync::oneshot::channel::<()>();
    let (result, ()) = join!(
        async {
            let result = client.post(&endpoint, token_request()).await;
            drop(hold);
            result
        },
        async {
            let mut stream = provider.accept_tls().await;
            request(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200").await.unwrap();
            stream.flush().await.unwrap();
            let _ = held.await;
        }
    );
    assert_fault(result, Step::Request, Reached::Perhaps, "time-out");
}

#[tokio::test]
async fn a_body_that_trickles_ends_with_the_deadline() {
    let provider = Provider::new().await;
    let (client, endpoint) = (provider.client().with_deadline(SHORT), provider.endpoint());
    let trickle = async {
        let mut stream = provider.accept_tls().await;
        request(&mut stream).await;
        let mut sent =
            stream.write_all(b"HTTP/1.1 503 No\r\nretry-after: 9\r\ncontent-length: 999999\r\n\r\n").await;
        let mut pace = tokio::time::interval(SHORT / 20);
        while sent.is_ok() {
            pace.tick().await;
            sent = async {
                stream.write_all(b" ").await?;
                stream.flush().await
            }
            .await;
        }
    };
    let (answered, ()) = join!(client.post(&endpoint, token_request()), async {
        tokio::time::timeout(PATIENT, trickle).await.expect("the client hangs up");
    });
    let answered = answered.unwrap();
    assert_eq!(answered.headers["retry-after"], "9");
    assert!(matches!(&answered.end, BodyEnd::Broken(why) if why.contains("time-out")));
}

#[tokio::test]
async fn a_certificate_is_verified() {
    type Change = fn(&mut CertificateParams);
    let cases: [(&str, &[&str], Change, &str); 4] = [
        ("wrong name", &["other.example"], |_| (), "another name"),
        ("name in the subject only", &["x.example"], common_name, "another name"),
        ("expired", &["127.0.0.1"], |params| params.not_after = rcgen::date_time_ymd(2001, 1, 1), "expired"),
        (
            "not yet valid",
            &["127.0.0.1"],
            |params| params.not_before = rcgen::date_time_ymd(4000, 1, 1),
            "not valid yet",
        ),
    ];
    for (name, names, change, why) in cases {
        let provider = Provider::with(names.iter().map(|&name| name.to_owned()).collect(), change).await;
        let (client, endpoint) = (provider.client(), provider.endpoint());
        let serve = async {
            let handshake = provider.handshake(provider.accept().await).await;
            assert!(handshake.is_err(), "{name}: the client must not go on");
        };
        let (result, ()) = join!(client.post(&endpoint, token_request()), serve);
        assert_fault(result, Step::Tls, Reached::No, why);
    }
}

fn common_name(params: &mut CertificateParams) {
    params.distinguished_name.push(rcgen::DnType::CommonName, "127.0.0.1");
}

#[tokio::test]
async fn only_the_ca_file_is_trusted_where_there_is_one() {
    let (provider, other) = (Provider::new().await, Provider::new().await);
    let (client, endpoint) = (other.client(), provider.endpoint());
    let (result, _) = join!(client.post(&endpoint, token_request()), async {
        provider.handshake(provider.accept().await).await
    });
    assert_fault(result, Step::Tls, Reached::No, "certificate");
}

#[tokio::test]
async fn a_server_without_tls_or_with_an_old_one_gets_nothing() {
    // An alert of TLS 1.0: protocol_version.
    let alert = b"\x15\x03\x01\x00\x02\x02\x46";
    for (answer, why) in
        [(&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "does not speak TLS"), (alert, "ProtocolVersion")]
    {
        let provider = Provider::new().await;
        let (client, endpoint) = (provider.client(), provider.endpoint());
        let serve = async {
            let mut stream = provider.accept().await;
            let mut hello = vec![0; 4096];
            let length = stream.read(&mut hello).await.unwrap();
            assert!(!hello[..length].windows(6).any(|window| window == b"canary"));
            stream.write_all(answer).await.unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            assert!(!rest.windows(6).any(|window| window == b"canary"));
        };
        let (result, ()) = join!(client.post(&endpoint, token_request()), serve);
        assert_fault(result, Step::Tls, Reached::No, why);
    }
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_no_request() {
    let provider = Provider::new().await;
    let (client, endpoint) = (provider.client(), provider.endpoint());
    drop(provider);
    assert_fault(client.post(&endpoint, token_request()).await, Step::Connect, Reached::No, "refused");
}

#[tokio::test]
async fn a_name_that_cannot_be_looked_up_says_so() {
    // A label of 64 letters: getaddrinfo(3) refuses it without asking anybody.
    let provider = Provider::new().await;
    let client = provider.client_through(Some(&format!("http://{}:1", "x".repeat(64))));
    let result = client.post(&provider.endpoint(), token_request()).await;
    assert_fault(result, Step::LookUp, Reached::No, "");
    assert!(provider.nobody_else_came());
}

/// Serves one CONNECT with `answer`, and returns its head.
async fn connect_head(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), answer: &[u8]) -> String {
    let head = request(stream).await;
    stream.write_all(answer).await.unwrap();
    head
}

#[tokio::test]
async fn a_proxy_sees_a_host_and_a_port_and_no_secret() {
    let (provider, proxy) = (Provider::new().await, Provider::new().await);
    let client = provider.client_through(Some(&format!("http://{}", proxy.address())));
    let endpoint = provider.endpoint();
    let serve = async {
        let mut stream = proxy.accept().await;
        let head = connect_head(&mut stream, b"HTTP/1.1 200 Connection established\r\n\r\n").await;
        let mut tls = provider.handshake(stream).await.unwrap();
        let seen = request(&mut tls).await;
        tls.write_all(OK).await.unwrap();
        (head, seen)
    };
    let (answered, (head, seen)) = join!(client.post(&endpoint, token_request()), serve);
    assert_eq!(answered.unwrap().status, 200);
    assert!(seen.starts_with("POST /oauth2/token?tenant=a HTTP/1.1\r\n") && seen.contains("canary"));
    let address = provider.address();
    assert_eq!(
        head,
        format!(
            "CONNECT {address} HTTP/1.1\r\nHost: {address}\r\nuser-agent: bloom-agent/{}\r\n\r\n",
            env!("CARGO_PKG_VERSION")
        )
    );
    assert!(provider.nobody_else_came() && proxy.nobody_else_came());
}

#[tokio::test]
async fn a_proxy_that_refuses_gets_nothing_more() {
    for (answer, why) in [
        (&b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"[..], "407"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "refused CONNECT"),
        (b"SSH-2.0-x\r\n\r\n", "refused CONNECT"),
    ] {
        let (provider, proxy) = (Provider::new().await, Provider::new().await);
        let client = provider.client_through(Some(&format!("http://{}", proxy.address())));
        let endpoint = provider.endpoint();
        let serve = async {
            let mut stream = proxy.accept().await;
            connect_head(&mut stream, answer).await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            rest
        };
        let (result, rest) = join!(client.post(&endpoint, token_request()), serve);
        assert_fault(result, Step::Proxy, Reached::No, why);
        assert_eq!(rest, b"");
        assert!(provider.nobody_else_came());
    }
}

#[tokio::test]
async fn http_2_is_spoken_and_a_refused_stream_is_not_sent_again() {
    let mut provider = Provider::new().await;
    provider.tls.alpn_protocols = vec![b"h2".to_vec()];
    let (client, endpoint) = (provider.client(), provider.endpoint());
    for refuse in [None, Some(h2::Reason::REFUSED_STREAM)] {
        let serve = async {
            let stream = provider.accept_tls().await;
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let mut requests = 0;
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                requests += 1;
                assert_eq!(request.method(), Method::POST);
                match refuse {
                    Some(reason) => respond.send_reset(reason),
                    None => {
                        let head = ::http::Response::builder().status(200).body(()).unwrap();
                        let mut body = respond.send_response(head, false).unwrap();
                        body.send_data(Bytes::from_static(b"{}"), true).unwrap();
                    }
                }
            }
            requests
        };
        let (result, requests) = join!(client.post(&endpoint, token_request()), serve);
        assert_eq!(requests, 1);
        match refuse {
            None => assert_eq!(result.unwrap().body.as_slice(), b"{}"),
            Some(_) => assert_fault(result, Step::Request, Reached::Perhaps, ""),
        }
    }
    assert!(provider.nobody_else_came(), "nor on another connection");
}

#[tokio::test]
async fn a_plaintext_endpoint_of_the_loopback_is_asked_without_a_proxy() {
    let provider = Provider::new().await;
    let client = provider.client_through(Some("http://127.0.0.1:1"));
    let endpoint = Endpoint::loopback(provider.address(), "/token").unwrap();
    let serve = async {
        let mut stream = provider.accept().await;
        let seen = request(&mut stream).await;
        stream.write_all(OK).await.unwrap();
        seen
    };
    let (answered, seen) = join!(client.post(&endpoint, token_request()), serve);
    assert_eq!(answered.unwrap().status, 200);
    assert!(seen.starts_with("POST /token HTTP/1.1\r\n"));
}

#[test]
fn the_proxies_of_the_environment_are_not_asked() {
    const MARK: &str = "BLOOM_AGENT_TEST_PROXY";
    let name = "http::tests::the_proxies_of_the_environment_are_not_asked";
    if std::env::var_os(MARK).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let exchanges = async {
            let provider = Provider::new().await;
            assert_eq!(post(&provider, OK).await.unwrap().status, 200);
            assert!(provider.nobody_else_came());
            let provider = Provider::new().await;
            let (client, endpoint) = (provider.client(), provider.endpoint());
            let serve = async {
                drop(provider.accept_tls().await);
                provider.answer(OK).await
            };
            let (steps, _) = join!(client.probe(&endpoint), serve);
            assert_eq!(outcomes(&steps).last(), Some(&(Step::Request, true)), "{steps:?}");
        };
        // Whoever asks the proxy never comes to the provider.
        runtime.block_on(async { tokio::time::timeout(PATIENT, exchanges).await.unwrap() });
        return;
    }
    let proxy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", proxy.local_addr().unwrap());
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", name, "--nocapture"]).env(MARK, "1").env("NO_PROXY", "").env("no_proxy", "");
    for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        child.env(variable, &url).env(variable.to_lowercase(), &url);
    }
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    // The harness exits 0 when the name fits no test.
    let passed = output.status.success() && text.contains("1 passed");
    assert!(passed, "{text}{}", String::from_utf8_lossy(&output.stderr));
    proxy.set_nonblocking(true).unwrap();
    assert!(proxy.accept().is_err(), "somebody asked it");
}

#[tokio::test]
async fn an_ipv6_address_is_an_endpoint_like_any_other() {
    let provider = match Provider::at("[::1]:0", vec!["::1".to_owned()], |_| ()).await {
        Ok(provider) => provider,
        Err(error) => {
            // Past the test runner, which keeps what a passing test prints to itself.
            let _loud = std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!(
                    "SKIPPED: an_ipv6_address_is_an_endpoint_like_any_other: no ::1 here ({error})\n"
                ),
            );
            return;
        }
    };
    let (client, endpoint) = (provider.client(), provider.endpoint());
    assert_eq!(endpoint.host(), "[::1]");
    let (answered, seen) = join!(client.post(&endpoint, token_request()), provider.answer(OK));
    assert_eq!(answered.unwrap().status, 200);
    assert!(seen.contains(&format!("host: {}\r\n", provider.address())), "{seen}");
    let serve = async {
        drop(provider.accept_tls().await);
        provider.answer(OK).await
    };
    let (steps, _) = join!(client.probe(&endpoint), serve);
    assert_eq!(outcomes(&steps).last(), Some(&(Step::Request, true)), "{steps:?}");
    let silent = client.with_deadline(SHORT).post(&endpoint, token_request()).await;
    assert_fault(silent, Step::Connect, Reached::No, "time-out");
}

fn outcomes(steps: &[Probed]) -> Vec<(Step, bool)> {
    steps.iter().map(|probed| (probed.step, probed.outcome.is_ok())).collect()
}

#[tokio::test]
async fn a_probe_goes_the_whole_way_without_credentials() {
    let provider = Provider::new().await;
    let (client, endpoint) = (provider.client(), provider.endpoint());
    let serve = async {
        drop(provider.accept_tls().await);
        provider.answer(b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\n\r\n").await
    };
    let (steps, seen) = join!(client.probe(&endpoint), serve);
    assert_eq!(
        outcomes(&steps),
        [(Step::LookUp, true), (Step::Connect, true), (Step::Tls, true), (Step::Request, true)],
        "{steps:?}"
    );
    assert!(seen.starts_with("HEAD /oauth2/token?tenant=a HTTP/1.1\r\n"), "{seen}");
    assert!(!seen.contains("authorization") && !seen.contains("client_"), "{seen}");
    let text = |index: usize| steps[index].outcome.clone().unwrap();
    assert!(
        text(2).starts_with("TLS 1.3, ") && text(2).ends_with("valid until 4096-01-01T00:00:00Z"),
        "{}",
        text(2)
    );
    assert!(text(3).contains("405"), "{}", text(3));
}

#[tokio::test]
async fn a_probe_goes_through_the_proxy() {
    let (provider, proxy) = (Provider::new().await, Provider::new().await);
    let client = provider.client_through(Some(&format!("http://{}", proxy.address())));
    let endpoint = provider.endpoint();
    let serve = async {
        let mut stream = proxy.accept().await;
        connect_head(&mut stream, b"HTTP/1.1 200 OK\r\n\r\n").await;
        drop(provider.handshake(stream).await.unwrap());
        let mut stream = proxy.accept().await;
        connect_head(&mut stream, b"HTTP/1.1 200 OK\r\n\r\n").await;
        let mut tls = provider.handshake(stream).await.unwrap();
        request(&mut tls).await;
        tls.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    };
    let (steps, ()) = join!(client.probe(&endpoint), serve);
    let all = [Step::LookUp, Step::Connect, Step::Proxy, Step::Tls, Step::Request];
    assert_eq!(outcomes(&steps), all.map(|step| (step, true)), "{steps:?}");
}

#[tokio::test]
async fn a_probe_stops_at_the_first_step_that_fails() {
    let provider = Provider::with(vec!["other.example".to_owned()], |_| ()).await;
    let (client, endpoint) = (provider.client(), provider.endpoint());
    let (steps, _) =
        join!(client.probe(&endpoint), async { provider.handshake(provider.accept().await).await });
    assert_eq!(outcomes(&steps), [(Step::LookUp, true), (Step::Connect, true), (Step::Tls, false)]);
    assert!(steps[2].outcome.clone().unwrap_err().contains("another name"));
    assert!(provider.nobody_else_came());

    let closed = Provider::new().await;
    let (client, endpoint) = (closed.client(), closed.endpoint());
    drop(closed);
    let steps = client.probe(&endpoint).await;
    assert_eq!(outcomes(&steps), [(Step::LookUp, true), (Step::Connect, false)]);
    let text = steps[1].outcome.clone().unwrap_err();
    assert_eq!(text.matches(" / ").count(), 2, "{text}");
}
