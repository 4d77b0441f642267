//! The one table from what went wrong to a gRPC status: code, `google.rpc.ErrorInfo` and `RetryInfo`.
//!
//! Texts for callers name no provider, no endpoint and no other caller; the provider's own text goes to the log and to
//! admins only.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{failure::FailureKind, token::ProfileName};

/// The domain of every ErrorInfo.
pub const DOMAIN: &str = "bloom.agent";

/// Why a call fails, by what the caller can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The caller may not. The same for known and unknown names.
    NotAllowed {
        /// Who the kernel says the caller is.
        uid: u32,
    },
    /// It hangs on the caller's unit, which cannot be found out right now.
    UnitUnknown,
    /// AdminService is not the caller's.
    NotAdmin {
        /// Who the kernel says the caller is.
        uid: u32,
    },
    /// No name, and the caller may use more than one profile.
    NameRequired(Vec<ProfileName>),
    /// No such profile; said only to who may use every profile: these.
    UnknownProfile(Vec<ProfileName>),
    /// The profile was taken away by a reload.
    ProfileGone,
    /// A field of the request makes no sense.
    BadField {
        /// Its name.
        field: &'static str,
        /// What would be right.
        right: &'static str,
    },
    /// No token yet, and no attempt has failed.
    Pending {
        /// When to ask again.
        retry: Duration,
    },
    /// No valid token, because the last attempt failed.
    Failed {
        /// How.
        kind: FailureKind,
        /// When the next attempt is due.
        retry: Duration,
        /// What happened, in the provider's words too: for admins only.
        detail: Option<Box<str>>,
    },
    /// The agent is stopping.
    ShuttingDown,
    /// A limit of `[limits]`, or the budget of refreshes asked for by callers.
    Limit {
        /// Which one, in words.
        what: &'static str,
        /// When to ask again.
        retry: Duration,
    },
    /// The config has faults; one per line. For admins only.
    BadConfig(String),
    /// Our own fault; the log has more.
    Internal,
}

impl Refusal {
    /// The row of this error in the table.
    fn row(&self) -> (Code, Option<&'static str>, Option<Duration>) {
        use FailureKind as Kind;
        match self {
            Self::NotAllowed { .. } | Self::NotAdmin { .. } => {
                (Code::PermissionDenied, Some("NOT_ALLOWED"), None)
            }
            Self::NameRequired(_) => (Code::InvalidArgument, Some("NAME_REQUIRED"), None),
            Self::UnknownProfile(_) | Self::ProfileGone => (Code::NotFound, Some("UNKNOWN_PROFILE"), None),
            Self::BadField { .. } | Self::BadConfig(_) => (Code::InvalidArgument, None, None),
            Self::Pending { retry } => (Code::Unavailable, Some("TOKEN_PENDING"), Some(*retry)),
            Self::Failed { kind, retry, .. } => {
                let reason = match kind {
                    Kind::Unreachable => "PROVIDER_UNREACHABLE",
                    Kind::ProviderError => "PROVIDER_ERROR",
                    Kind::Refused => "PROVIDER_REFUSED",
                    Kind::SecretUnreadable => "SECRET_UNREADABLE",
                };
                (Code::Unavailable, Some(reason), Some(*retry))
            }
            Self::UnitUnknown => (Code::Unavailable, Some("UNIT_UNKNOWN"), Some(Duration::from_secs(1))),
            // The listening socket outlives a restart, so it is worth an immediate try.
            Self::ShuttingDown => (Code::Unavailable, Some("SHUTTING_DOWN"), Some(Duration::from_secs(1))),
            Self::Limit { retry, .. } => (Code::ResourceExhausted, Some("LIMIT"), Some(*retry)),
            Self::Internal => (Code::Internal, None, None),
        }
    }

