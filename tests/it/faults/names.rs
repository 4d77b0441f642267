//! What names mean, and addresses behind which nobody answers.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use bloom_agent::http::LookUps;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, bind, connect, listen,
    socket,
};
use tokio::task::JoinSet;

use super::server::{Tick, Ticks};

/// Where the server listens.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
/// Where it listens too.
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Where nobody listens.
pub(crate) const NOBODY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// What the resolver says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Names {
    /// The server's address.
    #[default]
    Server,
    /// These addresses.
    Are(Vec<IpAddr>),
    /// An error, with the text of gai_strerror(3).
    Fails(&'static str),
    /// The server's address, after so much time.
    After(Duration),
}

/// A resolver that says what a story has it say.
#[derive(Clone)]
pub(crate) struct Resolver {
    says: Arc<Mutex<Names>>,
    asked: Arc<AtomicUsize>,
    ticks: Ticks,
}

impl Resolver {
    pub(crate) fn new(ticks: Ticks) -> Self {
        Self { says: Arc::default(), asked: Arc::default(), ticks }
    }

    /// From the next question on.
    pub(crate) fn set(&self, names: Names) {
        *self.says.lock().unwrap() = names;
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    pub(crate) fn look_ups(&self) -> LookUps {
        let this = self.clone();
        LookUps::asking(move |host| this.answer(host))
    }

    fn answer(&self, host: &str) -> io::Result<Vec<SocketAddr>> {
        assert_eq!(host, super::pki::NAME);
        self.asked.fetch_add(1, Ordering::SeqCst);
        let says = self.says.lock().unwrap().clone();
        let (then, passed) = mpsc::channel();
        match says {
            Names::Server => {}
            Names::Are(addresses) => {
                return Ok(addresses.iter().map(|address| SocketAddr::new(*address, 0)).collect());
            }
            Names::Fails(text) => return Err(io::Error::other(text)),
            Names::After(by) => {
                let _gone = self.ticks.send(Tick { by, then: Some(then) });
                // An error once nobody moves the clocks any more.
                let _passed = passed.recv();
            }
        }
        Ok(vec![SocketAddr::new(SERVER.into(), 0)])
    }
}

/// An address whose queue of connections is full, so that the kernel drops each SYN: as a firewall would. Whoever waits
/// there is seen, and time goes by for him.
pub(crate) struct BlackHole {
    _listener: OwnedFd,
    _filler: OwnedFd,
    _watching: JoinSet<()>,
}

impl BlackHole {
    /// Fails where the host has no such address.
    pub(crate) fn new(address: SocketAddr, by: Duration, ticks: Ticks) -> nix::Result<Self> {
        let (listener, filler) = match address {
            SocketAddr::V4(address) => full(AddressFamily::Inet, SockaddrIn::from(address))?,
            SocketAddr::V6(address) => full(AddressFamily::Inet6, SockaddrIn6::from(address))?,
        };
        let mut watching = JoinSet::new();
        watching.spawn(async move {
            let mut waited = std::collections::BTreeSet::new();
            loop {
                // One tick for each that waits.
                for local in waiting_for(address) {
                    if waited.insert(local) {
                        let _gone = ticks.send(Tick { by, then: None });
                    }
                }
                tokio::task::yield_now().await;
            }
        });
        Ok(Self { _listener: listener, _filler: filler, _watching: watching })
    }
}

fn full(family: AddressFamily, address: impl SockaddrLike) -> nix::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let listener = socket(family, SockType::Stream, flags, None)?;
    bind(listener.as_raw_fd(), &address)?;
    listen(&listener, Backlog::new(0)?)?;
    let filler = socket(family, SockType::Stream, flags, None)?;
    connect(filler.as_raw_fd(), &address)?;
    Ok((listener, filler))
}

/// The local addresses of sockets that have sent a SYN to `address` and wait (state 02 of proc_pid_net(5)).
fn waiting_for(address: SocketAddr) -> Vec<String> {
    let (table, remote) = match address {
        SocketAddr::V4(v4) => ("/proc/thread-self/net/tcp", hex(&v4.ip().octets())),
        SocketAddr::V6(v6) => ("/proc/thread-self/net/tcp6", hex(&v6.ip().octets())),
    };
    let remote = format!("{remote}:{:04X}", address.port());
    let table = std::fs::read_to_string(table).unwrap();
    let fields = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    fields
        .filter(|fields| fields.get(2) == Some(&remote.as_str()) && fields.get(3) == Some(&"02"))
        .map(|fields| fields[1].to_owned())
        .collect()
}

/// As the kernel prints addresses: words in the byte order of the host.
fn hex(octets: &[u8]) -> String {
    let words = octets.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
    words.map(|word| format!("{word:08X}")).collect()
}

/// The loopback of IPv6.
pub(crate) const SIX: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
