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
            let mut asked = self.ask(&link, pidfd).await;
            if asked.as_ref().is_err_and(Fault::is_of_the_link) {
                // The bus was started anew: nobody need fail for the old connection.
                self.forget(&link).await;
                let link = self.link().await?;
                asked = self.ask(&link, pidfd).await;
                if asked.as_ref().is_err_and(Fault::is_of_the_link) {
                    self.forget(&link).await;
                }
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
        let name = bus.unique_name().map(ToString::to_string).unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use std::{
        os::{
            fd::OwnedFd,
            unix::net::{UnixListener, UnixStream},
        },
        process::{Child, Command},
        sync::Mutex as StdMutex,
    };

    use tokio::{net, task::JoinSet};
    use zbus::fdo;

    use super::*;
    use crate::{
        log::{DroppedLines, Panics},
        metrics::Metrics,
        timer::ManualTime,
        units::{Answer, By, Capture, Origin, Units},
    };

    /// What the manager says.
    #[derive(Clone, Default)]
    struct Manager {
        /// Has GetUnitByPIDFD.
        is_new: bool,
        /// Its root in the tree of cgroups.
        root: &'static str,
        /// As whom the bus knows us.
        known_by: u32,
        /// The object and the cgroup that every process is in; none is in any without.
        unit: Option<(&'static str, &'static str)>,
        /// Answers nothing.
        hangs: bool,
        asked: Arc<StdMutex<Vec<String>>>,
    }

    #[derive(Debug, zbus::DBusError)]
    #[zbus(prefix = "org.freedesktop.systemd1")]
    enum Said {
        #[zbus(error)]
        ZBus(zbus::Error),
        NoUnitForPID(String),
    }

    struct Greeter(u32);

    #[zbus::interface(name = "org.freedesktop.DBus")]
    impl Greeter {
        fn hello(&self) -> String {
            ":1.1".to_owned()
        }

        #[zbus(name = "GetConnectionUnixProcessID")]
        fn process_id(&self, _name: String) -> u32 {
            self.0
        }
    }

    #[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
    impl Manager {
        #[zbus(name = "GetUnitByPIDFD")]
        async fn by_pidfd(&self, pidfd: Fd<'_>) -> fdo::Result<(OwnedObjectPath, String, Vec<u8>)> {
            if self.hangs {
                std::future::pending::<()>().await;
            }
            if !self.is_new {
                return Err(fdo::Error::UnknownMethod("no such method".to_owned()));
            }
            let asked = format!("pidfd of {:?}", origin::pid(pidfd.as_fd()));
            self.asked.lock().unwrap().push(asked);
            Ok((self.object().unwrap(), "x.service".to_owned(), vec![0; 16]))
        }

        #[zbus(name = "GetUnitByPID")]
        fn by_pid(&self, pid: u32) -> Result<OwnedObjectPath, Said> {
            self.asked.lock().unwrap().push(format!("{pid}"));
            self.object().ok_or_else(|| Said::NoUnitForPID(String::new()))
        }

        #[zbus(property, name = "ControlGroup")]
        fn control_group(&self) -> String {
            self.root.to_owned()
        }
    }

    impl Manager {
        fn object(&self) -> Option<OwnedObjectPath> {
            Some(ObjectPath::try_from(self.unit?.0).unwrap().into())
        }
    }

    struct Service(&'static str);

    #[zbus::interface(name = "org.freedesktop.systemd1.Service")]
    impl Service {
        #[zbus(property, name = "ControlGroup")]
        fn control_group(&self) -> String {
            self.0.to_owned()
        }
    }

    /// A bus with nobody on it but the manager, which serves one connection after the other.
    struct Host {
        bus: Bus,
        _serving: JoinSet<()>,
        _directory: tempfile::TempDir,
    }

    impl Host {
        fn new(manager: &Manager, forced: Option<Way>) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("bus");
            let listener = net::UnixListener::bind(&path).unwrap();
            let manager = manager.clone();
            let mut serving = JoinSet::new();
            serving.spawn(async move {
                let mut connections = Vec::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let (object, cgroup) = manager.unit.unwrap_or(("/none", ""));
                    let served = Builder::unix_stream(stream)
                        .server(zbus::Guid::generate())
                        .unwrap()
                        .p2p()
                        .serve_at("/org/freedesktop/DBus", Greeter(manager.known_by))
                        .unwrap()
                        .serve_at(MANAGER_PATH, manager.clone())
                        .unwrap()
                        .serve_at(object, Service(cgroup))
                        .unwrap();
                    connections.push(served.build().await.unwrap());
                }
            });
            let address = format!("unix:path={}", path.display()).leak();
            Self { bus: Bus::new(address, forced), _serving: serving, _directory: directory }
        }

        async fn ask(&self, pidfd: &OwnedFd) -> Result<Option<String>, Trouble> {
            let placement = self.bus.placement(pidfd.as_fd()).await?;
            Ok(placement.map(|placement| format!("{} in {}", placement.unit, placement.slice)))
        }
    }

    const LOANS: (&str, &str) =
        ("/org/freedesktop/systemd1/unit/loans_2eservice", "/system.slice/loans.service");

    fn manager() -> Manager {
        Manager { is_new: true, known_by: std::process::id(), unit: Some(LOANS), ..Manager::default() }
    }

    /// A pidfd as the oldest kernels give it: of whoever has connected.
    fn ourselves() -> OwnedFd {
        let (one, _other) = UnixStream::pair().unwrap();
        match Capture::Pid.origin(one.as_fd()) {
            Origin::Process(pidfd) => pidfd,
            other => panic!("{other:?}"),
        }
    }

    fn of_child(child: &Child) -> OwnedFd {
        origin::open(child.id().cast_signed()).unwrap()
    }

    #[tokio::test]
    async fn the_manager_is_asked_by_pidfd_or_else_by_the_id_that_the_pidfd_has() {
        let (pidfd, pid) = (ourselves(), std::process::id());
        let in_loans = || Ok(Some("loans.service in system.slice".to_owned()));
        let (new, old) = (manager(), Manager { is_new: false, ..manager() });
        for (manager, forced, way, asked) in [
            (&new, None, Way::BusPidfd, format!("pidfd of Some({pid})")),
            (&old, None, Way::BusPid, pid.to_string()),
            (&new, Some(Way::BusPid), Way::BusPid, pid.to_string()),
        ] {
            manager.asked.lock().unwrap().clear();
            let host = Host::new(manager, forced);
            assert_eq!(host.bus.way(), None);
            assert_eq!(host.ask(&pidfd).await, in_loans());
            assert_eq!(host.ask(&pidfd).await, in_loans());
            assert_eq!(host.bus.way(), Some(way));
            assert_eq!(*manager.asked.lock().unwrap(), [asked.clone(), asked]);
        }
        let host = Host::new(&old, Some(Way::BusPidfd));
        assert!(matches!(host.ask(&pidfd).await, Err(Trouble::Bus(_))), "no other way than the forced one");
    }

    #[tokio::test]
    async fn the_cgroup_of_the_unit_is_read_by_the_rule_of_all_ways() {
        let pidfd = ourselves();
        let cases = [
            (LOANS.0, "/user.slice/user-1000.slice/user@1000.service", "", None),
            (LOANS.0, "", "", None),
            ("/org/freedesktop/systemd1/unit/a_2escope", "/system.slice/a.service", "", None),
            (
                LOANS.0,
                "/c.scope/system.slice/loans.service",
                "/c.scope",
                Some("loans.service in system.slice"),
            ),
            (LOANS.0, "/system.slice/loans.service", "/c.scope", None),
        ];
        for (object, cgroup, root, expected) in cases {
            let host = Host::new(&Manager { unit: Some((object, cgroup)), root, ..manager() }, None);
            assert_eq!(host.ask(&pidfd).await, Ok(expected.map(str::to_owned)), "{object} {cgroup} {root}");
        }
        let host = Host::new(&Manager { unit: None, is_new: false, ..manager() }, None);
        assert_eq!(host.ask(&pidfd).await, Ok(None), "it is in no unit");
    }

    #[tokio::test]
    async fn a_process_that_has_ended_is_in_no_unit_whatever_the_manager_says_of_its_id() {
        let mut child = Command::new("sleep").arg("infinity").spawn().unwrap();
        let pidfd = of_child(&child);
        let host = Host::new(&Manager { is_new: false, ..manager() }, None);
        assert_eq!(host.ask(&pidfd).await, Ok(Some("loans.service in system.slice".to_owned())));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(host.ask(&pidfd).await, Ok(None));
    }

    #[tokio::test]
    async fn one_that_is_gone_says_nothing_of_the_bus() {
        let metrics = Metrics::new("1", DroppedLines::default(), Panics::default());
        let by = By::Bus(Bus::new("unix:path=/nowhere/bus", None));
        let units = Units::new(Capture::Pid, by, "", Arc::new(ManualTime::default()), metrics);
        assert_eq!(units.unit_of(7, &Origin::Process(ourselves())).await, Answer::Unknown);
        let trouble = units.trouble();
        assert!(trouble.is_some());
        let mut child = Command::new("true").spawn().unwrap();
        let pidfd = of_child(&child);
        child.wait().unwrap();
        assert_eq!(units.unit_of(7, &Origin::Process(pidfd)).await, Answer::None);
        assert_eq!(units.trouble(), trouble);
    }

    #[tokio::test]
    async fn ids_of_another_namespace_are_not_asked_for() {
        let stranger = Manager { known_by: 1, is_new: false, ..manager() };
        let host = Host::new(&stranger, None);
        assert!(matches!(host.ask(&ourselves()).await, Err(Trouble::Bus(_))));
        assert!(stranger.asked.lock().unwrap().is_empty());
        // A pidfd is the same process everywhere.
        let host = Host::new(&Manager { is_new: true, ..stranger }, None);
        assert_eq!(host.ask(&ourselves()).await, Ok(Some("loans.service in system.slice".to_owned())));
    }

    #[tokio::test(start_paused = true)]
    async fn a_bus_that_is_not_there_or_hangs_is_no_answer_and_the_next_question_starts_anew() {
        let bus = Bus::new("unix:path=/nowhere/bus", None);
        assert!(matches!(bus.placement(ourselves().as_fd()).await, Err(Trouble::Bus(_))));

        // One that takes connections and says nothing.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus");
        let _silent = UnixListener::bind(&path).unwrap();
        let bus = Bus::new(format!("unix:path={}", path.display()).leak(), None);
        let started = tokio::time::Instant::now();
        assert!(matches!(bus.placement(ourselves().as_fd()).await, Err(Trouble::Bus(_))));
        assert_eq!(started.elapsed().as_secs(), PATIENCE.as_secs());

        let host = Host::new(&Manager { hangs: true, ..manager() }, None);
        assert!(matches!(host.ask(&ourselves()).await, Err(Trouble::Bus(_))));
        assert!(host.bus.link.lock().await.is_none());
    }
}
