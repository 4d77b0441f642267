//! `check --connect`: the way to a provider, step by step, without credentials and without costing a token.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use ::http::{HeaderMap, Method};
use bytes::Bytes;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{
    HttpClient, certificate,
    fault::{NetworkFault, Step, io_words},
};
use crate::oauth2::Endpoint;

/// The longest head of a proxy's answer that is read, in bytes.
const MAX_PROXY_HEAD: usize = 8 * 1024;

/// One step, and how it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Which one.
    pub step: Step,
    /// What was found; or the line that says what failed, why, and what to do.
    pub outcome: Result<Box<str>, Box<str>>,
}

impl HttpClient {
    /// Goes the way to `endpoint` up to the first step that fails. The last step asks it with HEAD, which is safe
    /// (RFC 9110 §9.2.1) and so mints no token; a token endpoint may answer with any status (RFC 6749 §3.2 wants
    /// POST), and any status says that it was reached.
    pub async fn probe(&self, endpoint: &Endpoint) -> Vec<Probed> {
        let mut steps = Vec::new();
        if let Err(fault) = self.walk(endpoint, &mut steps).await {
            steps.push(Probed { step: fault.step(), outcome: Err(fault.to_line(endpoint)) });
        }
        steps
    }

    async fn walk(&self, endpoint: &Endpoint, steps: &mut Vec<Probed>) -> Result<(), NetworkFault> {
        let mut found = |step, text: String| steps.push(Probed { step, outcome: Ok(text.into()) });
        let proxy = self.proxy_for(endpoint);
        let (host, port) =
            proxy.map_or((endpoint.host(), endpoint.port()), |proxy| (proxy.host(), proxy.port()));

        let addresses = self.within(Step::LookUp, self.look_up(host, port)).await?;
        found(Step::LookUp, format!("{host}: {} found", count(addresses.len(), "address", "addresses")));
        let (mut stream, address) = self.within(Step::Connect, connect(&addresses, self.deadline)).await?;
        found(Step::Connect, address.to_string());
        if let Some(proxy) = proxy {
            self.within(Step::Proxy, tunnel(&mut stream, endpoint)).await?;
            found(Step::Proxy, format!("{proxy} connects to {endpoint}"));
        }
        if !endpoint.is_plaintext() {
            let text = self.within(Step::Tls, self.handshake(stream, endpoint)).await?;
            found(Step::Tls, text);
        }
        let answered = self.exchange(Method::HEAD, endpoint, HeaderMap::new(), Bytes::new()).await?;
        found(
            Step::Request,
            format!("answers, with status {} to a HEAD without credentials", answered.status),
        );
        Ok(())
    }

    async fn within<T>(
        &self,
        step: Step,
        work: impl Future<Output = Result<T, NetworkFault>>,
    ) -> Result<T, NetworkFault> {
        timeout(self.deadline, work)
            .await
            .unwrap_or_else(|_| Err(NetworkFault::timed_out(step, self.deadline)))
    }

    async fn look_up(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, NetworkFault> {
        let mut addresses =
            self.look_ups.addresses(bare(host)).await.map_err(|fault| NetworkFault::look_up(&fault))?;
        for address in &mut addresses {
            address.set_port(port);
        }
        Ok(addresses)
    }

    async fn handshake(&self, stream: TcpStream, endpoint: &Endpoint) -> Result<String, NetworkFault> {
        let name = ServerName::try_from(bare(endpoint.host()).to_owned())
            .map_err(|_| NetworkFault::new(Step::Tls, "no certificate can be for this name"))?;
        let stream =
            TlsConnector::from(Arc::new(self.tls.clone())).connect(name, stream).await.map_err(|error| {
                match error.get_ref().and_then(|held| held.downcast_ref::<rustls::Error>()) {
                    Some(tls) => NetworkFault::tls(tls),
                    None => NetworkFault::new(Step::Tls, io_words(&error)),
                }
            })?;
        let (_, session) = stream.get_ref();
        let version = match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
            _ => "TLS 1.2",
        };
        let leaf = session.peer_certificates().and_then(<[_]>::first);
        let end =
            leaf.and_then(|leaf| certificate::not_after(leaf)).unwrap_or_else(|| "a time unknown".to_owned());
        Ok(format!("{version}, the certificate is trusted, for {}, and valid until {end}", endpoint.host()))
    }
}

/// The first address that answers; each has its share of the time.
async fn connect(addresses: &[SocketAddr], limit: Duration) -> Result<(TcpStream, SocketAddr), NetworkFault> {
    let share = limit / u32::try_from(addresses.len() + 1).unwrap_or(u32::MAX);
    let mut last = String::new();
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok((stream, *address)),
            Ok(Err(error)) => last = format!("{address}: {}", io_words(&error)),
            Err(_) => last = format!("{address}: no answer"),
        }
    }
    Err(NetworkFault::new(Step::Connect, last))
}

/// Asks a proxy for a way through (RFC 9110 §9.3.6). It learns the host and the port, and nothing else.
async fn tunnel(stream: &mut TcpStream, endpoint: &Endpoint) -> Result<(), NetworkFault> {
    let broken = |error: io::Error| NetworkFault::new(Step::Proxy, io_words(&error));
    let request = format!("CONNECT {endpoint} HTTP/1.1\r\nHost: {endpoint}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    // Byte by byte, so as not to read what belongs to TLS.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_PROXY_HEAD {
            return Err(NetworkFault::new(Step::Proxy, "the head of its answer is too long"));
        }
        head.push(stream.read_u8().await.map_err(broken)?);
    }
    match head.split(|b| *b == b' ').nth(1) {
        Some(b"200") if head.starts_with(b"HTTP/1.") => Ok(()),
        Some(b"407") => Err(NetworkFault::new(
            Step::Proxy,
            "it asks for a user and a password (407), which the agent does not have",
        )),
        _ => Err(NetworkFault::new(Step::Proxy, "it refused CONNECT, or did not answer in HTTP")),
    }
}

/// An IPv6 address without the brackets of a URL.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
