//! A gRPC client on one connection, with nothing between it and the wire: no deadline of its own, no retry, no reconnect.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bloom_agent::pb::{
    self, admin_service_client::AdminServiceClient, token_service_client::TokenServiceClient,
};
use http::{Request, Response, Uri};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status, body::Body};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use super::soon;

/// A stream of tokens.
pub(crate) type Watch = tonic::Streaming<pb::WatchTokenResponse>;

/// One HTTP/2 connection. Clones share it; it is closed with the last.
#[derive(Clone)]
pub(crate) struct Wire {
    requests: SendRequest<Body>,
    _connection: Arc<AbortOnDropHandle<()>>,
}

impl tower_service::Service<Request<Body>> for Wire {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.requests.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.requests.send_request(request))
    }
}

/// Everything that the socket offers, over one connection.
#[derive(Clone)]
pub(crate) struct Client {
    wire: Wire,
    pub(crate) tokens: TokenServiceClient<Wire>,
    pub(crate) admin: AdminServiceClient<Wire>,
    pub(crate) health: HealthClient<Wire>,
}

impl Client {
    /// Over a stream that somebody has connected.
    pub(crate) async fn over(stream: std::os::unix::net::UnixStream) -> Self {
        // As much as a client can take.
        Self::with_window(stream, 64 * 1024).await
    }

    /// The same, if the agent is there to say hello to.
    pub(crate) async fn try_over(stream: std::os::unix::net::UnixStream) -> Option<Self> {
        Self::greet(stream, 64 * 1024).await.ok()
    }

    /// The same with a stream window of so many bytes: what it does not read stays at the agent.
    pub(crate) async fn with_window(stream: std::os::unix::net::UnixStream, bytes: u32) -> Self {
        Self::greet(stream, bytes).await.unwrap()
    }

    async fn greet(stream: std::os::unix::net::UnixStream, bytes: u32) -> hyper::Result<Self> {
        stream.set_nonblocking(true).unwrap();
        let stream = UnixStream::from_std(stream).unwrap();
        let (requests, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(bytes)
            .initial_connection_window_size(16 * 1024 * 1024)
            .handshake(TokioIo::new(stream))
            .await?;
        let driver = owned(async move {
            // How it ended is seen by the calls on it.
            let _ended = connection.await;
        });
        let wire = Wire { requests, _connection: Arc::new(driver) };
        let origin = Uri::from_static("http://localhost");
        Ok(Self {
            tokens: TokenServiceClient::with_origin(wire.clone(), origin.clone()),
            admin: AdminServiceClient::with_origin(wire.clone(), origin.clone()),
            health: HealthClient::with_origin(wire.clone(), origin),
            wire,
        })
    }

    /// The connection itself, for other clients than these.
    pub(crate) fn wire(&self) -> Wire {
        self.wire.clone()
    }

    pub(crate) async fn get(&self, name: &str) -> Result<pb::Token, Status> {
        self.get_valid_for(name, None).await
    }

    /// GetToken with `min_validity`.
    pub(crate) async fn get_valid_for(
        &self,
        name: &str,
        min_validity: Option<Duration>,
    ) -> Result<pb::Token, Status> {
        let min_validity = min_validity.map(|wanted| wanted.try_into().unwrap());
        let request = pb::GetTokenRequest { name: name.to_owned(), min_validity };
        let mut tokens = self.tokens.clone();
        let answer = soon("an answer of GetToken", tokens.get_token(request)).await;
        answer.map(|answer| answer.into_inner().token.unwrap())
    }

    /// Makes a call that will wait; when this returns it has come to the agent, and waits there.
    pub(crate) async fn begin<T: Send + 'static>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
    ) -> AbortOnDropHandle<T> {
        let call = owned(call);
        self.catch_up().await;
        call
    }

    /// Waits until the agent has taken up every call that tasks spawned before this one make on this connection. Both
    /// ends run on one thread and take things in their order: this call's task runs after theirs, its stream is opened
    /// after theirs, and its answer comes after theirs were first looked at.
    pub(crate) async fn catch_up(&self) {
        let after = self.clone();
        owned(async move { after.list().await }).await.unwrap();
    }

