//! Tokens as systemd credentials: a unit writes `LoadCredential=bloom:/run/bloom-agent/credential.sock` and finds a token
//! in a file, with no code at all.
//!
//! - The socket is root's, and the service manager's child connects for the unit before the unit runs. Its address names
//!   the unit and the credential; its cgroup has to say the same ([`crate::access::consumer`]). Being root is no rule here.
//! - The answer is the token's bytes and nothing else. It is written from where the token lies: no copy is made of it,
//!   however many ask at once.
//! - There is one way to refuse: more bytes than a credential may have, so that the manager fails the unit's start. A
//!   connection that is closed without them, or before they are read, would start the unit with an empty or a made-up
//!   credential. Whatever the reason, the bytes are the same.
//! - Without a token it waits, so that units of an early boot need not be ordered by hand.

use std::{
    future::Future,
    io,
    os::{fd::AsFd as _, unix::net::UnixListener},
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt as _,
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
    task::{JoinError, JoinSet},
    time::{sleep, timeout},
};

use crate::{
    access::{Consumer, Decision, NotAConsumer, Peer, Placement, ROOT_UID, SliceName, UnitName, Verb},
    audit::Told,
    clock::Timestamp,
    server::{Observe, Phase, draining},
    service::Agent,
    store::{Left, NoToken},
    timer::{Alarm, Time},
    token::Token,
    units::{Answer, Origin, Units},
};

/// How long a unit waits for a token that is not there: well within a unit's TimeoutStartSec= (90 s).
const PATIENCE: Duration = Duration::from_secs(30);

/// How many are answered at a time; others wait to be accepted.
const AT_ONCE: usize = 256;

/// How long a refusal may take to be read. Closing it sooner would start the unit, so this is longer than managers wait for
/// their child by default (TimeoutStartSec=90s).
const READ_WITHIN: Duration = Duration::from_secs(120);

/// In a drain, for all refusals to be read.
const DRAIN: Duration = Duration::from_secs(5);

/// How soon a unit that could not be found out is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// How long accepting pauses where it fails. Nobody is turned away meanwhile: to close a connection would start its unit.
const PAUSE: Duration = Duration::from_millis(50);

/// systemd's CREDENTIAL_SIZE_MAX (src/shared/creds-util.h): a larger one fails the start.
const LARGEST_CREDENTIAL: usize = 1024 * 1024;

/// What a refusal is made of; a person who asks by hand can read it.
static PADDING: [u8; 64 * 1024] = {
    let text = b"bloom-agent refuses this credential; its log says why\n";
    let mut padding = [0; 64 * 1024];
    let mut at = 0;
    while at < padding.len() {
        padding[at] = text[at % text.len()];
        at += 1;
    }
    padding
};

/// Finds the service of a process of that uid: [`Units::unit_of`].
pub type FindUnit = Arc<dyn Fn(u32, Arc<Origin>) -> Finding + Send + Sync>;

/// What [`FindUnit`] returns.
pub type Finding = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// By what the kernel or the manager says.
pub fn by_units(units: Arc<Units>) -> FindUnit {
    // Only root gets through this socket. What a container's root asks on the other one is not counted against it: it has
    // the turns of a uid that nobody has.
    Arc::new(move |_uid, origin| {
        let units = Arc::clone(&units);
        Box::pin(async move { units.unit_of(u32::MAX, &origin).await })
    })
}

/// What it takes to serve the socket.
pub struct Server {
    /// The config in force, the audit and the figures.
    pub agent: Arc<Agent>,
    /// Time, for the wait.
    pub time: Arc<dyn Time>,
    /// Who is there.
    pub observe: Observe,
    /// In which service.
    pub find_unit: FindUnit,
    /// Answered as long as the accept loop goes round.
    pub pulse: mpsc::Receiver<oneshot::Sender<()>>,
}

/// Why a unit gets no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("who asks is not root, so it is no service manager")]
    NotRoot,
    #[error(transparent)]
    Address(#[from] NotAConsumer),
    #[error("the unit of the process that asks could not be found out")]
    UnitUnknown,
    #[error("the process that asks is in no service of the slices that rules look at")]
    NoUnit,
    #[error("the process that asks is not in the unit that its address names")]
    OtherUnit,
    #[error("no rule of the profile names the unit alone, or there is no such profile")]
    Forbidden,
    #[error("there is no token, and none came in time")]
    NoToken,
    #[error("the agent is stopping")]
    Stopping,
}

