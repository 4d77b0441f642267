//! The way to a provider: who is believed to be it, what is spoken with it, and what happens on the way there.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    process::Command,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use bloom_agent::{http::LookUps, store::Phase};
use nix::poll::poll;
use rcgen::DnType;
use tokio::{io::AsyncReadExt as _, net::TcpStream, sync::Notify, time::Instant};
use tokio_rustls::{
    rustls::{
        ConnectionTrafficSecrets, ServerConfig,
        crypto::aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        version::{TLS12, TLS13},
    },
    server::TlsStream,
};

use super::{
    bench::{Bench, SECOND, UNREACHABLE, assert_fault, faults_of},
    rows,
    tls_server::{NAME, TlsServer, carry, good, here, nobody_came, request, self_signed, write},
};
use crate::{
    host::{self, Host},
    support::{BLOOM, HANG, SECRET, Setting, profile, soon},
};

rows! {
    certificates_are_verified => "A certificate that is expired, not valid yet, self-signed, of another CA, for another name, or with its name in the subject only is refused, and there is no switch", "RFC 9525";
    versions_of_tls => "TLS 1.2 and 1.3 are spoken; TLS 1.0 and 1.1, SSL, plaintext and renegotiation are refused", "RFC 8996 §5";
    a_handshake_that_stalls => "Another ALPN is refused, and a handshake that stalls or trickles ends with the deadline of 10 s", "policy";
    the_ca_file => "`ca_file` replaces the system's trust, and is refused if others can write it", "policy";
    the_proxy => "A proxy comes from the config only, and sees nothing in clear", "policy";
    names_and_addresses => "A name without an address, a resolver that fails or hangs, a hundred addresses, a silent IPv6, another address: each costs no more than it must", "RFC 8305";
    no_address_is_judged => "The address is not judged: private ones are as good, and TLS names the host", "policy";
}

/// The verdict of a way that leads nowhere: no request is counted, and no secret has left.
async fn leads_nowhere(bench: &Bench, what: &str, why: &str, serve: impl Future<Output = Vec<u8>>) {
    let requests = bench.client.status().await.unwrap().profiles.remove(0).requests;
    let received = Mutex::new(Vec::new());
    let serve = async { *received.lock().unwrap() = serve.await };
    let text = bench.fails(what, UNREACHABLE, serve).await;
    assert!(text.contains(why), "{what}: {text}");
    assert_eq!(
        bench.client.status().await.unwrap().profiles.remove(0).requests,
        requests,
        "{what}: no request"
    );
    let received = received.into_inner().unwrap();
    assert!(!received.windows(6).any(|window| window == b"secret"), "{what}");
}

