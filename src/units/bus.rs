//! The service manager's word for a process's unit, over the system bus: for kernels that do not tell the cgroup.
//!
//! - Nothing of D-Bus is outside of this module, and no connection is made before the first question.
//! - The process is named by its pidfd (GetUnitByPIDFD, systemd 254), or by its id with the pidfd in hand: if the process
//!   is still alive after the last answer, all answers were about it.
//! - The answer is the unit's cgroup, which is read by the same rule as everywhere ([`super::path`]).
//! - A question takes [`PATIENCE`] at the most. After one that had no answer the connection is made anew.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Mutex, Semaphore},
    time::timeout,
};
use zbus::{
    connection::Builder,
    zvariant::{DynamicType, Fd, ObjectPath, OwnedObjectPath, OwnedValue},
};

use super::{Trouble, Way, origin, path};
use crate::access::Placement;

/// The bus of the system, wherever $DBUS_SYSTEM_BUS_ADDRESS points (D-Bus Specification, "Well-known Message Bus
/// Instances").
pub(super) const SYSTEM_BUS: &str = "unix:path=/run/dbus/system_bus_socket";
/// How long a caller waits for the bus.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions at a time. The bus takes 128 unanswered ones of a connection (dbus-daemon(1), max_replies_per_connection).
const AT_A_TIME: usize = 16;

const MANAGER: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER_INTERFACE: &str = "org.freedesktop.systemd1.Manager";
const SERVICE_INTERFACE: &str = "org.freedesktop.systemd1.Service";
/// How the path of a service's object ends (sd_bus_path_encode(3)).
const SERVICE_OBJECT: &str = "_2eservice";

/// The way to the manager.
pub(super) struct Bus {
    address: &'static str,
    /// Which questions may be asked.
    forced: Option<Way>,
    link: Mutex<Option<Arc<Link>>>,
    slots: Semaphore,
    /// Which way answered last: 0 none yet, 1 by pidfd, 2 by id.
    last: AtomicU8,
}

/// One connection.
struct Link {
    bus: zbus::Connection,
    /// The root of the manager's tree of cgroups: not `/` in a container that sees more than its own.
    root: String,
    /// Whether the bus knows us by the process id that we know ourselves by. In another PID namespace an id says nothing.
    ids_agree: bool,
    /// Whether the manager does not take pidfds from us.
    by_id: std::sync::atomic::AtomicBool,
}

impl Bus {
    pub(super) fn new(address: &'static str, forced: Option<Way>) -> Self {
        Self {
            address,
            forced,
            link: Mutex::new(None),
            slots: Semaphore::new(AT_A_TIME),
            last: AtomicU8::new(0),
        }
    }

    /// The way that answered last.
    pub(super) fn way(&self) -> Option<Way> {
        match self.last.load(Ordering::Relaxed) {
            1 => Some(Way::BusPidfd),
            2 => Some(Way::BusPid),
            _ => None,
        }
    }

    /// Where the process belongs; none if it has ended.
    pub(super) async fn placement(&self, pidfd: BorrowedFd<'_>) -> Result<Option<Placement>, Trouble> {
        if !origin::is_alive(pidfd) {
            return Ok(None);
        }
        let asked = timeout(PATIENCE, async {
            let _slot = self.slots.acquire().await.map_err(|_| Trouble::Lost)?;
            let link = self.link().await?;
            let asked = self.ask(&link, pidfd).await;
            if asked.as_ref().is_err_and(Fault::is_of_the_link) {
                self.forget(&link).await;
            }
            asked.map_err(Fault::into_trouble)
        });
        let answer = match asked.await {
            Ok(answer) => answer,
            Err(_) => {
                // Whatever hangs, the next one does not wait behind it.
                if let Ok(mut link) = self.link.try_lock() {
                    *link = None;
                }
                Err(Trouble::Bus("no answer within 2 s".into()))
            }
        };
        // Last of all: only now is it known whose unit that was.
        if origin::is_alive(pidfd) { answer } else { Ok(None) }
    }

    async fn link(&self) -> Result<Arc<Link>, Trouble> {
        let mut link = self.link.lock().await;
        if let Some(link) = &*link {
            return Ok(Arc::clone(link));
        }
        let made = Arc::new(Link::new(self.address).await.map_err(Fault::into_trouble)?);
        Ok(Arc::clone(link.insert(made)))
    }

    async fn forget(&self, broken: &Arc<Link>) {
        let mut link = self.link.lock().await;
        if link.as_ref().is_some_and(|link| Arc::ptr_eq(link, broken)) {
            *link = None;
        }
    }

