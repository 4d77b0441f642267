//! How far an exchange has come: so that a time-out can say what it waited for, and that a request which was never sent
//! is not counted as one.

use std::{
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tower_layer::Layer;
use tower_service::Service;

use super::{fault::Step, look_up::LookUps};

const LOOK_UP: u8 = 0;
const CONNECT: u8 = 1;
const REQUEST: u8 = 2;

/// One exchange's progress; clones share it.
#[derive(Clone)]
pub(super) struct Progress(Arc<AtomicU8>);

impl Progress {
    /// An exchange with `host`, which is looked up unless it is an address.
    pub(super) fn new(host: &str) -> Self {
        let address = host.starts_with('[') || host.parse::<IpAddr>().is_ok();
        Self(Arc::new(AtomicU8::new(if address { CONNECT } else { LOOK_UP })))
    }

    /// What is being done now.
    pub(super) fn step(&self) -> Step {
        match self.0.load(Ordering::Acquire) {
            LOOK_UP => Step::LookUp,
            CONNECT => Step::Connect,
            _ => Step::Request,
        }
    }

    /// A resolver that notes when it has an answer.
    pub(super) fn resolver(&self, look_ups: &LookUps) -> Arc<NotesAddresses> {
        Arc::new(NotesAddresses(self.clone(), look_ups.clone()))
    }

    /// The layer around connecting (TCP, proxy and TLS), which notes when that is done.
    pub(super) fn layer(&self) -> NotesConnected {
        NotesConnected(self.clone(), ())
    }

    fn reached(&self, step: u8) {
        self.0.fetch_max(step, Ordering::AcqRel);
    }
}

/// The look-ups of this process, and the exchange that waits for one.
pub(super) struct NotesAddresses(Progress, LookUps);

impl Resolve for NotesAddresses {
    fn resolve(&self, name: Name) -> Resolving {
        let Self(progress, look_ups) = self;
        let (progress, look_ups) = (progress.clone(), look_ups.clone());
        Box::pin(async move {
            let addresses = look_ups.addresses(name.as_str()).await?;
            progress.reached(CONNECT);
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// A layer, and the service that it makes.
#[derive(Clone)]
pub(super) struct NotesConnected<S = ()>(Progress, S);

impl<S> Layer<S> for NotesConnected {
    type Service = NotesConnected<S>;

    fn layer(&self, inner: S) -> Self::Service {
        NotesConnected(self.0.clone(), inner)
    }
}

impl<S, R> Service<R> for NotesConnected<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.1.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let progress = self.0.clone();
        let connecting = self.1.call(request);
        Box::pin(async move {
            let connection = connecting.await?;
            progress.reached(REQUEST);
            Ok(connection)
        })
    }
}