async fn certificates_are_verified() {
    type Change = fn(&mut rcgen::CertificateParams);
    let mut server = TlsServer::new().await;
    let bench = server.bench().await;
    let stranger = TlsServer::new().await;
    let of_ca: [(&str, &[&str], Change, &str); 5] = [
        ("expired", &[NAME], |params| params.not_after = rcgen::date_time_ymd(2001, 1, 1), "has expired"),
        (
            "not yet valid",
            &[NAME],
            |params| params.not_before = rcgen::date_time_ymd(4000, 1, 1),
            "not valid yet",
        ),
        ("another name", &["other.story.example"], |_| (), "another name"),
        ("its address only", &["127.0.0.1"], |_| (), "another name"),
        (
            "name in the subject only",
            &[],
            |params| params.distinguished_name.push(DnType::CommonName, NAME),
            "another name",
        ),
    ];
    let mut configs: Vec<(&str, ServerConfig, &str)> = Vec::new();
    for (what, names, change, why) in of_ca {
        server.present(names, change);
        configs.push((what, server.config.clone(), why));
    }
    configs.push(("of another CA", stranger.config.clone(), "certificate"));
    configs.push(("self-signed", self_signed(), "certificate"));
    for (what, config, why) in configs {
        server.config = config;
        leads_nowhere(&bench, what, why, refused_handshake(&server)).await;
        server.present(&[NAME], |_| ());
        tokio::join!(bench.recovers(what), server.answer_well());
    }
    bench.end().await;

    // By its address, with a certificate for its name.
    server.present(&[NAME], |_| ());
    let lines = server.lines_at(&format!("https://{}/token", server.address()));
    let setting = Setting { tokens: profile(BLOOM, &lines), look_ups: here(), ..Setting::default() };
    let (bench, _) = tokio::join!(Bench::begin(setting), refused_handshake(&server));
    let attempts = bench.agent.attempts_until(BLOOM, |attempts| attempts.settled > 0).await;
    let text = super::bench::failure_text(&attempts).expect("it is refused");
    assert!(text.contains("another name"), "{text}");
    bench.end().await;

    for key in ["insecure", "verify", "tls_verify", "skip_verify", "danger_accept_invalid_certs", "ssl"] {
        for value in ["true", "false", "'none'"] {
            let told = faults_of(&format!("{key} = {value}"));
            assert!(told.contains(&format!("tokens.a.{key}: ")), "{key}: {told}");
        }
    }
    for command in ["run", "check", "dev"] {
        let help =
            Command::new(env!("CARGO_BIN_EXE_bloom-agent")).args([command, "--help"]).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap().to_lowercase();
        assert!(help.contains("usage") && !help.contains("insecure") && !help.contains("verify"), "{help}");
    }
}

/// A handshake that the client breaks off.
async fn refused_handshake(server: &TlsServer) -> Vec<u8> {
    let stream = server.accept().await;
    assert!(server.handshake(stream).await.is_err(), "the client must not go on");
    Vec::new()
}

/// Answers a ClientHello with these bytes, and returns all that came.
async fn answers_the_hello(server: &TlsServer, answer: &[u8]) -> Vec<u8> {
    let mut stream = server.accept().await;
    let mut received = vec![0; 16 * 1024];
    let length = soon("a ClientHello", stream.read(&mut received)).await.unwrap();
    received.truncate(length);
    write(&mut stream, answer).await;
    // How it hangs up is its own affair.
    let _end = soon("the client hangs up", stream.read_to_end(&mut received)).await;
    received
}

/// The versions that a ClientHello offers in its extension (RFC 8446 §4.2.1).
fn offered_versions(hello: &[u8]) -> Vec<u16> {
    let extension = hello.windows(4).position(|bytes| bytes == [0, 43, 0, 5]).expect("supported_versions");
    let list = &hello[extension + 4..extension + 9];
    assert_eq!(list[0], 4);
    list[1..].chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
}

/// A ServerHello of an older version, with a cipher suite that the client offers.
fn server_hello(version: u8) -> Vec<u8> {
    let mut body = vec![3, version];
    body.extend([7; 32]);
    body.extend([0, 0xc0, 0x2f, 0]);
    let mut hello = vec![22, 3, version, 0, u8::try_from(body.len() + 4).unwrap(), 2, 0, 0];
    hello.push(u8::try_from(body.len()).unwrap());
    [hello, body].concat()
}