impl Refused {
    /// Whether it is about who asks; the others are about the agent.
    fn is_denial(self) -> bool {
        !matches!(self, Self::NoToken | Self::Stopping)
    }
}

impl Server {
    /// Serves a listening socket until `phase` says that it is over. Then it accepts no more, refuses those who wait, and
    /// gives them some seconds to read it; who has not been accepted stays with the manager's socket for the next start.
    ///
    /// The error is that of taking the listener over; after that there is none.
    pub async fn serve(mut self, listener: UnixListener, phase: watch::Receiver<Phase>) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let mut pulse = std::mem::replace(&mut self.pulse, mpsc::channel(1).1);
        let server = Arc::new(self);
        let mut consumers = JoinSet::new();
        let mut is_failing = false;
        let mut drained = pin!(draining(phase));
        loop {
            tokio::select! {
                biased;
                () = &mut drained => break,
                Some(ended) = consumers.join_next() => report(ended),
                Some(beat) = pulse.recv() => {
                    // Who asked has stopped waiting.
                    let _gone = beat.send(());
                }
                (stream, address) = accept(&listener, &mut is_failing), if consumers.len() < AT_ONCE => {
                    // Only this moment can tell who has connected.
                    let who = (server.observe)(stream.as_fd());
                    consumers.spawn(Arc::clone(&server).answer(stream, address, who));
                }
            }
        }
        drop(listener);

