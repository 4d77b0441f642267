//! Telling the manager: datagrams to NOTIFY_SOCKET, with the descriptors that it is to keep (sd_notify(3)).

use std::{
    fmt, io,
    io::IoSlice,
    os::{
        fd::{AsRawFd as _, BorrowedFd},
        unix::net::UnixDatagram,
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

use crate::clock;

/// The longest STATUS= in bytes. People read it in one line of `systemctl status`.
const MAX_STATUS: usize = 512;

/// One thing that the manager is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State<'a> {
    /// It serves, or is done with a reload.
    Ready,
    /// A reload has begun; [`State::Ready`] ends it. With the time, as Type=notify-reload (systemd 253) wants it.
    Reloading,
    /// It is about to end.
    Stopping,
    /// How it does, for people: one line.
    Status(&'a str),
    /// The loops that do the work are alive.
    Watchdog,
    /// The start may take so much longer from now on (systemd 236).
    ExtendTimeout(Duration),
}

/// The way to the manager. Clones are the same way. Without a manager everything that it is told is done at once.
#[derive(Clone, Debug)]
pub struct Notifier(Option<Arc<Way>>);

#[derive(Debug)]
struct Way {
    socket: UnixDatagram,
    manager: UnixAddr,
}

impl Notifier {
    /// Nobody is there to be told.
    pub const fn none() -> Self {
        Self(None)
    }

    /// The manager at `address`: an absolute path, or `@` and an abstract name. Nothing is sent yet.
    pub fn to(address: &str) -> io::Result<Self> {
        let unusable =
            || io::Error::new(io::ErrorKind::InvalidInput, "is neither a path nor an abstract name");
        let manager = match address.as_bytes() {
            [b'/', ..] => UnixAddr::new(Path::new(address))?,
            [b'@', name @ ..] if !name.is_empty() => UnixAddr::new_abstract(name)?,
            _ => return Err(unusable()),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self(Some(Arc::new(Way { socket, manager }))))
    }

    /// Whether there is a manager.
    pub const fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Whether the manager listens at an abstract socket, as it may where it shares no files with us.
    pub fn is_abstract(&self) -> bool {
        self.0.as_ref().is_some_and(|way| way.manager.as_abstract().is_some())
    }

    /// Tells it all of `states` in one datagram. [`io::ErrorKind::WouldBlock`]: it does not read; nothing was told.
    pub fn tell(&self, states: &[State<'_>]) -> io::Result<()> {
        if self.0.is_none() {
            return Ok(());
        }
        let lines: Vec<_> = states.iter().map(ToString::to_string).collect();
        self.send(&lines.join("\n"), None)
    }

    /// Gives it a descriptor to keep under `name`: one to 255 visible ASCII characters without `:` (FDSTORE=1). It is not
    /// told whether there was room. [`io::ErrorKind::WouldBlock`]: it does not read; try again later.
    pub fn store(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        // It must not be watched for a hang-up: what is kept here never hangs up (FDPOLL, systemd 246).
        self.send(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), Some(descriptor))
    }

    /// Lets it close whatever it keeps under `name` (FDSTOREREMOVE=1). The same error.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None)
    }

    fn send(&self, text: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let Some(way) = &self.0 else { return Ok(()) };
        let numbers = descriptor.map(|descriptor| [descriptor.as_raw_fd()]);
        let rights = numbers.as_ref().map(|numbers| ControlMessage::ScmRights(numbers));
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let sent = sendmsg(
            way.socket.as_raw_fd(),
            &[IoSlice::new(text.as_bytes())],
            rights.as_slice(),
            flags,
            Some(&way.manager),
        );
        // A datagram goes whole or not at all (unix(7)).
        Ok(sent.map(drop)?)
    }
}

impl fmt::Display for State<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("READY=1"),
            Self::Reloading => {
                write!(f, "RELOADING=1\nMONOTONIC_USEC={}", clock::monotonic().as_micros())
            }
            Self::Stopping => f.write_str("STOPPING=1"),
            Self::Status(text) => write!(f, "STATUS={}", one_line(text)),
            Self::Watchdog => f.write_str("WATCHDOG=1"),
            Self::ExtendTimeout(more) => write!(f, "EXTEND_TIMEOUT_USEC={}", more.as_micros()),
        }
    }
}