async fn versions_of_tls() {
    let mut server = TlsServer::new().await;
    let bench = server.bench().await;
    for version in [&TLS12, &TLS13] {
        server.speak(version);
        tokio::join!(bench.recovers("a version that is spoken"), server.answer_well());
    }
    let alert = |version: u8| vec![21, 3, version, 0, 2, 2, 70];
    let ssl2 = [b"\x80\x2e\x04\x00\x01\x00\x02".to_vec(), vec![0; 41]].concat();
    for (what, answer) in [
        ("TLS 1.0, by its ServerHello", server_hello(1)),
        ("TLS 1.1, by its ServerHello", server_hello(2)),
        ("SSL 3, by its ServerHello", server_hello(0)),
        ("TLS 1.0, by an alert", alert(1)),
        ("TLS 1.1, by an alert", alert(2)),
        ("SSL 2", ssl2),
        ("plaintext", b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n".to_vec()),
        ("SSH", b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()),
        ("nothing", Vec::new()),
    ] {
        let hello = Mutex::new(Vec::new());
        let serve = async {
            let received = answers_the_hello_and_goes(&server, &answer).await;
            hello.lock().unwrap().clone_from(&received);
            received
        };
        let why = if answer.is_empty() { "no " } else { "no TLS with" };
        leads_nowhere(&bench, what, why, serve).await;
        assert_eq!(offered_versions(&hello.into_inner().unwrap()), [0x0304, 0x0303], "{what}");
        tokio::join!(bench.recovers(what), server.answer_well());
    }
    bench.end().await;
    renegotiation().await;
}

/// The same; with nothing to answer it hangs up at once.
async fn answers_the_hello_and_goes(server: &TlsServer, answer: &[u8]) -> Vec<u8> {
    if !answer.is_empty() {
        return answers_the_hello(server, answer).await;
    }
    let mut stream = server.accept().await;
    let mut received = vec![0; 16 * 1024];
    let length = soon("a ClientHello", stream.read(&mut received)).await.unwrap();
    received.truncate(length);
    received
}

/// A server that asks for a new handshake in the middle (RFC 5246 §7.4.1.1) is rebuffed once, and left the second time.
async fn renegotiation() {
    let mut server = TlsServer::new().await;
    server.speak(&TLS12);
    let bench = server.bench().await;
    server.speak_one(TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256);

    let rebuffed = async {
        let mut stream = server.accept_tls().await;
        request(&mut stream).await;
        let mut wire = Wire::of(stream);
        wire.send(22, &[0, 0, 0, 0]).await;
        let mut head = [0; 5];
        soon("an answer to it", wire.stream.read_exact(&mut head)).await.unwrap();
        assert_eq!(head[0], 21, "an alert, and no ClientHello");
        wire.send(23, &good()).await;
        wire.send(21, &[1, 0]).await;
    };
    tokio::join!(bench.recovers("rebuffed"), rebuffed);
    let left = async {
        let mut stream = server.accept_tls().await;
        request(&mut stream).await;
        let mut wire = Wire::of(stream);
        for _ in 0..2 {
            wire.send(22, &[0, 0, 0, 0]).await;
        }
        let mut rest = Vec::new();
        let _end = soon("the client hangs up", wire.stream.read_to_end(&mut rest)).await;
        let mut records = rest.as_slice();
        while let [kind, _, _, high, low, more @ ..] = records {
            assert_eq!(*kind, 21, "alerts only");
            records = &more[usize::from(u16::from_be_bytes([*high, *low]))..];
        }
    };
    bench.fails("asked twice", UNREACHABLE, left).await;
    bench.end().await;
}

/// A connection after its handshake, record by record.
struct Wire {
    stream: TcpStream,
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Wire {
    fn of(stream: TlsStream<TcpStream>) -> Self {
        let (stream, connection) = stream.into_inner();
        let (sequence, secrets) = connection.dangerous_extract_secrets().unwrap().tx;
        let ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } = secrets else {
            panic!("another cipher suite than the only one")
        };
        let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key.as_ref()).unwrap());
        Self { stream, key, iv: iv.as_ref().try_into().unwrap(), sequence }
    }

    /// One record of this content type (RFC 5246 §6.2.3.3, RFC 7905 §2).
    async fn send(&mut self, kind: u8, content: &[u8]) {
        let mut nonce = self.iv;
        for (byte, of_sequence) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= of_sequence;
        }
        let length = u16::try_from(content.len()).unwrap();
        let mut aad = self.sequence.to_be_bytes().to_vec();
        aad.extend([kind, 3, 3]);
        aad.extend(length.to_be_bytes());
        let mut sealed = content.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from(aad), &mut sealed).unwrap();
        self.sequence += 1;
        let mut record = vec![kind, 3, 3];
        record.extend(u16::try_from(sealed.len()).unwrap().to_be_bytes());
        record.extend(sealed);
        assert!(write(&mut self.stream, &record).await);
    }
}