    async fn ask(&self, link: &Link, pidfd: BorrowedFd<'_>) -> Result<Option<Placement>, Fault> {
        let may_by_pidfd = self.forced != Some(Way::BusPid) && !link.by_id.load(Ordering::Relaxed);
        if may_by_pidfd {
            match link.by_pidfd(pidfd).await {
                // Before 254 there is no such method: root hears so, and all others that the bus's policy knows none.
                Err(fault)
                    if fault.is_one_of(&["UnknownMethod", "AccessDenied"]) && self.forced.is_none() =>
                {
                    link.by_id.store(true, Ordering::Relaxed);
                }
                answer => {
                    self.last.store(1, Ordering::Relaxed);
                    return link.placed(answer).await;
                }
            }
        }
        self.last.store(2, Ordering::Relaxed);
        let answer = link.by_id(pidfd).await;
        link.placed(answer).await
    }
}

impl Link {
    async fn new(address: &str) -> Result<Self, Fault> {
        let bus = Builder::address(address)?.build().await?;
        let name = bus.unique_name().map(|name| name.to_string()).unwrap_or_default();
        let known_by: u32 = call(
            &bus,
            "org.freedesktop.DBus",
            "/org/freedesktop/DBus",
            ("org.freedesktop.DBus", "GetConnectionUnixProcessID"),
            &(name,),
        )
        .await?;
        let ids_agree = known_by == std::process::id();
        let link = Self { bus, root: String::new(), ids_agree, by_id: false.into() };
        let root = link.property(MANAGER_PATH, MANAGER_INTERFACE, "ControlGroup").await?;
        Ok(Self { root, ..link })
    }

    /// The object of the unit that the process is in.
    async fn by_pidfd(&self, pidfd: BorrowedFd<'_>) -> Result<OwnedObjectPath, Fault> {
        let method = (MANAGER_INTERFACE, "GetUnitByPIDFD");
        let answer = call(&self.bus, MANAGER, MANAGER_PATH, method, &(Fd::from(pidfd.as_fd()),)).await;
        let (unit, _name, _invocation): (OwnedObjectPath, String, Vec<u8>) = answer?;
        Ok(unit)
    }

    /// The same by the id that the process has right now.
    async fn by_id(&self, pidfd: BorrowedFd<'_>) -> Result<OwnedObjectPath, Fault> {
        if !self.ids_agree {
            return Err(Fault::Ids);
        }
        let pid = origin::pid(pidfd).ok_or(Fault::Ids)?;
        call(&self.bus, MANAGER, MANAGER_PATH, (MANAGER_INTERFACE, "GetUnitByPID"), &(pid,)).await
    }

    /// Where the unit is, if it is a service.
    async fn placed(&self, unit: Result<OwnedObjectPath, Fault>) -> Result<Option<Placement>, Fault> {
        let unit = match unit {
            Ok(unit) => unit,
            Err(fault) if fault.is_one_of(&["NoUnitForPID", "NoSuchUnit"]) => return Ok(None),
            Err(fault) => return Err(fault),
        };
        if !unit.as_str().ends_with(SERVICE_OBJECT) {
            return Ok(None);
        }
        let cgroup = self.property(unit.as_str(), SERVICE_INTERFACE, "ControlGroup").await?;
        Ok(path::below(&self.root, &cgroup).and_then(path::placement))
    }

    async fn property(&self, object: &str, interface: &str, name: &str) -> Result<String, Fault> {
        let method = ("org.freedesktop.DBus.Properties", "Get");
        let value: OwnedValue = call(&self.bus, MANAGER, object, method, &(interface, name)).await?;
        Ok(String::try_from(value).map_err(zbus::Error::from)?)
    }
}

async fn call<B, A>(
    bus: &zbus::Connection,
    destination: &str,
    object: &str,
    (interface, method): (&str, &str),
    body: &B,
) -> Result<A, Fault>
where
    B: serde::Serialize + DynamicType,
    A: for<'d> serde::Deserialize<'d> + zbus::zvariant::Type,
{
    let object = ObjectPath::try_from(object).map_err(zbus::Error::from)?;
    let answer = bus.call_method(Some(destination), object, Some(interface), method, body).await?;
    Ok(answer.body().deserialize()?)
}

/// Why a question has no answer.
enum Fault {
    /// The bus, or what it says.
    Bus(zbus::Error),
    /// The process has no id that the manager would understand.
    Ids,
}

impl<E: Into<zbus::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Bus(error.into())
    }
}

impl Fault {
    /// Whether it is an error that the other side sent, of one of these names; what stands before the last dot differs
    /// with who sent it.
    fn is_one_of(&self, names: &[&str]) -> bool {
        match self {
            Self::Bus(zbus::Error::MethodError(name, ..)) => {
                name.as_str().rsplit('.').next().is_some_and(|last| names.contains(&last))
            }
            _ => false,
        }
    }

    /// Whether another connection may do better.
    fn is_of_the_link(&self) -> bool {
        matches!(self, Self::Bus(error) if !matches!(error, zbus::Error::MethodError(..)))
    }

    fn into_trouble(self) -> Trouble {
        Trouble::Bus(match self {
            Self::Bus(error) => error.to_string().into(),
            Self::Ids => "the agent and the service manager do not know processes by the same ids".into(),
        })
    }
}
