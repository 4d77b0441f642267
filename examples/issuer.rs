//! The development issuer behind TLS, for tests that need it as a program: a host of its own, with a real service manager.
//!
//! `issuer serve DIRECTORY PORT` listens on 127.0.0.1 (port 0: the kernel's choice). In the directory it leaves `ca.pem`,
//! the certificate to trust, with its key beside it, so that the next start has the same; `url`, the token endpoint; and
//! `control`, a socket. It tells systemd when it serves.
//!
//! `issuer tell DIRECTORY COMMAND…` speaks to it and prints the answer. The commands:
//! - `requests`, `granted`: how many requests came, how many tokens it gave, since its start;
//! - `await N`: answers when N requests have come;
//! - `outage up|refuse|hang`, `lifetime SECONDS`, `secrets SECRET…`: what is so from now on.

// An example's output is its purpose.
#![allow(clippy::print_stdout)]

use std::{
    env,
    error::Error,
    fs,
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::{UnixDatagram, UnixStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bloom_agent::dev_issuer::{Control, DevIssuer, Dialect, Options, Outage};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UnixListener},
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The one client, and the secret that is accepted until it is told others.
const CLIENT_ID: &str = "host-client";
const SECRET: &str = "canary-of-the-first-secret";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", directory, port] => serve(Path::new(directory), port.parse()?).await,
        ["tell", directory, command @ ..] => tell(Path::new(directory), command),
        _ => Err("usage: issuer serve DIRECTORY PORT | issuer tell DIRECTORY COMMAND…".into()),
    }
}

async fn serve(directory: &Path, port: u16) -> Outcome<()> {
    fs::create_dir_all(directory)?;
    let acceptor = TlsAcceptor::from(Arc::new(certified(directory)?));
    let mut options = Options::new(Dialect::Hydra, CLIENT_ID, SECRET);
    options.audiences = Vec::new();
    let issuer = DevIssuer::new(options);

    let socket = directory.join("control");
    // What an earlier one left.
    let _none_yet = fs::remove_file(&socket);
    let controls = UnixListener::bind(socket)?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let url = format!("https://{}{}", listener.local_addr()?, Dialect::Hydra.token_path());
    fs::write(directory.join("url"), &url)?;
    ready()?;
    println!("serving {url}");
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                let (acceptor, issuer) = (acceptor.clone(), issuer.clone());
                tasks.spawn(async move {
                    issuer.serve_connection(acceptor.accept(stream).await?).await;
                    Ok(())
                });
            }
            accepted = controls.accept() => {
                let (mut stream, _) = accepted?;
                let control = issuer.control();
                tasks.spawn(async move {
                    let mut command = String::new();
                    stream.read_to_string(&mut command).await?;
                    let answer = obey(&control, &command).await;
                    stream.write_all(answer.as_bytes()).await
                });
            }
            // One that broke off, its handshake for example, is one of the things that are tested.
            Some(_ended) = tasks.join_next() => {}
        }
    }
}

/// The certificate of an earlier start, or a new one.
fn certified(directory: &Path) -> Outcome<ServerConfig> {
    let (certificate, key) = (directory.join("ca.pem"), directory.join("key.pem"));
    if !certificate.exists() {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()])?;
        fs::write(&key, made.signing_key.serialize_pem())?;
        fs::write(&certificate, made.cert.pem())?;
    }
    Ok(ServerConfig::builder().with_no_client_auth().with_single_cert(
        vec![CertificateDer::from_pem_file(certificate)?],
        PrivateKeyDer::from_pem_file(key)?,
    )?)
}

/// sd_notify(3), where there is a service manager.
fn ready() -> Outcome<()> {
    if let Some(socket) = env::var_os("NOTIFY_SOCKET") {
        UnixDatagram::unbound()?.send_to(b"READY=1", socket)?;
    }
    Ok(())
}

/// Does what a command says; the answer is a number, `ok`, or what is wrong.
async fn obey(control: &Control, command: &str) -> String {
    let words: Vec<&str> = command.lines().collect();
    match words.as_slice() {
        ["requests"] => return control.request_count().to_string(),
        ["granted"] => return control.granted_count().to_string(),
        ["await", count] => match count.parse() {
            Ok(count) => control.wait_for_request(count).await,
            Err(_) => return format!("not a number: {count}"),
        },
        ["outage", "up"] => control.set_outage(Outage::Up),
        ["outage", "refuse"] => control.set_outage(Outage::Refuse),
        ["outage", "hang"] => control.set_outage(Outage::Hang),
        ["lifetime", seconds] => match seconds.parse() {
            Ok(seconds) => control.set_lifetime(Duration::from_secs(seconds)),
            Err(_) => return format!("not a number: {seconds}"),
        },
        ["secrets", secrets @ ..] => control.set_secrets(secrets.iter().copied()),
        _ => return "no such command".to_owned(),
    }
    "ok".to_owned()
}

/// The command goes one word a line; the answer ends with the connection.
fn tell(directory: &Path, command: &[&str]) -> Outcome<()> {
    let mut stream = UnixStream::connect(directory.join("control"))?;
    stream.write_all(command.join("\n").as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.as_str() {
        "ok" => Ok(()),
        number if number.bytes().all(|byte| byte.is_ascii_digit()) => {
            println!("{number}");
            Ok(())
        }
        problem => Err(problem.into()),
    }
}