    fn message(&self) -> String {
        use FailureKind as Kind;
        match self {
            Self::NotAllowed { uid } => format!("uid {uid} may not use that profile"),
            Self::NotAdmin { uid } => format!("uid {uid} may not administer the agent"),
            Self::UnitUnknown => "the agent cannot find out which unit the caller is in right now".to_owned(),
            Self::NameRequired(names) => {
                format!("name one of these profiles: {}", names_text(names))
            }
            Self::UnknownProfile(_) => "there is no such profile".to_owned(),
            Self::ProfileGone => "the profile is no longer configured".to_owned(),
            Self::BadField { field, right } => format!("{field} is wrong: {right}"),
            Self::Pending { .. } => "it is still under way: no token yet, and no failure".to_owned(),
            Self::Failed { kind, detail, .. } => {
                let text = match kind {
                    Kind::Unreachable => "no valid token: the provider cannot be reached",
                    Kind::ProviderError => "no valid token: the provider has a passing fault",
                    Kind::Refused => "no valid token: the provider refuses the agent's client",
                    Kind::SecretUnreadable => "no valid token: the agent cannot read the client secret",
                };
                match detail {
                    Some(detail) => format!("{text}: {detail}"),
                    None => text.to_owned(),
                }
            }
            Self::ShuttingDown => "the agent is shutting down".to_owned(),
            Self::Limit { what, .. } => (*what).to_owned(),
            Self::BadConfig(faults) => faults_text(faults),
            Self::Internal => "the agent made a mistake; its log says more".to_owned(),
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let (code, reason, retry) = refusal.row();
        let mut details = ErrorDetails::new();
        if let Some(reason) = reason {
            let metadata = match &refusal {
                Refusal::NameRequired(names) | Refusal::UnknownProfile(names) => HashMap::from([(
                    "profiles".to_owned(),
                    fitting(names.iter().map(ProfileName::as_str), ",").0,
                )]),
                _ => HashMap::new(),
            };
            details.set_error_info(reason, DOMAIN, metadata);
        }
        if retry.is_some() {
            details.set_retry_info(retry);
        }
        if let Refusal::BadField { field, right } = &refusal {
            details.add_bad_request_violation(*field, *right);
        }
        Status::with_error_details(code, refusal.message(), details)
    }
}

/// The longest text that a status carries, in bytes. It travels three times: as grpc-message, percent-encoded, and in
/// grpc-status-details-bin as the message and, of names, as metadata, in Base64. Stock clients take 8 KiB of headers.
const MAX_TEXT: usize = 1024;

/// As many as fit, whole, and how many do not.
fn fitting<'a>(parts: impl ExactSizeIterator<Item = &'a str>, between: &str) -> (String, usize) {
    let mut left = parts.len();
    let mut text = String::new();
    for part in parts {
        if text.len() + between.len() + part.len() > MAX_TEXT {
            break;
        }
        if !text.is_empty() {
            text.push_str(between);
        }
        text.push_str(part);
        left -= 1;
    }
    (text, left)
}

fn names_text(names: &[ProfileName]) -> String {
    match fitting(names.iter().map(ProfileName::as_str), ", ") {
        (text, 0) => text,
        (text, left) => format!("{text} and {left} more"),
    }
}

fn faults_text(faults: &str) -> String {
    let lines: Vec<_> = faults.lines().collect();
    match fitting(lines.into_iter(), "\n") {
        (text, 0) => text,
        (text, left) => {
            format!("{text}\nand {left} more; `bloom-agent check` and the agent's log have them all")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn every_reason_has_its_status() {
        let name = |text| ProfileName::parse(text).unwrap();
        let failed = |kind| Refusal::Failed { kind, retry: SECOND, detail: None };
        let table = [
            (Refusal::NotAllowed { uid: 7 }, Code::PermissionDenied, "NOT_ALLOWED", false),
            (Refusal::NotAdmin { uid: 7 }, Code::PermissionDenied, "NOT_ALLOWED", false),
            (
                Refusal::NameRequired(vec![name("a"), name("b")]),
                Code::InvalidArgument,
                "NAME_REQUIRED",
                false,
            ),
            (Refusal::UnknownProfile(vec![name("a")]), Code::NotFound, "UNKNOWN_PROFILE", false),
            (Refusal::ProfileGone, Code::NotFound, "UNKNOWN_PROFILE", false),
            (Refusal::UnitUnknown, Code::Unavailable, "UNIT_UNKNOWN", true),
            (Refusal::Pending { retry: SECOND }, Code::Unavailable, "TOKEN_PENDING", true),
            (failed(FailureKind::Unreachable), Code::Unavailable, "PROVIDER_UNREACHABLE", true),
            (failed(FailureKind::ProviderError), Code::Unavailable, "PROVIDER_ERROR", true),
            (failed(FailureKind::Refused), Code::Unavailable, "PROVIDER_REFUSED", true),
            (failed(FailureKind::SecretUnreadable), Code::Unavailable, "SECRET_UNREADABLE", true),
            (Refusal::ShuttingDown, Code::Unavailable, "SHUTTING_DOWN", true),
            (Refusal::Limit { what: "too many", retry: SECOND }, Code::ResourceExhausted, "LIMIT", true),
        ];
        for (refusal, code, reason, retries) in table {
            let status = Status::from(refusal.clone());
            let info = status.get_details_error_info().unwrap();
            assert_eq!(
                (status.code(), info.reason.as_str(), info.domain.as_str()),
                (code, reason, DOMAIN),
                "{refusal:?}"
            );
            assert_eq!(status.get_details_retry_info().is_some(), retries, "{refusal:?}");
            assert!(!status.message().is_empty());
        }
    }

    #[test]
    fn a_bad_field_is_named() {
        let status = Status::from(Refusal::BadField { field: "min_validity", right: "not negative" });
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "min_validity");
    }

    /// grpc-message is percent-encoded where it is not plain, and the details are in Base64.
    #[test]
    fn no_status_outgrows_the_headers_that_stock_clients_take() {
        let long = |n: usize| ProfileName::parse(&format!("{}{n}", "a".repeat(58))).unwrap();
        let names: Vec<_> = (0..1000).map(long).collect();
        let faults: Vec<_> =
            (0..1000).map(|n| format!("config.toml:{n}: tokens.bloom: is wrong; write it right")).collect();
        for refusal in [
            Refusal::NameRequired(names.clone()),
            Refusal::UnknownProfile(names),
            Refusal::BadConfig(faults.join("\n")),
        ] {
            let response = Status::from(refusal).into_http::<()>();
            let size: usize =
                response.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
            assert!(size < 8 * 1024, "{size}");
        }
    }
}
