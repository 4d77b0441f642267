//! Which systemd service a caller is in: found out by what the kernel or the service manager says, and by no process id
//! alone.
//!
//! - An [`Origin`] is taken when a connection is accepted, and is a hold on that very process. Later the unit is found
//!   from it: by the id of its cgroup in the tree below /sys/fs/cgroup, where the kernel tells it (Linux 6.13), or else by
//!   asking the service manager about the pidfd (systemd 254), or about its process id while the pidfd says that it is
//!   still that process's.
//! - No unit is the answer to everything that is not certain. What could not be found out *now* is [`Answer::Unknown`],
//!   which is no answer and is not to be remembered.
//! - The cgroup of a process is as trustworthy as who may move it: root, and in a user's slice the user, which is why no
//!   unit is ever found there.
//! - It decides nothing: see [`crate::access`].

mod bus;
mod cgroup;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod origin;
mod path;
mod quota;

use std::{
    fmt,
    os::fd::AsFd as _,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::errno::Errno;

pub use self::origin::{Capture, Origin};
use self::{
    bus::Bus,
    cgroup::Tree,
    quota::{Look, Quota, Turn},
};
use crate::{access::Placement, clock::Clock, metrics::Metrics};

#[cfg(all(feature = "force-unit-lookup", not(debug_assertions)))]
compile_error!(
    "force-unit-lookup is for tests: what is released finds out by itself which way this host has"
);

/// The word of this in the gauge of what the agent does without.
const DEGRADED: &str = "unit-lookup";

/// The ways there are, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The id of the cgroup, and the tree of cgroups.
    Cgroup,
    /// The service manager's GetUnitByPIDFD.
    BusPidfd,
    /// The service manager's GetUnitByPID, while the process is alive.
    BusPid,
}

impl Way {
    /// Its name in the log and the status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::BusPidfd => "bus-pidfd",
            Self::BusPid => "bus-pid",
        }
    }
}

/// What is known of a caller's unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is in this service.
    In(Placement),
    /// It is in none, or it is gone.
    None,
    /// It could not be found out: the bus is down, or the caller has asked too often. Another time it may be.
    Unknown,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Trouble {
    /// This uid has made too many look-ups.
    TooOften,
    /// The tree of cgroups is larger than a walk.
    TooLarge,
    /// The kernel gives no descriptor, or no memory.
    System(Errno),
    /// The bus, in its words.
    Bus(Box<str>),
    /// A part of ours is gone.
    Lost,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooOften => f.write_str("they are looked up too often"),
            Self::TooLarge => f.write_str("there are more cgroups than one look takes in"),
            Self::System(errno) => write!(f, "the tree of cgroups cannot be read: {}", errno.desc()),
            Self::Bus(said) => write!(f, "the service manager cannot be asked: {said}"),
            Self::Lost => f.write_str("by a fault of the agent's own"),
        }
    }
}

enum By {
    Tree(Arc<Tree>),
    Bus(Bus),
}

/// The units of this host.
pub struct Units {
    capture: Capture,
    by: By,
    /// Why the tree of cgroups is not used.
    why_bus: &'static str,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    quota: Mutex<Quota>,
    told: Mutex<Told>,
}

/// What the log has.
#[derive(Default)]
struct Told {
    way: Option<Way>,
    trouble: Option<String>,
}

