//! Why there is no answer: the step that failed, in words of our own. No error of the libraries is printed: theirs hold
//! URLs, and names out of certificates.

use std::{error::Error, fmt, io, time::Duration};

use rustls::CertificateError;

use crate::{
    failure::{Failure, FailureKind, Schedule},
    oauth2::{Endpoint, words::line},
};

/// The steps of an exchange, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Name to addresses: the provider's, or the proxy's.
    LookUp,
    /// TCP, to the provider or to the proxy.
    Connect,
    /// The proxy's answer to CONNECT.
    Proxy,
    /// The handshake and the certificate.
    Tls,
    /// The request and its answer.
    Request,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LookUp => "look-up",
            Self::Connect => "connect",
            Self::Proxy => "proxy",
            Self::Tls => "TLS",
            Self::Request => "endpoint",
        })
    }
}

/// Whether the provider may have seen the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// A connection was there: a token may have been minted, though no answer came.
    Perhaps,
    /// There was never a connection to send it on.
    No,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkFault {
    step: Step,
    reached: Reached,
    kind: FailureKind,
    why: Box<str>,
    remedy: &'static str,
}

impl NetworkFault {
    /// The step that failed.
    pub fn step(&self) -> Step {
        self.step
    }

    /// Whether it counts as a request.
    pub fn reached(&self) -> Reached {
        self.reached
    }

    /// The reason alone.
    pub(super) fn why(&self) -> &str {
        &self.why
    }

    /// As a failed attempt to get a token from `endpoint`.
    pub fn into_failure(self, endpoint: &Endpoint) -> Failure {
        Failure {
            kind: self.kind,
            schedule: Schedule::Transient,
            retry_after: None,
            code: None,
            text: self.to_line(endpoint),
        }
    }

    /// What, why, and what to do.
    pub(super) fn to_line(&self, endpoint: &Endpoint) -> Box<str> {
        let what = match self.step {
            Step::LookUp => format!("the look-up on the way to {endpoint} failed"),
            Step::Connect => format!("no connection to {endpoint}"),
            Step::Proxy => format!("the proxy does not connect to {endpoint}"),
            Step::Tls => format!("no TLS with {endpoint}"),
            Step::Request => format!("no answer from {endpoint}"),
        };
        line(&what, &self.why, self.remedy)
    }

    pub(super) fn new(step: Step, why: impl Into<Box<str>>) -> Self {
        Self {
            step,
            reached: if step == Step::Request { Reached::Perhaps } else { Reached::No },
            kind: FailureKind::Unreachable,
            why: why.into(),
            remedy: match step {
                Step::LookUp => "check the name, and this host's resolver (getent hosts NAME)",
                Step::Connect => "check the address, the firewall, and whether a proxy is needed",
                Step::Proxy => "check proxy, and what it allows",
                Step::Tls => {
                    "check token_url, ca_file and this host's clock; what is not verified is not asked"
                }
                Step::Request => {
                    "nothing, the agent tries again; if it stays, check the network and the provider"
                }
            },
        }
    }

    /// The deadline has passed.
    pub(super) fn timed_out(step: Step, deadline: Duration) -> Self {
        let limit = deadline.as_secs_f32();
        Self::new(
            step,
            match step {
                Step::LookUp => format!("time-out: the resolver did not answer within {limit} s"),
                Step::Connect | Step::Proxy | Step::Tls => {
                    format!("time-out: TCP, proxy and TLS were not done within {limit} s")
                }
                Step::Request => format!("time-out: the answer was not complete within {limit} s"),
            },
        )
    }

    /// What was checked before makes a request; should it not, nothing was sent.
    pub(super) fn not_a_request() -> Self {
        Self { reached: Reached::No, ..Self::new(Step::Request, "the request cannot be written") }
    }

    pub(super) fn look_up(fault: &LookUpFault) -> Self {
        Self::new(Step::LookUp, fault.to_string())
    }

    pub(super) fn tls(error: &rustls::Error) -> Self {
        Self::new(Step::Tls, tls_words(error))
    }

    /// `error` of an exchange that had come as far as `at`.
    pub(super) fn of(error: &reqwest::Error, at: Step, proxied: bool) -> Self {
        if let Some(fault) = find::<LookUpFault>(error) {
            return Self::look_up(fault);
        }
        if let Some(tls) = find::<rustls::Error>(error) {
            // With TLS 1.3 the client's handshake is done before the server refuses it.
            let reached = if at == Step::Request { Reached::Perhaps } else { Reached::No };
            return Self { reached, ..Self::tls(tls) };
        }
        let io = find::<io::Error>(error);
        if at != Step::Request {
            if proxied && io.is_none() && !error.is_timeout() {
                return Self::new(Step::Proxy, proxy_words(error));
            }
            let why = match io {
                _ if error.is_timeout() && at == Step::LookUp => {
                    "time-out: the resolver did not answer".to_owned()
                }
                _ if error.is_timeout() => "time-out: TCP, proxy and TLS took too long".to_owned(),
                Some(io) => io_words(io),
                None => "the connection failed".to_owned(),
            };
            return Self::new(at, why);
        }
        match find::<hyper::Error>(error) {
            Some(hyper) if hyper.is_parse() || is_no_http_2(hyper) => Self {
                kind: FailureKind::ProviderError,
                remedy: "check that token_url is the token endpoint, and that no proxy answers in its place",
                ..Self::new(Step::Request, "the answer is not HTTP, or its head is too long")
            },
            _ => {
                Self::new(Step::Request, io.map_or_else(|| "the connection was closed".to_owned(), io_words))
            }
        }
    }
}