/// Tokio's time stands still and moves only when it is told to: it would run ahead of what the kernel still does, but for
/// a thread that is at work all the while. Should something hang, the thread ends, the time runs, and it shows.
struct StandingTime {
    began: Instant,
    end: Option<Sender<()>>,
}

impl StandingTime {
    fn begin() -> Self {
        let (end, ended) = channel::<()>();
        let _thread = tokio::task::spawn_blocking(move || ended.recv_timeout(HANG));
        tokio::time::pause();
        Self { began: Instant::now(), end: Some(end) }
    }

    async fn advance(&self, by: Duration) {
        tokio::time::advance(by).await;
    }

    /// Ends it. It must not have become later than it was made.
    fn end(self, most: Duration) {
        let went_by = self.began.elapsed();
        assert!(went_by <= most, "{went_by:?} went by, not {most:?}");
    }
}

impl Drop for StandingTime {
    fn drop(&mut self) {
        drop(self.end.take());
        tokio::time::resume();
    }
}

async fn a_handshake_that_stalls() {
    let mut server = TlsServer::new().await;
    let bench = server.bench().await;
    for (protocols, is_spoken) in
        [(&[&b"h3"[..]][..], false), (&[b"spdy/3", b"http/0.9"], false), (&[b"http/1.1"], true), (&[], true)]
    {
        server.config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        if !is_spoken {
            leads_nowhere(&bench, "another ALPN", "it refused the handshake", refused_handshake(&server))
                .await;
            server.config.alpn_protocols.clear();
        }
        tokio::join!(bench.recovers("ALPN"), server.answer_well());
    }

    let stalls: [(&str, &[u8]); 3] = [
        ("silence", b""),
        ("half a record", b"\x16\x03\x03\x40"),
        ("byte by byte", &[22, 3, 3, 0x40, 0, 2, 0, 0x3f, 0xfc, 3, 3]),
    ];
    for (what, bytes) in stalls {
        let time = StandingTime::begin();
        let mut bytes = bytes.iter().copied().collect::<VecDeque<u8>>();
        let serve = async {
            let mut stream = server.accept().await;
            let mut received = vec![0; 16 * 1024];
            let length = soon("a ClientHello", stream.read(&mut received)).await.unwrap();
            received.truncate(length);
            for second in 0..10 {
                if second == 7 {
                    let phase = bench.agent.attempts(BLOOM).phase;
                    assert_eq!(phase, Phase::InFlight, "{what}: it may still come");
                }
                if let Some(byte) = bytes.pop_front() {
                    write(&mut stream, &[byte]).await;
                }
                time.advance(SECOND).await;
            }
            let _end = soon("the client hangs up", stream.read_to_end(&mut received)).await;
            received
        };
        leads_nowhere(&bench, what, "time-out", serve).await;
        time.end(10 * SECOND);
        tokio::join!(bench.recovers(what), server.answer_well());
    }
    bench.end().await;
}