/// A line break would begin another field, which somebody else's words must not.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(MAX_STATUS));
    for c in text.chars() {
        if line.len() + c.len_utf8() > MAX_STATUS {
            line.push('…');
            break;
        }
        line.push(if c.is_control() { ' ' } else { c });
    }
    line
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _, os::fd::AsFd as _};

    use nix::sys::socket::{ControlMessageOwned, RecvMsg, recvmsg};

    use super::*;

    #[test]
    fn what_is_told_is_one_datagram_of_lines() {
        let dir = tempfile::tempdir().unwrap();
        let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        let notifier = Notifier::to(dir.path().join("notify").to_str().unwrap()).unwrap();
        let mut buffer = [0; 4096];
        let mut heard = |states: &[State<'_>]| {
            notifier.tell(states).unwrap();
            let length = manager.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        assert_eq!(heard(&[State::Ready, State::Status("3 of 4")]), "READY=1\nSTATUS=3 of 4");
        assert_eq!(heard(&[State::Watchdog]), "WATCHDOG=1");
        assert_eq!(heard(&[State::Stopping]), "STOPPING=1");
        assert_eq!(heard(&[State::ExtendTimeout(Duration::from_secs(30))]), "EXTEND_TIMEOUT_USEC=30000000");
        assert_eq!(heard(&[State::Status("x\nMAINPID=1\r\0")]), "STATUS=x MAINPID=1  ");
        let long = heard(&[State::Status(&"é".repeat(4000))]);
        assert!(long.ends_with("é…") && long.len() <= "STATUS=…".len() + MAX_STATUS);
        let reloading = heard(&[State::Reloading]);
        let micros: u128 = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!((1..=clock::monotonic().as_micros()).contains(&micros));
    }

    #[test]
    fn a_descriptor_is_kept_under_its_name_and_removed_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        let notifier = Notifier::to(dir.path().join("notify").to_str().unwrap()).unwrap();
        std::fs::write(dir.path().join("kept"), "kept").unwrap();
        notifier.store("token.bloom.7", File::open(dir.path().join("kept")).unwrap().as_fd()).unwrap();
        notifier.remove("token.bloom.6").unwrap();
        let mut bytes = [0; 256];
        let mut slices = [io::IoSliceMut::new(&mut bytes)];
        let mut space = nix::cmsg_space!([i32; 1]);
        let heard: RecvMsg<'_, '_, UnixAddr> =
            recvmsg(manager.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty()).unwrap();
        let rights: Vec<_> = heard.cmsgs().unwrap().collect();
        let length = heard.bytes;
        let [ControlMessageOwned::ScmRights(numbers)] = rights.as_slice() else { panic!("{rights:?}") };
        // SAFETY: the kernel has just made it for us, and nobody else knows its number.
        #[allow(unsafe_code, reason = "a descriptor that was received")]
        let mut kept = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(numbers[0]) };
        let mut text = String::new();
        kept.read_to_string(&mut text).unwrap();
        assert_eq!(text, "kept");
        assert_eq!(&bytes[..length], b"FDSTORE=1\nFDNAME=token.bloom.7\nFDPOLL=0");
        let length = manager.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"FDSTOREREMOVE=1\nFDNAME=token.bloom.6");
    }

    #[test]
    fn a_manager_that_does_not_read_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let _manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        let notifier = Notifier::to(dir.path().join("notify").to_str().unwrap()).unwrap();
        let refused =
            (0..100_000).find_map(|_| notifier.tell(&[State::Watchdog]).err()).expect("a full queue");
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn an_address_is_a_path_or_an_abstract_name() {
        assert!(!Notifier::none().is_there());
        assert!(Notifier::none().tell(&[State::Ready]).is_ok());
        assert!(Notifier::to("@abstract").unwrap().is_there());
        for bad in ["", "@", "run/notify", "vsock:2:1234", &format!("/{}", "x".repeat(200))] {
            assert!(Notifier::to(bad).is_err(), "{bad}");
        }
    }
}