    /// GetToken, begun.
    pub(crate) async fn begin_get(&self, name: &'static str) -> AbortOnDropHandle<Result<pb::Token, Status>> {
        let client = self.clone();
        self.begin(async move { client.get(name).await }).await
    }

    /// WatchToken: what comes back is the headers' arrival.
    pub(crate) async fn watch(&self, name: &str) -> Result<Watch, Status> {
        let request = pb::WatchTokenRequest { name: name.to_owned() };
        let mut tokens = self.tokens.clone();
        soon("an answer of WatchToken", tokens.watch_token(request)).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn list(&self) -> Vec<pb::TokenStatus> {
        let mut tokens = self.tokens.clone();
        let answer = soon("an answer of ListTokens", tokens.list_tokens(pb::ListTokensRequest {})).await;
        answer.unwrap().into_inner().tokens
    }

    pub(crate) async fn report(
        &self,
        name: &str,
        generation: u64,
    ) -> Result<pb::ReportRejectedResponse, Status> {
        let request = pb::ReportRejectedRequest { name: name.to_owned(), generation };
        let mut tokens = self.tokens.clone();
        soon("an answer of ReportRejected", tokens.report_rejected(request))
            .await
            .map(tonic::Response::into_inner)
    }

    pub(crate) async fn refresh(&self, name: &str) -> Result<pb::TokenStatus, Status> {
        let request = pb::RefreshTokenRequest { name: name.to_owned() };
        let mut admin = self.admin.clone();
        let answer = soon("an answer of RefreshToken", admin.refresh_token(request)).await;
        answer.map(|answer| answer.into_inner().token.unwrap())
    }

    pub(crate) async fn reload(&self) -> Result<pb::ReloadResponse, Status> {
        let mut admin = self.admin.clone();
        let answer = soon("an answer of Reload", admin.reload(pb::ReloadRequest {})).await;
        answer.map(tonic::Response::into_inner)
    }

    pub(crate) async fn status(&self) -> Result<pb::GetStatusResponse, Status> {
        let mut admin = self.admin.clone();
        let answer = soon("an answer of GetStatus", admin.get_status(pb::GetStatusRequest {})).await;
        answer.map(tonic::Response::into_inner)
    }

    pub(crate) async fn metrics(&self) -> Result<String, Status> {
        let mut admin = self.admin.clone();
        let answer = soon("an answer of GetMetrics", admin.get_metrics(pb::GetMetricsRequest {})).await;
        answer.map(|answer| answer.into_inner().text)
    }

    /// Health's Check.
    pub(crate) async fn check(&self, service: &str) -> Result<ServingStatus, Status> {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut health = self.health.clone();
        let answer = soon("an answer of Check", health.check(request)).await;
        answer.map(|answer| answer.into_inner().status())
    }

    /// Health's Watch.
    pub(crate) async fn watch_health(&self, service: &str) -> tonic::Streaming<HealthCheckResponse> {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut health = self.health.clone();
        soon("an answer of Watch", health.watch(request)).await.unwrap().into_inner()
    }
}

/// A task that ends with its handle.
#[allow(clippy::disallowed_methods, reason = "its owner is whoever holds the handle")]
fn owned<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> AbortOnDropHandle<T> {
    AbortOnDropHandle::new(tokio::spawn(task))
}

/// The next message of a stream, or its end.
pub(crate) trait Next<T> {
    async fn next_message(&mut self) -> Result<Option<T>, Status>;
}

impl<T> Next<T> for tonic::Streaming<T> {
    async fn next_message(&mut self) -> Result<Option<T>, Status> {
        soon("a message, or the end", self.message()).await
    }
}

/// What a status says to a program: the code, the reason of its ErrorInfo, whether it says when to ask again.
pub(crate) fn refusal(status: &Status) -> (Code, String, bool) {
    let info = status.get_details_error_info();
    assert!(info.iter().all(|info| info.domain == "bloom.agent"), "{info:?}");
    let reason = info.map(|info| info.reason).unwrap_or_default();
    (status.code(), reason, status.get_details_retry_info().is_some())
}

/// When a status says to ask again.
pub(crate) fn retry_delay(status: &Status) -> Duration {
    status.get_details_retry_info().and_then(|retry| retry.retry_delay).expect("a RetryInfo")
}