async fn the_ca_file() {
    let mut server = TlsServer::new().await;
    let bench = server.bench().await;
    let before = bench.token().await;
    let ours = server.ca.path().to_owned();
    let pem = std::fs::read(&ours).unwrap();
    for mode in [0o666, 0o664, 0o622] {
        chmod(&ours, mode);
        let status = bench.client.reload().await.expect_err("others can write it");
        assert!(status.message().contains("ca_file"), "{status:?}");
        assert_eq!(bench.token().await, before, "what is in force stays in force");
    }
    chmod(&ours, 0o644);
    for nothing in ["", "no certificate\n"] {
        std::fs::write(&ours, nothing).unwrap();
        assert!(bench.client.reload().await.expect_err("it trusts nobody").message().contains("ca_file"));
    }
    // Another CA's: the server is nobody any more, though its own was trusted before.
    let stranger = TlsServer::new().await;
    std::fs::copy(stranger.ca.path(), &ours).unwrap();
    bench.client.reload().await.unwrap();
    leads_nowhere(&bench, "another CA", "certificate", refused_handshake(&server)).await;
    // Mended, it is tried at once: the time stands still.
    std::fs::write(&ours, &pem).unwrap();
    let settled = bench.agent.attempts(BLOOM).settled;
    bench.client.reload().await.unwrap();
    let is_well = bench.agent.attempts_until(BLOOM, |a| a.settled > settled && a.consecutive_failures == 0);
    tokio::join!(is_well, server.answer_well());
    bench.end().await;

    // Without one the system's store is asked, which does not know a CA of today.
    server.present(&[NAME], |_| ());
    let lines = server.lines().lines().next().unwrap().to_owned();
    let setting = Setting { tokens: profile(BLOOM, &lines), look_ups: here(), ..Setting::default() };
    let (bench, _) = tokio::join!(Bench::begin(setting), refused_handshake(&server));
    bench.agent.attempts_until(BLOOM, |attempts| attempts.consecutive_failures > 0).await;
    bench.end().await;
}

#[allow(clippy::disallowed_methods, reason = "a file of the test's own")]
fn chmod(path: &std::path::Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

async fn the_proxy() {
    for (proxy, says) in [
        ("https://proxy.example:3128", "http://host:port"),
        ("socks5://proxy.example:3128", "http://host:port"),
        ("http://proxy.example", "port"),
        ("http://u:c4n4ry@proxy.example:3128", "names a user or a password"),
    ] {
        assert_fault(&format!("proxy = '{proxy}'"), "proxy", says);
    }

    let (server, proxy) = (TlsServer::new().await, TlsServer::new().await);
    let lines = format!("{}proxy = 'http://{}'", server.lines(), proxy.address());
    let through = Mutex::new(Vec::new());
    let one_exchange = async {
        let mut near = proxy.accept().await;
        let connect = request(&mut near).await;
        assert!(connect.starts_with(&format!("CONNECT {NAME}:{} ", server.address().port())), "{connect}");
        assert!(write(&mut near, b"HTTP/1.1 200 OK\r\n\r\n").await);
        let far = TcpStream::connect(server.address()).await.unwrap();
        carry(near, far, &through).await;
    };
    let setting = Setting { tokens: profile(BLOOM, &lines), look_ups: here(), ..Setting::default() };
    let (bench, seen, ()) = tokio::join!(Bench::start(setting), server.answer_well(), one_exchange);
    assert!(seen.contains(SECRET), "it reached the provider");
    let through = through.into_inner().unwrap();
    let token = bench.token().await.access_token;
    for clear in [SECRET, "it-client", "grant_type", "POST", &token] {
        assert!(!through.windows(clear.len()).any(|window| window == clear.as_bytes()), "{clear} in clear");
    }
    // A proxy that refuses gets nothing more.
    for answer in ["HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "HTTP/1.1 403 Forbidden\r\n\r\n"] {
        let serve = async {
            let mut near = proxy.accept().await;
            let connect = request(&mut near).await;
            write(&mut near, answer.as_bytes()).await;
            let mut rest = connect.into_bytes();
            let _end = soon("the client hangs up", near.read_to_end(&mut rest)).await;
            rest
        };
        leads_nowhere(&bench, answer, "the proxy does not connect to", serve).await;
    }
    assert!(server.nobody_came());
    bench.end().await;

    // The environment's are asked by nobody: a process of its own, as they are a process's.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", nobody.local_addr().unwrap());
    let host = Host::new("s3cret");
    host.config(&(host.agent_table("") + &host.profile("bloom", "")));
    let mut command = host.daemon(&["run"]);
    command.env("NO_PROXY", "").env("no_proxy", "");
    for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env(variable, &url).env(variable.to_lowercase(), &url);
    }
    let agent = host::Agent::spawn(command);
    agent.wait_until_logged("a new token");
    agent.stop();
    assert_eq!(host.issuer.control.granted_count(), 1);
    assert!(nobody_came(std::os::fd::AsFd::as_fd(&nobody)), "somebody asked it");
}

