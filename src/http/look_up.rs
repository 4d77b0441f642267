//! Names to addresses, by getaddrinfo(3). It cannot be called back, and with a resolver that is down it takes its time
//! (resolv.conf(5): 5 s for each server and attempt): so few run at once, and one name is looked up once at a time.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, ToSocketAddrs as _},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::spawn_blocking,
};

use super::fault::LookUpFault;

/// The threads that look-ups take at the most, given up or not.
pub const LOOK_UPS: usize = 4;

type Found = Result<Vec<SocketAddr>, LookUpFault>;
type Ask = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;
/// By name; none while nobody has answered.
type Running = Mutex<BTreeMap<Box<str>, watch::Receiver<Option<Found>>>>;

/// The look-ups of a process; clones are the same.
#[derive(Clone)]
pub struct LookUps {
    permits: Arc<Semaphore>,
    running: Arc<Running>,
    ask: Arc<Ask>,
}

impl Default for LookUps {
    /// Those of the system's resolver.
    fn default() -> Self {
        Self::asking(|host| Ok((host, 0).to_socket_addrs()?.collect()))
    }
}

/// A look-up until the resolver has answered, however many have given it up.
struct LookUp {
    host: Box<str>,
    answer: watch::Sender<Option<Found>>,
    running: Arc<Running>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for LookUp {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.host);
    }
}

impl LookUps {
    /// Those of another resolver, which may block; the ports of its addresses are 0. It is public for the tests of the
    /// whole agent; the programs ask the system's.
    pub fn asking(ask: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static) -> Self {
        Self { permits: Arc::new(Semaphore::new(LOOK_UPS)), running: Arc::default(), ask: Arc::new(ask) }
    }

    /// The addresses of `host`, at least one; their port is 0.
    pub(super) async fn addresses(&self, host: &str) -> Found {
        let mut answer = match self.join(host) {
            Some(answer) => answer,
            None => {
                let permit =
                    Arc::clone(&self.permits).acquire_owned().await.map_err(|_| LookUpFault::Lost)?;
                self.start(host, permit)
            }
        };
        let found = answer.wait_for(Option::is_some).await.map_err(|_| LookUpFault::Lost)?;
        found.clone().unwrap_or(Err(LookUpFault::Lost))
    }

    /// The look-up of `host` that is under way.
    fn join(&self, host: &str) -> Option<watch::Receiver<Option<Found>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).get(host).cloned()
    }

    fn start(&self, host: &str, permit: OwnedSemaphorePermit) -> watch::Receiver<Option<Found>> {
        let (answer, seen) = watch::channel(None);
        {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            // Somebody else may have had a permit sooner.
            if let Some(running) = running.get(host) {
                return running.clone();
            }
            running.insert(host.into(), seen.clone());
        }
        let running = Arc::clone(&self.running);
        let look_up = LookUp { host: host.into(), answer, running, _permit: permit };
        let ask = Arc::clone(&self.ask);
        // Nobody waits for the thread: who wants the answer waits for that.
        let _thread = spawn_blocking(move || {
            let found = match ask(&look_up.host) {
                Ok(addresses) if addresses.is_empty() => Err(LookUpFault::NoAddress),
                Ok(addresses) => Ok(addresses),
                Err(error) => Err(error.into()),
            };
            look_up.answer.send_replace(Some(found));
        });
        seen
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::{
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
        task::Poll,
    };

    use super::*;

    const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    /// A resolver that does not answer for names that begin with `slow`, until the test lets it.
    fn resolver() -> (LookUps, Arc<AtomicUsize>, mpsc::Sender<()>) {
        let (answer, answers) = mpsc::channel();
        let (answers, calls) = (Mutex::new(answers), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&calls);
        let ask = move |host: &str| {
            counted.fetch_add(1, Ordering::SeqCst);
            if host.starts_with("slow") {
                // An error when the test is over.
                let _ = answers.lock().unwrap().recv();
            }
            match host {
                "panics" => panic!("a resolver that panics"),
                "refused" => Err(io::Error::other("Name or service not known")),
                "nothing" => Ok(Vec::new()),
                _ => Ok(vec![ADDRESS]),
            }
        };
        (LookUps::asking(ask), calls, answer)
    }

    async fn is_pending(future: &mut (impl Future + Unpin)) -> bool {
        std::future::poll_fn(|context| {
            Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_pending())
        })
        .await
    }

    #[tokio::test]
    async fn what_the_resolver_says_is_told_and_not_kept() {
        let (look_ups, calls, _answer) = resolver();
        for (host, found) in [
            ("fast", Ok(vec![ADDRESS])),
            ("fast", Ok(vec![ADDRESS])),
            ("nothing", Err(LookUpFault::NoAddress)),
            ("refused", Err(LookUpFault::Resolver("Name or service not known".to_owned()))),
            ("panics", Err(LookUpFault::Lost)),
            ("panics", Err(LookUpFault::Lost)),
        ] {
            assert_eq!(look_ups.addresses(host).await, found, "{host}");
            // Until the thread is done with it.
            drop(look_ups.permits.acquire_many(u32::try_from(LOOK_UPS).unwrap()).await.unwrap());
            assert!(look_ups.running.lock().unwrap().is_empty());
        }
        assert_eq!(calls.load(Ordering::SeqCst), 6);
    }

    #[tokio::test]
    async fn one_name_is_looked_up_once_at_a_time_however_often_it_is_given_up() {
        let (look_ups, calls, answer) = resolver();
        for _ in 0..20 {
            let mut given_up = pin!(look_ups.addresses("slow"));
            assert!(is_pending(&mut given_up).await);
        }
        assert_eq!(look_ups.permits.available_permits(), LOOK_UPS - 1);
        assert_eq!(look_ups.addresses("fast").await, Ok(vec![ADDRESS]), "others go on");
        let mut waits = pin!(look_ups.addresses("slow"));
        assert!(is_pending(&mut waits).await);
        answer.send(()).unwrap();
        assert_eq!(waits.await, Ok(vec![ADDRESS]));
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn no_more_than_a_few_run_at_once_and_a_permit_is_the_calls_not_the_callers() {
        let (look_ups, _calls, answer) = resolver();
        for number in 0..LOOK_UPS {
            let name = format!("slow{number}");
            let mut given_up = pin!(look_ups.addresses(&name));
            assert!(is_pending(&mut given_up).await);
        }
        assert_eq!(look_ups.permits.available_permits(), 0);
        let (mut one, mut other) = (pin!(look_ups.addresses("fast")), pin!(look_ups.addresses("fast")));
        assert!(is_pending(&mut one).await && is_pending(&mut other).await);
        assert_eq!(look_ups.running.lock().unwrap().len(), LOOK_UPS);
        answer.send(()).unwrap();
        assert_eq!(tokio::join!(one, other), (Ok(vec![ADDRESS]), Ok(vec![ADDRESS])));
    }

    #[tokio::test]
    async fn the_systems_resolver_takes_names_and_addresses() {
        let look_ups = LookUps::default();
        assert_eq!(look_ups.addresses("127.0.0.1").await, Ok(vec![ADDRESS]));
        assert!(matches!(look_ups.addresses(&"x".repeat(64)).await, Err(LookUpFault::Resolver(_))));
    }
}