impl Units {
    /// The best way that this host has. It looks at the kernel and at /sys/fs/cgroup, which takes microseconds; the bus is
    /// left alone until somebody's unit is asked for.
    pub fn of_this_host(clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Arc<Self> {
        #[cfg(feature = "force-unit-lookup")]
        if let Some(way) = forced() {
            return Self::forced(way, clock, metrics);
        }
        let best = Capture::probe();
        if best != Capture::Cgroup {
            let why = "this kernel does not tell a process's cgroup (Linux 6.13 does)";
            return Self::new(best, By::Bus(Bus::new(bus::SYSTEM_BUS, None)), why, clock, metrics);
        }
        match Tree::of_this_host(Arc::clone(&clock)) {
            Ok(tree) => Self::new(best, By::Tree(Arc::new(tree)), "", clock, metrics),
            Err(why) => {
                let by = By::Bus(Bus::new(bus::SYSTEM_BUS, None));
                Self::new(Capture::PeerPidfd, by, why, clock, metrics)
            }
        }
    }

    /// Units of a part of the host's tree of cgroups, whose root `root` is taken for the service manager's: for tests.
    /// The error says why that cannot be.
    pub fn below(
        root: &Path,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, &'static str> {
        if Capture::probe() != Capture::Cgroup {
            return Err("this kernel does not tell a process's cgroup");
        }
        let by = By::Tree(Arc::new(Tree::below(root, Arc::clone(&clock))?));
        Ok(Self::new(Capture::Cgroup, by, "", clock, metrics))
    }

    /// One way and no other.
    #[cfg(feature = "force-unit-lookup")]
    fn forced(way: Way, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Arc<Self> {
        let bus = |capture| (capture, By::Bus(Bus::new(bus::SYSTEM_BUS, Some(way))));
        let (capture, by) = match way {
            Way::Cgroup => match Tree::of_this_host(Arc::clone(&clock)) {
                Ok(tree) => (Capture::Cgroup, By::Tree(Arc::new(tree))),
                // Every origin is gone then, as on a host without the way.
                Err(why) => {
                    tracing::error!(why, "the way that is forced is none here");
                    (Capture::Cgroup, By::Bus(Bus::new("unix:path=/nowhere", Some(way))))
                }
            },
            Way::BusPidfd => bus(Capture::PeerPidfd),
            // As on kernels that have no better.
            Way::BusPid => bus(Capture::Pid),
        };
        Self::new(capture, by, "it is forced", clock, metrics)
    }

    fn new(
        capture: Capture,
        by: By,
        why_bus: &'static str,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let (quota, told) = Default::default();
        Arc::new(Self { capture, by, why_bus, clock, metrics, quota, told })
    }

    /// How the origin of a connection is to be taken.
    pub const fn capture(&self) -> Capture {
        self.capture
    }

    /// The way that is in use; none before the bus was asked for the first time.
    pub fn way(&self) -> Option<Way> {
        match &self.by {
            By::Tree(_) => Some(Way::Cgroup),
            By::Bus(bus) => bus.way(),
        }
    }

    /// Why units cannot be found out right now, if the last look-up found that.
    pub fn trouble(&self) -> Option<String> {
        let told = self.told();
        told.trouble.as_ref().map(|trouble| format!("the units of callers cannot be found out: {trouble}"))
    }

    /// The unit of a process that connected as `uid`. It waits for the bus, at most 2 s.
    pub async fn unit_of(&self, uid: u32, origin: &Origin) -> Answer {
        let found = match (&self.by, origin) {
            (_, Origin::Gone) => return Answer::None,
            (By::Tree(tree), Origin::Cgroup(id)) => {
                let found = tree.find(*id, || self.take_turn(Look::Walk, uid)).await;
                found.map(|path| path.as_deref().and_then(path::placement))
            }
            (By::Bus(bus), Origin::Process(pidfd)) if self.take_turn(Look::Question, uid) => {
                let found = bus.placement(pidfd.as_fd()).await;
                // Of one that is gone nothing was found out, about the way neither.
                if !origin::is_alive(pidfd.as_fd()) {
                    return Answer::None;
                }
                found
            }
            (By::Bus(_), Origin::Process(_)) => Err(Trouble::TooOften),
            // Of other units than these.
            (By::Tree(_), Origin::Process(_)) | (By::Bus(_), Origin::Cgroup(_)) => return Answer::None,
        };
        self.tell(&found);
        match found {
            Ok(Some(placement)) => Answer::In(placement),
            Ok(None) => Answer::None,
            Err(_) => Answer::Unknown,
        }
    }

    /// Says once which way is in use, if it is known without a question: for a config that names units.
    pub fn announce(&self) {
        if let By::Tree(_) = &self.by {
            self.tell(&Ok(None));
        }
    }

    fn take_turn(&self, look: Look, uid: u32) -> bool {
        let turn =
            self.quota.lock().unwrap_or_else(PoisonError::into_inner).take(look, uid, self.clock.now().boot);
        if turn == Turn::FirstRefused {
            tracing::warn!(uid, "units are not looked up for now: the uid makes the agent look up too many");
        }
        turn == Turn::Granted
    }

    /// Logs what has changed: the way, and whether there is an answer at all.
    fn tell(&self, found: &Result<Option<Placement>, Trouble>) {
        let mut told = self.told();
        match found {
            // A caller's own doing, told of by its uid.
            Err(Trouble::TooOften) => {}
            Err(trouble) => {
                let text = trouble.to_string();
                if told.trouble.is_none() {
                    self.metrics.degrade(DEGRADED);
                    tracing::warn!(
                        reason = text,
                        "the units of callers cannot be found out, so no rule by unit admits"
                    );
                }
                told.trouble = Some(text);
            }
            Ok(_) => {
                // What was seen by an earlier walk says nothing of the tree that the last one could not take in.
                if !matches!(&self.by, By::Tree(tree) if tree.is_in_part()) && told.trouble.take().is_some() {
                    self.metrics.restore(DEGRADED);
                    tracing::info!("the units of callers can be found out again");
                }
                let way = self.way();
                if way.is_some() && told.way != way {
                    told.way = way;
                    let reason = (!self.why_bus.is_empty()).then_some(self.why_bus);
                    tracing::info!(way = way.map(Way::as_str), reason, "the units of callers are looked up");
                }
            }
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why no unit can be found on this host, whatever the config says; for its judges.
pub fn why_none() -> Option<&'static str> {
    // sd_booted(3).
    let is_booted = Path::new("/run/systemd/system").is_dir();
    (!is_booted).then_some("this host was not booted by systemd")
}

/// Which way a test wants.
#[cfg(feature = "force-unit-lookup")]
fn forced() -> Option<Way> {
    let wanted = std::env::var("BLOOM_AGENT_FORCE_UNIT_LOOKUP").ok()?;
    let way = [Way::Cgroup, Way::BusPidfd, Way::BusPid].into_iter().find(|way| way.as_str() == wanted);
    if way.is_none() {
        tracing::error!("BLOOM_AGENT_FORCE_UNIT_LOOKUP is none of cgroup, bus-pidfd and bus-pid");
    }
    way
}