/// A resolver that says what the row says.
#[derive(Clone)]
struct Resolver(Arc<Mutex<Says>>);

enum Says {
    Addresses(Vec<IpAddr>),
    Fails(&'static str),
    /// Nothing, until the row lets go; it tells that it was asked.
    Hangs(Arc<Notify>, Receiver<()>),
}

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

impl Resolver {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Says::Addresses(vec![HERE]))))
    }

    fn say(&self, says: Says) {
        *self.0.lock().unwrap() = says;
    }

    fn look_ups(&self) -> LookUps {
        let resolver = self.clone();
        LookUps::asking(move |host| {
            assert_eq!(host, NAME);
            match &*resolver.0.lock().unwrap() {
                Says::Addresses(addresses) => {
                    Ok(addresses.iter().map(|ip| SocketAddr::new(*ip, 0)).collect())
                }
                Says::Fails(why) => Err(io::Error::other(*why)),
                Says::Hangs(asked, released) => {
                    asked.notify_one();
                    // An error when the row is over.
                    let _released = released.recv();
                    Ok(vec![SocketAddr::new(HERE, 0)])
                }
            }
        })
    }
}

async fn names_and_addresses() {
    let server = TlsServer::new().await;
    let resolver = Resolver::new();
    let bench = server.bench_with(&server.lines(), resolver.look_ups()).await;
    let nothing = || async { Vec::new() };
    let well = async |what: &str| {
        resolver.say(Says::Addresses(vec![HERE]));
        tokio::join!(bench.recovers(what), server.answer_well());
    };

    for why in [
        "failed to lookup address information: Name or service not known",
        "failed to lookup address information: Temporary failure in name resolution",
    ] {
        resolver.say(Says::Fails(why));
        leads_nowhere(&bench, why, "the look-up on the way to", nothing()).await;
        well(why).await;
    }
    resolver.say(Says::Addresses(Vec::new()));
    leads_nowhere(&bench, "no address", "the name has no address", nothing()).await;
    well("no address").await;

    // A hundred, of which the last is right: each of the others refuses at once.
    let mut hundred: Vec<_> = (1..100).map(|last| IpAddr::from([127, 0, 1, last])).collect();
    hundred.push(HERE);
    resolver.say(Says::Addresses(hundred));
    tokio::join!(bench.recovers("a hundred"), server.answer_well());
    resolver.say(Says::Addresses((1..100).map(|last| IpAddr::from([127, 0, 1, last])).collect()));
    leads_nowhere(&bench, "99 wrong ones", "no connection to", nothing()).await;
    well("99 wrong ones").await;

    // It is asked anew for each connection.
    let moved = IpAddr::from([127, 0, 0, 2]);
    let other = tokio::net::TcpListener::bind((moved, server.address().port())).await.unwrap();
    resolver.say(Says::Addresses(vec![moved]));
    let answered_there = async {
        let stream = soon("a connection", other.accept()).await.unwrap().0;
        let mut stream = server.handshake(stream).await.unwrap();
        request(&mut stream).await;
        write(&mut stream, &good()).await;
    };
    tokio::join!(bench.recovers("moved"), answered_there);
    assert!(server.nobody_came());
    well("back again").await;

    let time = StandingTime::begin();
    let (release, released) = channel();
    let asked = Arc::new(Notify::new());
    resolver.say(Says::Hangs(Arc::clone(&asked), released));
    let ten_seconds = async {
        soon("the resolver is asked", asked.notified()).await;
        for _ in 0..10 {
            bench.token().await;
            time.advance(SECOND).await;
        }
        Vec::new()
    };
    leads_nowhere(&bench, "it hangs", "the resolver did not answer", ten_seconds).await;
    time.end(10 * SECOND);
    release.send(()).unwrap();
    well("it hung").await;
    silent_ipv6(&bench, &server, &resolver).await;
    bench.end().await;
}