/// A look-up's own error, so that it is known again at the end of a chain of causes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LookUpFault {
    #[error("the name has no address")]
    NoAddress,
    /// The text of gai_strerror(3).
    #[error("{0}")]
    Resolver(String),
    /// The call was lost: it panicked, or the process is about to end.
    #[error("the look-up broke off, by a fault of the agent's own")]
    Lost,
}

impl From<io::Error> for LookUpFault {
    fn from(error: io::Error) -> Self {
        Self::Resolver(error.to_string())
    }
}

/// The first error of type `T` among the causes; an `io::Error` can hold one that is not its source.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let held = error.downcast_ref::<io::Error>().and_then(|io| io.get_ref());
        if let Some(found) = held.and_then(|held| find::<T>(held)) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The kind only: the text of an `io::Error` can be anybody's.
pub(super) fn io_words(error: &io::Error) -> String {
    error.kind().to_string()
}

/// Whether it was this end that found something wrong with HTTP/2: what the other end did has another text. The library
/// below hyper has an error type for it that hyper does not show.
fn is_no_http_2(error: &hyper::Error) -> bool {
    error.source().is_some_and(|error| error.to_string().contains(" error detected: "))
}

/// hyper-util's error for a CONNECT cannot be named, but its text is one of a few.
fn proxy_words(error: &reqwest::Error) -> &'static str {
    let mut text = String::new();
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        text = error.to_string();
        next = error.source();
    }
    if text.contains("authorization required") {
        "it asks for a user and a password (407), which the agent does not have"
    } else if text.contains("end of file") {
        "it closed the connection"
    } else {
        "it refused CONNECT, or did not answer in HTTP"
    }
}

fn tls_words(error: &rustls::Error) -> String {
    let why = match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet"
            }
            CertificateError::UnknownIssuer => "its certificate is not issued by a CA that is trusted here",
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another name"
            }
            CertificateError::Revoked => "its certificate is revoked",
            CertificateError::BadSignature => "its certificate has a wrong signature",
            _ => "its certificate is not acceptable",
        },
        rustls::Error::NoCertificatesPresented => "it has no certificate",
        rustls::Error::InvalidMessage(_) => "it does not speak TLS on this port",
        rustls::Error::PeerIncompatible(_) => "it speaks neither TLS 1.2 nor TLS 1.3 as the agent does",
        // An enum of the protocol: the name of an alert is not free text.
        rustls::Error::AlertReceived(alert) => return format!("it refused the handshake ({alert:?})"),
        rustls::Error::NoApplicationProtocol => "it speaks neither HTTP/1.1 nor HTTP/2",
        _ => "the handshake failed",
    };
    why.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_found_inside_of_an_io_error() {
        let inner = io::Error::other(rustls::Error::DecryptError);
        let outer = io::Error::new(io::ErrorKind::InvalidData, inner);
        assert_eq!(find::<rustls::Error>(&outer), Some(&rustls::Error::DecryptError));
        assert!(find::<LookUpFault>(&outer).is_none());
    }

    #[test]
    fn a_line_names_the_step_and_only_a_sent_request_counts() {
        let endpoint = Endpoint::parse("https://id.example.com/token?tenant=a").unwrap();
        for (step, text, reached) in [
            (Step::LookUp, "the look-up on the way to id.example.com:443 failed / ", Reached::No),
            (Step::Connect, "no connection to id.example.com:443 / ", Reached::No),
            (Step::Proxy, "the proxy does not connect to id.example.com:443 / ", Reached::No),
            (Step::Tls, "no TLS with id.example.com:443 / ", Reached::No),
            (Step::Request, "no answer from id.example.com:443 / ", Reached::Perhaps),
        ] {
            let fault = NetworkFault::timed_out(step, Duration::from_secs(10));
            assert_eq!(fault.reached(), reached, "{step}");
            let failure = fault.into_failure(&endpoint);
            assert!(failure.text.starts_with(text), "{}", failure.text);
            assert_eq!(failure.text.matches(" / ").count(), 2, "{}", failure.text);
            assert!(failure.text.contains("within 10 s"), "{}", failure.text);
            assert_eq!((failure.kind, failure.schedule), (FailureKind::Unreachable, Schedule::Transient));
        }
    }

    #[test]
    fn a_certificates_names_are_not_printed() {
        let context = CertificateError::NotValidForNameContext {
            expected: "id.example.com".try_into().unwrap(),
            presented: vec!["\u{1b}[1mcanary".to_owned()],
        };
        let words = tls_words(&rustls::Error::InvalidCertificate(context));
        assert_eq!(words, "its certificate is for another name");
    }
}