        let all_gone = async {
            while let Some(ended) = consumers.join_next().await {
                report(ended);
            }
        };
        if timeout(DRAIN, all_gone).await.is_err() {
            tracing::warn!(
                units = consumers.len(),
                "units that ask for a credential are cut off: they do not read"
            );
            consumers.shutdown().await;
        }
        Ok(())
    }

    /// The task of one connection.
    async fn answer(
        self: Arc<Self>,
        stream: UnixStream,
        address: Option<Box<[u8]>>,
        who: io::Result<(Peer, Origin)>,
    ) {
        let decided = match who {
            Ok((peer, origin)) => self.decide(peer, origin, address.as_deref().unwrap_or_default()).await,
            Err(error) => {
                tracing::warn!(%error, "a credential is refused: the kernel does not say who asks");
                None
            }
        };
        let written = match &decided {
            // As it is far smaller than a socket's buffer, it is written whole or not at all.
            Some(token) => give(stream, token.access_token.expose_secret().as_bytes()).await,
            None => refuse(stream).await,
        };
        if let Err(error) = written {
            // Whoever asked has gone: the unit's start was given up.
            tracing::debug!(%error, "an answer to a unit that asked for a credential was not read");
        }
    }

    /// The token for who asks, audited.
    async fn decide(&self, peer: Peer, origin: Origin, address: &[u8]) -> Option<Arc<Token>> {
        let deadline = self.time.now().boot + PATIENCE;
        let mut asked = Asked { peer, placement: None, consumer: Consumer::parse(address) };
        let refused = match self.find(asked.peer.uid, origin).await {
            Ok(placement) => {
                asked.placement = placement;
                match self.token(&mut asked, deadline).await {
                    Ok(token) => return Some(token),
                    Err(refused) => refused,
                }
            }
            Err(refused) => refused,
        };
        let name = asked.name();
        if refused.is_denial() {
            self.agent.note_denial_of(&asked.peer, Verb::Credential, name);
        }
        // Who is not root cannot fill the log: its denials are counted.
        if asked.peer.uid == ROOT_UID {
            let unit = asked.peer.unit.as_ref().map(UnitName::as_str);
            let config = Arc::clone(&self.agent.config.borrow());
            // Names of profiles only: a name that somebody made up is in no log.
            let profile = config.profiles.get(name).map(|profile| profile.name.as_str());
            tracing::warn!(unit, profile, pid = asked.peer.pid, "a credential is refused: {refused}");
        }
        None
    }

    /// Where the process belongs. At an early boot the bus may not be there yet, and many units may ask in one second.
    async fn find(&self, uid: u32, origin: Origin) -> Result<Option<Placement>, Refused> {
        let origin = Arc::new(origin);
        let known = async {
            loop {
                match (self.find_unit)(uid, Arc::clone(&origin)).await {
                    Answer::In(placement) => break Ok(Some(placement)),
                    Answer::None => break Ok(None),
                    Answer::Unknown => sleep(ASK_AGAIN).await,
                }
            }
        };
        tokio::select! {
            biased;
            () = draining(self.agent.phase.clone()) => Err(Refused::Stopping),
            known = timeout(PATIENCE, known) => known.unwrap_or(Err(Refused::UnitUnknown)),
        }
    }

    /// The token, if the rules let the unit have it; waits for it until `deadline`.
    async fn token(&self, asked: &mut Asked, deadline: Timestamp) -> Result<Arc<Token>, Refused> {
        let mut config = self.agent.config.clone();
        let mut alarm: Option<Box<dyn Alarm>> = None;
        loop {
            let snapshot = Arc::clone(&config.borrow_and_update());
            asked.place(snapshot.access.unit_slices());
            asked.is_what_it_says()?;
            let (peer, name) = (&asked.peer, asked.name());
            let Decision::Allow(rule) = snapshot.access.decide(name, peer, Verb::Credential) else {
                return Err(Refused::Forbidden);
            };
            let profile = snapshot.profiles.get(name).ok_or(Refused::Forbidden)?;
            if let Some(token) = profile.reader.current(profile.identity, self.time.now().boot) {
                let (told, rule, generation) = (Told::default(), rule.as_str(), token.generation);
                self.agent.audit.granted(&told, peer, Verb::Credential, &profile.name, generation, rule);
                return Ok(token);
            }
            let alarm = match &mut alarm {
                Some(alarm) => alarm,
                None => {
                    let unit = peer.unit.as_ref().map(UnitName::as_str);
                    tracing::info!(profile = %profile.name, unit, "a unit waits for its credential: there is no token yet");
                    alarm.insert(self.time.alarm().map_err(|error| {
                        tracing::warn!(%error, "a unit cannot wait for a token: no timer can be had");
                        Refused::NoToken
                    })?)
                }
            };
            let waited = async {
                match profile.reader.wait(profile.identity, &*self.time, deadline).await {
                    // The rotator is gone: a version of the config that says why is on its way.
                    Err(NoToken::Left(Left::Closed(_))) => std::future::pending().await,
                    // One attempt has failed, and another is due in time.
                    Err(NoToken::Failed { next, .. }) if next.is_none_or(|next| next <= deadline) => Ok(()),
                    Ok(_) | Err(NoToken::Left(Left::Superseded)) => Ok(()),
                    Err(NoToken::Failed { .. } | NoToken::Pending { .. }) => Err(Refused::NoToken),
                }
            };
            // Whatever it is, it is judged again by the version in force.
            tokio::select! {
                biased;
                () = draining(self.agent.phase.clone()) => return Err(Refused::Stopping),
                changed = config.changed() => changed.map_err(|_| Refused::Stopping)?,
                // A timer that fails is one that rings.
                _ = alarm.sleep_until(deadline) => return Err(Refused::NoToken),
                waited = waited => waited?,
            }
        }
    }
}

/// Who asks, and for what.
struct Asked {
    /// With its unit, once it is placed.
    peer: Peer,
    placement: Option<Placement>,
    consumer: Result<Consumer, NotAConsumer>,
}

impl Asked {
    /// The credential's name; empty, as no profile's, where none is asked for.
    fn name(&self) -> &str {
        self.consumer.as_ref().map_or("", |consumer| &consumer.credential)
    }

    /// Gives the peer its unit, if that lies where units count.
    fn place(&mut self, slices: &[SliceName]) {
        let within = self.placement.as_ref().and_then(|placement| placement.unit_within(slices));
        self.peer.unit = within.cloned();
    }

    /// Whether the address is a manager's and names the unit that the peer is in.
    fn is_what_it_says(&self) -> Result<(), Refused> {
        if self.peer.uid != ROOT_UID {
            return Err(Refused::NotRoot);
        }
        let consumer = self.consumer.as_ref().map_err(|fault| *fault)?;
        match &self.peer.unit {
            None => Err(Refused::NoUnit),
            Some(unit) if *unit == consumer.unit => Ok(()),
            Some(_) => Err(Refused::OtherUnit),
        }
    }
}