/// An IPv6 address that nobody answers at costs 300 ms, and no more.
async fn silent_ipv6(bench: &Bench, server: &TlsServer, resolver: &Resolver) {
    let port = server.address().port();
    let Some(_hole) = BlackHole::dig(port) else {
        // Past the test runner, which keeps what a passing test prints to itself.
        let _loud = io::Write::write_fmt(
            &mut io::stderr(),
            format_args!("SKIPPED: a silent IPv6 address: no ::1 here\n"),
        );
        return;
    };
    resolver.say(Says::Addresses(vec![Ipv6Addr::LOCALHOST.into(), HERE]));
    let before = connecting_over_ipv6(port);
    let time = StandingTime::begin();
    let serve = async {
        // The 300 ms begin before the first address is tried.
        let is_tried = move || {
            (0..HANG.as_millis() / 5).any(|_| {
                poll(&mut [], 5_u8).unwrap();
                connecting_over_ipv6(port) != before
            })
        };
        assert!(tokio::task::spawn_blocking(is_tried).await.unwrap(), "the IPv6 address is tried");
        time.advance(Duration::from_millis(299)).await;
        assert!(server.nobody_came(), "it has its time");
        time.advance(Duration::from_millis(2)).await;
        server.answer_well().await
    };
    tokio::join!(bench.recovers("a silent IPv6 address"), serve);
    time.end(Duration::from_millis(301));
}

/// A port of ::1 whose queue is full, so that the kernel drops who comes.
struct BlackHole {
    _listener: std::os::fd::OwnedFd,
    _inside: Vec<std::os::fd::OwnedFd>,
}

impl BlackHole {
    fn dig(port: u16) -> Option<Self> {
        use nix::sys::socket::{
            AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, bind, connect, listen, socket,
        };
        use std::os::fd::AsRawFd as _;
        let address = SockaddrIn6::from(std::net::SocketAddrV6::new(Ipv6Addr::LOCALHOST, port, 0, 0));
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let new = || socket(AddressFamily::Inet6, SockType::Stream, flags, None);
        let listener = new().ok()?;
        bind(listener.as_raw_fd(), &address).ok()?;
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let inside = (0..2)
            .map(|_| {
                let one = new().unwrap();
                // In progress, or refused for being one too many: both fill the queue.
                let _begun = connect(one.as_raw_fd(), &address);
                one
            })
            .collect();
        Some(Self { _listener: listener, _inside: inside })
    }
}

/// How many sockets try to connect to a port of ::1 (proc_net(5): state 02 is SYN_SENT).
fn connecting_over_ipv6(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp6").unwrap_or_default();
    let remote = format!(":{port:04X}");
    let tries = |line: &&str| {
        let mut fields = line.split_whitespace().skip(2);
        fields.next().is_some_and(|address| address.ends_with(&remote)) && fields.next() == Some("02")
    };
    table.lines().filter(tries).count()
}

async fn no_address_is_judged() {
    for host in [
        "10.0.0.1",
        "192.168.1.1:8443",
        "172.16.0.1",
        "169.254.169.254",
        "[fd00::1]",
        "[::1]:1",
        "localhost",
        "127.0.0.1",
    ] {
        assert_eq!(faults_of(&format!("token_url = 'https://{host}/token'")), "", "{host}");
    }
    // An address of the loopback for a name of the world, and it is the name that counts.
    let mut server = TlsServer::new().await;
    let bench = server.bench().await;
    server.present(&["127.0.0.1", "localhost"], |_| ());
    leads_nowhere(&bench, "somebody else at this address", "another name", refused_handshake(&server)).await;
    server.present(&[NAME], |_| ());
    tokio::join!(bench.recovers("the one that is named"), server.answer_well());
    bench.end().await;
}
