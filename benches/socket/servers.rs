//! The floors: what a socket costs without any protocol, and what tonic's own server costs with nothing behind it. Each is
//! this program again, in a process of its own, as the agent is.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    pin::Pin,
    process::{Child, Stdio},
    sync::Arc,
};

use bloom_agent::pb;
use prost::Message as _;
use tokio::{runtime::Builder, sync::watch};
use tokio_stream::{Stream, StreamExt as _, wrappers::UnixListenerStream, wrappers::WatchStream};
use tonic::{Request, Response, Status};

use crate::agent::launched;

/// What a raw request is: as long as a warm request over HTTP/2.
pub(crate) const RAW_REQUEST: usize = 37;

/// A server as a process. Dropping it kills it.
pub(crate) struct Server {
    child: Child,
}

impl Server {
    /// Starts this program in a role, and waits until it listens.
    pub(crate) fn start(launcher: &[&str], role: &str, socket: &Path, reply: &Path) -> Self {
        let this = std::env::current_exe().expect("this program");
        let child = launched(launcher, &this)
            .args(["serve", role])
            .args([socket, reply])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("a server");
        let server = Self { child };
        while UnixStream::connect(socket).is_err() {
            std::thread::yield_now();
        }
        server
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to send its reply to every watcher once more.
    pub(crate) fn rotate(&mut self) {
        self.child.stdin.as_mut().expect("its input").write_all(b"\n").expect("it listens");
    }

    /// Ends it in order, so that whoever profiles it writes its figures.
    pub(crate) fn stop(mut self) {
        drop(self.child.stdin.take());
        let _ended = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _may_have_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The role of this process; it ends with its standard input.
pub(crate) fn serve(role: &str, socket: &Path, reply: &Path) {
    let reply = fs::read(reply).expect("a reply");
    let listener = UnixListener::bind(socket).expect("a socket");
    // As the agent's: two users call.
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).expect("it is ours");
    match role {
        "raw" => {
            std::thread::spawn(move || raw(&listener, &reply));
            let _end = std::io::stdin().read_to_end(&mut Vec::new());
        }
        "tonic" => tonic_echo(listener, &reply, Builder::new_current_thread()),
        "tonic on two threads" => {
            let mut two = Builder::new_multi_thread();
            two.worker_threads(2);
            tonic_echo(listener, &reply, two);
        }
        other => panic!("no server is called {other}"),
    }
}

fn raw(listener: &UnixListener, reply: &[u8]) {
    std::thread::scope(|scope| {
        for mut stream in listener.incoming().map_while(Result::ok) {
            scope.spawn(move || {
                let mut request = [0; RAW_REQUEST];
                while stream.read_exact(&mut request).is_ok() && stream.write_all(reply).is_ok() {}
            });
        }
    });
}

/// As the README of tonic has it: generated code, a message of Strings, all defaults.
fn tonic_echo(listener: UnixListener, reply: &[u8], mut runtime: Builder) {
    let token = pb::GetTokenResponse::decode(reply.get(5..).expect("a framed message")).expect("a message");
    let token = token.token.expect("a token");
    runtime.enable_all().build().expect("a runtime").block_on(async move {
        listener.set_nonblocking(true).expect("a socket");
        let incoming =
            UnixListenerStream::new(tokio::net::UnixListener::from_std(listener).expect("a socket"));
        let (rotate, rotations) = watch::channel(token);
        let (end, ended) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let mut byte = [0];
            while std::io::stdin().read(&mut byte).is_ok_and(|read| read > 0) {
                rotate.send_modify(|token| token.generation += 1);
            }
            let _gone = end.send(());
        });
        let echo = pb::token_service_server::TokenServiceServer::new(Echo { rotations: Arc::new(rotations) });
        let served = tonic::transport::Server::builder().add_service(echo).serve_with_incoming(incoming);
        tokio::select! {
            served = served => served.expect("it serves"),
            _ended = ended => {}
        }
    });
}

struct Echo {
    rotations: Arc<watch::Receiver<pb::Token>>,
}

#[tonic::async_trait]
impl pb::token_service_server::TokenService for Echo {
    type WatchTokenStream = Pin<Box<dyn Stream<Item = Result<pb::WatchTokenResponse, Status>> + Send>>;

    async fn get_token(
        &self,
        _: Request<pb::GetTokenRequest>,
    ) -> Result<Response<pb::GetTokenResponse>, Status> {
        let token = self.rotations.borrow().clone();
        Ok(Response::new(pb::GetTokenResponse { token: Some(token) }))
    }

    async fn watch_token(
        &self,
        _: Request<pb::WatchTokenRequest>,
    ) -> Result<Response<Self::WatchTokenStream>, Status> {
        let tokens = WatchStream::new((*self.rotations).clone());
        let replies = tokens.map(|token| Ok(pb::WatchTokenResponse { token: Some(token) }));
        Ok(Response::new(Box::pin(replies)))
    }

    async fn list_tokens(
        &self,
        _: Request<pb::ListTokensRequest>,
    ) -> Result<Response<pb::ListTokensResponse>, Status> {
        Err(Status::unimplemented("only what is measured"))
    }

    async fn report_rejected(
        &self,
        _: Request<pb::ReportRejectedRequest>,
    ) -> Result<Response<pb::ReportRejectedResponse>, Status> {
        Err(Status::unimplemented("only what is measured"))
    }
}