/// The next connection and its abstract address, if it has one.
async fn accept(
    listener: &tokio::net::UnixListener,
    is_failing: &mut bool,
) -> (UnixStream, Option<Box<[u8]>>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                *is_failing = false;
                // Asked for anew: what mio makes of accept(2)'s own answer has no abstract names.
                let address = stream.peer_addr().ok();
                return (stream, address.and_then(|address| address.as_abstract_name().map(Box::from)));
            }
            Err(error) => {
                if !std::mem::replace(is_failing, true) {
                    tracing::error!(%error, "units that ask for a credential cannot be accepted; it is tried again");
                }
                sleep(PAUSE).await;
            }
        }
    }
}

async fn give(mut stream: UnixStream, token: &[u8]) -> io::Result<()> {
    timeout(READ_WITHIN, stream.write_all(token)).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// Writes more than a credential may have.
async fn refuse(mut stream: UnixStream) -> io::Result<()> {
    let padding = async {
        for _ in 0..=LARGEST_CREDENTIAL / PADDING.len() {
            stream.write_all(&PADDING).await?;
        }
        Ok(())
    };
    timeout(READ_WITHIN, padding).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// A connection's task never panics. If one does, the others live on.
fn report(ended: Result<(), JoinError>) {
    if ended.is_err_and(|error| error.is_panic()) {
        tracing::error!("the task of a unit that asks for a credential has panicked");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn asked(uid: u32, placement: Option<(&str, &str)>, address: &[u8]) -> Asked {
        let placement = placement.map(|(unit, slice)| Placement {
            unit: UnitName::parse(unit).unwrap(),
            slice: SliceName::parse(slice).unwrap(),
        });
        let peer = Peer { uid, gid: 0, groups: vec![], pid: 7, unit: None };
        Asked { peer, placement, consumer: Consumer::parse(address) }
    }

    #[test]
    fn an_address_is_believed_when_the_cgroup_says_the_same() {
        let ours = b"1/unit/loans.service/bloom".as_slice();
        let system = |unit| Some((unit, "system.slice"));
        let cases = [
            (asked(0, system("loans.service"), ours), Ok(())),
            (asked(0, Some(("loans.service", "system-loans.slice")), ours), Ok(())),
            (asked(0, Some(("loans.service", "apps.slice")), ours), Err(Refused::NoUnit)),
            (asked(0, Some(("loans.service", "user.slice")), ours), Err(Refused::NoUnit)),
            (asked(0, system("other.service"), ours), Err(Refused::OtherUnit)),
            (asked(0, system("loans@a.service"), ours), Err(Refused::OtherUnit)),
            (asked(0, None, ours), Err(Refused::NoUnit)),
            (asked(1, system("loans.service"), ours), Err(Refused::NotRoot)),
            (asked(65_534, system("loans.service"), ours), Err(Refused::NotRoot)),
            (asked(0, system("loans.service"), b""), Err(Refused::Address(NotAConsumer))),
            (asked(0, system("loans.service"), b"loans.service"), Err(Refused::Address(NotAConsumer))),
        ];
        let slices = [SliceName::parse("system.slice").unwrap()];
        for (number, (mut asked, expected)) in cases.into_iter().enumerate() {
            asked.place(&slices);
            assert_eq!(asked.is_what_it_says(), expected, "case {number}");
        }
    }

    #[tokio::test]
    async fn a_refusal_is_more_than_a_credential_may_have() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut read = Vec::new();
        let (written, _) = tokio::join!(refuse(ours), theirs.read_to_end(&mut read));
        written.unwrap();
        assert!(read.len() > LARGEST_CREDENTIAL, "{}", read.len());
        assert!(read.starts_with(b"bloom-agent refuses"));
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_reads_a_refusal_is_given_up_in_the_end() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert_eq!(refuse(ours).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn the_longest_token_is_written_though_nobody_reads() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let token = vec![b'a'; crate::token::MAX_TOKEN_BYTES];
        give(ours, &token).await.unwrap();
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, token);
    }
}
