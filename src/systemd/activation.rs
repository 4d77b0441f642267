//! The descriptors that systemd passes: the sockets it listens on for us, and what we gave it to keep.
//!
//! sd_listen_fds(3): LISTEN_FDS descriptors from number 3 on, for the process LISTEN_PID, their names in LISTEN_FDNAMES.

use std::{
    io,
    os::{
        fd::{AsFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::socket::{
        AddressFamily, SockType, SockaddrLike as _, SockaddrStorage, getsockname, getsockopt,
        sockopt::{AcceptConn, SockType as TypeOf},
    },
};

/// The first descriptor that is passed (SD_LISTEN_FDS_START).
const FIRST: RawFd = 3;
/// More than a unit can have: FileDescriptorStoreMax= of ours and its sockets.
const MOST: usize = 4096;

/// The API's socket (`FileDescriptorName=` of bloom-agent.socket).
pub const API: &str = "grpc";
/// The socket where systemd asks for credentials (`FileDescriptorName=` of bloom-agent-credential.socket).
pub const CREDENTIAL: &str = "credential";
/// What the names of stored tokens begin with.
pub const STORED: &str = "token.";

/// What was passed, told apart by name.
#[derive(Debug, Default)]
pub struct Passed {
    /// The API's socket, listening.
    pub listener: Option<UnixListener>,
    /// The socket for systemd's credentials, listening.
    pub credential: Option<UnixListener>,
    /// What was given to the manager to keep. Not looked at yet.
    pub stored: Vec<StoredDescriptor>,
    /// The names of those that nobody knows; they are closed.
    pub unknown: Vec<String>,
}

impl Passed {
    /// For a start that fails: closes those who wait for the API. The manager would start us for them again and again,
    /// until its socket fails too (TriggerLimitBurst=, systemd.socket(5)). Who waits for a credential is left waiting: to
    /// close that connection would hand its unit an empty one.
    pub fn turn_away(&self) {
        let Some(listener) = &self.listener else { return };
        if listener.set_nonblocking(true).is_ok() {
            // As many as were waiting, and no more: whoever comes from now on is another start's.
            listener.incoming().take(MOST).take_while(Result::is_ok).for_each(drop);
        }
    }
}

/// A descriptor that the manager kept.
#[derive(Debug)]
pub struct StoredDescriptor {
    /// The name it was stored by.
    pub name: String,
    /// Whatever it is.
    pub descriptor: OwnedFd,
}

/// Why what the manager passed cannot be used. The remedy is in its units.
#[derive(Debug, thiserror::Error)]
pub enum ActivationFault {
    /// The variables do not make sense.
    #[error(
        "what the service manager passes cannot be understood\n{0}\nstart the agent by its units, or without LISTEN_FDS"
    )]
    Variables(&'static str),
    /// A descriptor that is said to be there is not.
    #[error(
        "the service manager says that it passes descriptor {number}\n{why}\nstart the agent by its units, or without LISTEN_FDS"
    )]
    Missing {
        /// Its number.
        number: RawFd,
        /// What the kernel says.
        why: io::Error,
    },
    /// A socket that is not one to serve.
    #[error(
        "the service manager passes a descriptor with the name {name}\nit {wrong}\ncompare the .socket unit with the packaged one (ListenStream=/a/path, FileDescriptorName={name})"
    )]
    Socket {
        /// Its name.
        name: &'static str,
        /// What it is not.
        wrong: &'static str,
    },
    /// The manager cannot be told anything.
    #[error(
        "the service manager cannot be told that the agent is ready\nNOTIFY_SOCKET: {why}\nstart the agent by its units, or without NOTIFY_SOCKET"
    )]
    Notify {
        /// Why.
        why: io::Error,
    },
}

/// The variables, as they were found.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) pid: Option<String>,
    pub(super) count: Option<String>,
    pub(super) names: Option<String>,
}

impl Written {
    /// The names of what is passed to `own`, in the order of the descriptors.
    fn names(&self, own: u32) -> Result<Vec<String>, ActivationFault> {
        let (Some(pid), Some(count)) = (&self.pid, &self.count) else { return Ok(Vec::new()) };
        // For another process: a shell between systemd and us has not looked.
        if pid.parse() != Ok(own) {
            return Ok(Vec::new());
        }
        let count: usize =
            count.parse().map_err(|_| ActivationFault::Variables("LISTEN_FDS is not a number"))?;
        if count > MOST {
            return Err(ActivationFault::Variables("LISTEN_FDS is larger than any unit of ours can make it"));
        }
        let names: Vec<_> = match &self.names {
            Some(names) => names.split(':').map(str::to_owned).collect(),
            // systemd's own word for a descriptor without a name.
            None => vec!["unknown".to_owned(); count],
        };
        // Without a descriptor there is no name either, but "" splits into one.
        if count > 0 && names.len() != count {
            return Err(ActivationFault::Variables(
                "LISTEN_FDNAMES does not name as many as LISTEN_FDS says",
            ));
        }
        Ok(names.into_iter().take(count).collect())
    }
}

