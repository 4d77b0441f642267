//! The way to a token endpoint: one POST over HTTPS, and back with what was answered.
//!
//! - Nothing but the configured endpoint is asked: no redirect is followed, no proxy comes from the environment, nothing
//!   is sent twice, no cookie, no Referer, no cache. TLS is 1.2 or 1.3, and no switch turns the verification off.
//! - One deadline covers an exchange, from the look-up to the last byte; [`MAX_BODY`] bounds what is read.
//! - No connection and no TLS session outlives its exchange: the next one is hours away.
//! - An error of the HTTP library is never printed: it may hold the URL. [`NetworkFault`] has words of its own.

mod certificate;
mod fault;
mod look_up;
mod probe;
mod progress;
mod tls;

use std::{sync::Arc, time::Duration};

use ::http::{HeaderMap, HeaderValue, Method, header};
use bytes::Bytes;
use reqwest::{Proxy, redirect, retry};
use tokio::time::timeout_at;
use zeroize::Zeroizing;

pub use fault::{NetworkFault, Reached, Step};
pub use look_up::{LOOK_UPS, LookUps};
pub use probe::Probed;
use progress::Progress;
pub use tls::TransportFault;

use crate::oauth2::{Answer, BodyEnd, EncodedRequest, Endpoint, ProxyUrl};

/// One exchange, from the look-up to the last byte.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// The longest body that is read, in bytes.
pub const MAX_BODY: usize = 64 * 1024;
/// The longest header list that is read, in bytes, over HTTP/2. Over HTTP/1 it is 100 headers.
const MAX_HEADER_LIST: u32 = 32 * 1024;

/// How a profile's provider is reached. Profiles with equal ones can share an [`HttpClient`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Transport {
    /// `ca_file`: PEM certificates, which replace the system's store.
    pub ca_file: Option<Arc<[u8]>>,
    /// `proxy`, asked by CONNECT.
    pub proxy: Option<ProxyUrl>,
}

/// Sends token requests. It holds the trust store and no connection.
#[derive(Clone)]
pub struct HttpClient {
    tls: rustls::ClientConfig,
    proxy: Option<ProxyUrl>,
    deadline: Duration,
    look_ups: LookUps,
}

/// What was answered, whole or not.
pub struct Answered {
    status: u16,
    headers: HeaderMap,
    body: Zeroizing<Vec<u8>>,
    end: BodyEnd,
}

impl Answered {
    /// The answer, to be read.
    pub fn as_answer(&self) -> Answer<'_> {
        Answer { status: self.status, headers: &self.headers, body: &self.body, end: &self.end }
    }
}

impl HttpClient {
    /// Reads the trust store: `transport`'s own, or the system's (as with OpenSSL, SSL_CERT_FILE and SSL_CERT_DIR say
    /// where that is, if they are set). Blocking, for some 10 ms; what changes there later is not seen.
    pub fn new(transport: &Transport) -> Result<Self, TransportFault> {
        Ok(Self {
            tls: tls::client_config(transport.ca_file.as_deref())?,
            proxy: transport.proxy.clone(),
            deadline: DEADLINE,
            look_ups: LookUps::default(),
        })
    }

    /// The same, one of those that share `look_ups`.
    #[must_use]
    pub fn with_look_ups(self, look_ups: LookUps) -> Self {
        Self { look_ups, ..self }
    }

    /// The same with another deadline than [`DEADLINE`].
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Sends `request` to `endpoint`, once.
    pub async fn post(&self, endpoint: &Endpoint, request: EncodedRequest) -> Result<Answered, NetworkFault> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(EncodedRequest::ACCEPT));
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(EncodedRequest::ACCEPT_ENCODING));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(request.content_type));
        if let Some(authorization) = request.authorization {
            // Not copied: the buffer is wiped when the last part of the request is dropped.
            let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(authorization))
                .map_err(|_| NetworkFault::not_a_request())?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        self.exchange(Method::POST, endpoint, headers, Bytes::from_owner(request.body)).await
    }

    async fn exchange(
        &self,
        method: Method,
        endpoint: &Endpoint,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answered, NetworkFault> {
        let deadline = tokio::time::Instant::now() + self.deadline;
        let proxy = self.proxy_for(endpoint);
        let progress = Progress::new(proxy.map_or(endpoint.host(), ProxyUrl::host));
        let client = self.client(endpoint, &progress).map_err(|_| NetworkFault::not_a_request())?;
        let request = client.request(method, endpoint.url().clone()).headers(headers).body(body);
        let fault = |error: &reqwest::Error| NetworkFault::of(error, progress.step(), proxy.is_some());

        let mut response = timeout_at(deadline, request.send())
            .await
            .map_err(|_| NetworkFault::timed_out(progress.step(), self.deadline))?
            .map_err(|error| fault(&error))?;
        let mut body = Zeroizing::new(Vec::with_capacity(MAX_BODY));
        let end = loop {
            match timeout_at(deadline, response.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    let room = MAX_BODY - body.len();
                    body.extend(chunk.iter().take(room));
                    if chunk.len() > room {
                        break BodyEnd::TooLong;
                    }
                }
                Ok(Ok(None)) => break BodyEnd::Whole,
                Ok(Err(error)) => break BodyEnd::Broken(fault(&error).why().into()),
                Err(_) => {
                    break BodyEnd::Broken(
                        NetworkFault::timed_out(Step::Request, self.deadline).why().into(),
                    );
                }
            }
        };
        Ok(Answered {
            status: response.status().as_u16(),
            headers: std::mem::take(response.headers_mut()),
            body,
            end,
        })
    }

    /// A client for one exchange: what it connects ends with it.
    fn client(&self, endpoint: &Endpoint, progress: &Progress) -> reqwest::Result<reqwest::Client> {
        let builder = reqwest::Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .https_only(!endpoint.is_plaintext())
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .referer(false)
            .no_proxy()
            .pool_max_idle_per_host(0)
            .user_agent(concat!("bloom-agent/", env!("CARGO_PKG_VERSION")))
            .http2_max_header_list_size(MAX_HEADER_LIST)
            .http2_initial_stream_window_size(u32::try_from(MAX_BODY).ok())
            .http2_initial_connection_window_size(u32::try_from(MAX_BODY).ok())
            // Shared out among the addresses of a name, so that a silent one leaves time for the next. IPv4 starts
            // 300 ms after IPv6 in any case (hyper-util's default, RFC 8305).
            .connect_timeout(self.deadline * 4 / 5)
            .dns_resolver(progress.resolver(&self.look_ups))
            .connector_layer(progress.layer());
        match self.proxy_for(endpoint) {
            Some(proxy) => builder.proxy(Proxy::all(proxy.as_str())?),
            None => builder,
        }
        .build()
    }

    /// The loopback is never asked for through a proxy, which would see a plaintext request whole.
    fn proxy_for(&self, endpoint: &Endpoint) -> Option<&ProxyUrl> {
        self.proxy.as_ref().filter(|_| !endpoint.is_plaintext())
    }
}

#[cfg(test)]
#[path = "http/tests.rs"]
mod tests;