pub(super) fn take(written: &Written, own: u32) -> Result<Passed, ActivationFault> {
    let names = written.names(own)?;
    // All of them first, so that a fault in one leaves none open.
    let mut taken = Vec::with_capacity(names.len());
    for (number, name) in (FIRST..).zip(names) {
        taken.push((name, own_descriptor(number)?));
    }
    sort(taken)
}

/// The descriptor that was passed with this number; from here on ours.
#[allow(unsafe_code, reason = "takes a descriptor over that is known by its number only")]
fn own_descriptor(number: RawFd) -> Result<OwnedFd, ActivationFault> {
    let missing = |errno: nix::Error| ActivationFault::Missing { number, why: errno.into() };
    // SAFETY: borrowed for this call alone; a number that is not open is an error of it (EBADF).
    let passed = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    fcntl(passed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(missing)?;
    // SAFETY: it is open, and systemd passed it to this process alone (LISTEN_PID). The variables are removed, so that
    // nobody takes it a second time.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn sort(taken: Vec<(String, OwnedFd)>) -> Result<Passed, ActivationFault> {
    let mut passed = Passed::default();
    for (name, descriptor) in taken {
        match name.as_str() {
            API => fill(&mut passed.listener, API, descriptor)?,
            CREDENTIAL => fill(&mut passed.credential, CREDENTIAL, descriptor)?,
            stored if stored.starts_with(STORED) => passed.stored.push(StoredDescriptor { name, descriptor }),
            _ => passed.unknown.push(name),
        }
    }
    Ok(passed)
}

fn fill(
    slot: &mut Option<UnixListener>,
    name: &'static str,
    descriptor: OwnedFd,
) -> Result<(), ActivationFault> {
    let wrong = |wrong| Err(ActivationFault::Socket { name, wrong });
    if slot.is_some() {
        return wrong("is the second of that name");
    }
    match judge(&descriptor) {
        Ok(()) => *slot = Some(descriptor.into()),
        Err(what) => return wrong(what),
    }
    Ok(())
}

/// Whether it is what we would have made: a Unix stream socket with a path, listening.
fn judge(descriptor: &OwnedFd) -> Result<(), &'static str> {
    let Ok(address) = getsockname::<SockaddrStorage>(std::os::fd::AsRawFd::as_raw_fd(descriptor)) else {
        return Err("is no socket");
    };
    if address.family() != Some(AddressFamily::Unix) {
        return Err("is no Unix socket, and the kernel does not say who connects to another");
    }
    if getsockopt(&descriptor.as_fd(), TypeOf) != Ok(SockType::Stream) {
        return Err("is no stream socket");
    }
    if getsockopt(&descriptor.as_fd(), AcceptConn) != Ok(true) {
        return Err("does not listen");
    }
    // An abstract name has no mode: every process of the network namespace can connect to it.
    let has_path = address.as_unix_addr().is_some_and(|address| address.path().is_some());
    if has_path { Ok(()) } else { Err("has no path, so that no mode guards it") }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, net::TcpListener, os::unix::net::UnixDatagram};

    use nix::sys::socket::{Backlog, SockFlag, UnixAddr, bind, listen, socket};

    use super::*;

    fn written(pid: &str, count: &str, names: Option<&str>) -> Written {
        Written { pid: Some(pid.to_owned()), count: Some(count.to_owned()), names: names.map(str::to_owned) }
    }

    #[test]
    fn the_variables_are_for_this_process_and_make_sense_or_nothing_is_taken() {
        let names = |written: Written| written.names(7).map_err(|fault| fault.to_string());
        assert_eq!(names(Written::default()), Ok(Vec::new()));
        assert_eq!(names(written("8", "1", Some("grpc"))), Ok(Vec::new()));
        assert_eq!(names(written("7", "0", Some(""))), Ok(Vec::new()));
        assert_eq!(names(written("7", "1", Some("grpc"))), Ok(vec!["grpc".to_owned()]));
        assert_eq!(names(written("7", "1", None)), Ok(vec!["unknown".to_owned()]));
        assert_eq!(
            names(written("7", "2", Some("grpc:token.a.1"))),
            Ok(vec!["grpc".to_owned(), "token.a.1".to_owned()])
        );
        for (count, listed, word) in [
            ("many", Some("grpc"), "LISTEN_FDS"),
            ("-1", Some("grpc"), "LISTEN_FDS"),
            ("5000", None, "LISTEN_FDS"),
            ("2", Some("grpc"), "LISTEN_FDNAMES"),
            ("1", Some("grpc:"), "LISTEN_FDNAMES"),
        ] {
            assert!(names(written("7", count, listed)).unwrap_err().contains(word), "{count} {listed:?}");
        }
    }

    #[test]
    fn a_descriptor_that_is_not_there_is_a_fault_and_not_a_crash() {
        // No test has that many open.
        assert!(matches!(own_descriptor(1_000_000), Err(ActivationFault::Missing { .. })));
    }

    fn listener(dir: &std::path::Path, name: &str) -> OwnedFd {
        UnixListener::bind(dir.join(name)).unwrap().into()
    }

    #[test]
    fn descriptors_are_what_their_names_say() {
        let dir = tempfile::tempdir().unwrap();
        let taken = vec![
            ("token.bloom.7".to_owned(), OwnedFd::from(File::open(dir.path()).unwrap())),
            (CREDENTIAL.to_owned(), listener(dir.path(), "credential")),
            ("unknown".to_owned(), listener(dir.path(), "x")),
            (API.to_owned(), listener(dir.path(), "grpc")),
        ];
        let passed = sort(taken).unwrap();
        let path = |listener: &Option<UnixListener>| {
            listener.as_ref().unwrap().local_addr().unwrap().as_pathname().unwrap().to_owned()
        };
        assert_eq!(path(&passed.listener), dir.path().join("grpc"));
        assert_eq!(path(&passed.credential), dir.path().join("credential"));
        assert_eq!(passed.stored[0].name, "token.bloom.7");
        assert_eq!(passed.unknown, ["unknown"]);
    }

    #[test]
    fn who_waits_for_an_agent_that_cannot_start_is_not_left_waiting() {
        use std::{io::Read as _, os::unix::net::UnixStream};
        let dir = tempfile::tempdir().unwrap();
        let taken = vec![(API.to_owned(), listener(dir.path(), "grpc"))];
        let passed = sort(taken).unwrap();
        let waiting = [(); 3].map(|()| UnixStream::connect(dir.path().join("grpc")).unwrap());
        passed.turn_away();
        for mut client in waiting {
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        }
        Passed::default().turn_away();
    }

    #[test]
    fn a_socket_that_is_not_one_to_serve_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let unix = |kind| socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let hidden = unix(SockType::Stream);
        let name = format!("bloom-agent-test-{}", std::process::id());
        bind(std::os::fd::AsRawFd::as_raw_fd(&hidden), &UnixAddr::new_abstract(name.as_bytes()).unwrap())
            .unwrap();
        listen(&hidden, Backlog::new(1).unwrap()).unwrap();
        let quiet = unix(SockType::Stream);
        bind(std::os::fd::AsRawFd::as_raw_fd(&quiet), &UnixAddr::new(&dir.path().join("q")).unwrap())
            .unwrap();
        let packets = unix(SockType::SeqPacket);
        bind(std::os::fd::AsRawFd::as_raw_fd(&packets), &UnixAddr::new(&dir.path().join("p")).unwrap())
            .unwrap();
        listen(&packets, Backlog::new(1).unwrap()).unwrap();
        let cases: [(OwnedFd, &str); 6] = [
            (File::open(dir.path()).unwrap().into(), "no socket"),
            (TcpListener::bind("127.0.0.1:0").unwrap().into(), "no Unix socket"),
            (UnixDatagram::bind(dir.path().join("d")).unwrap().into(), "no stream"),
            (packets, "no stream"),
            (quiet, "does not listen"),
            (hidden, "no path"),
        ];
        for (descriptor, word) in cases {
            let fault = sort(vec![(API.to_owned(), descriptor)]).unwrap_err().to_string();
            assert!(fault.contains(word), "{fault}");
        }
        let two =
            vec![(API.to_owned(), listener(dir.path(), "1")), (API.to_owned(), listener(dir.path(), "2"))];
        assert!(sort(two).unwrap_err().to_string().contains("second"));
    }
}
