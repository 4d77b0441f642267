//! The one table from an error to an exit code, for both programs: sysexits(3), as far as it has a word for it.

use std::process::ExitCode;

use crate::client;

/// How a program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done. A reader of ours that went away is no failure.
    Done = 0,
    /// EX_USAGE: the command line, or a profile that does not exist.
    Usage = 64,
    /// EX_UNAVAILABLE: the agent is not reachable; of `check --connect`, a step that failed.
    Unreachable = 69,
    /// EX_SOFTWARE: a defect of ours, or an answer that makes no sense.
    Internal = 70,
    /// EX_OSERR: the system refuses (bind, lock, write).
    System = 71,
    /// EX_TEMPFAIL: no token right now; later there may be one.
    TryLater = 75,
    /// EX_NOPERM: not allowed, by the agent or by the socket's mode.
    NotAllowed = 77,
    /// EX_CONFIG: the configuration has faults.
    Config = 78,
}

impl Exit {
    /// The code.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl From<&client::Error> for Exit {
    fn from(error: &client::Error) -> Self {
        use client::Error;
        match error {
            Error::NotRunning { .. } => Self::Unreachable,
            Error::NotAllowed { .. } => Self::NotAllowed,
            Error::UnknownProfile { .. } | Error::NameRequired { .. } | Error::InvalidRequest { .. } => {
                Self::Usage
            }
            Error::Unavailable { .. } | Error::Limit { .. } => Self::TryLater,
            Error::ConfigFaults { .. } => Self::Config,
            Error::Internal { .. } | Error::BadAnswer(_) => Self::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Error, Reason, Wall};

    #[test]
    fn every_error_has_the_code_that_scripts_rely_on() {
        let text = String::new;
        let table = [
            (Error::NotRunning { sockets: vec![], source: std::io::ErrorKind::NotFound.into() }, 69),
            (Error::NotAllowed { wall: Wall::Agent, text: text() }, 77),
            (Error::NotAllowed { wall: Wall::Socket("/a".into()), text: text() }, 77),
            (Error::UnknownProfile { profiles: vec![], text: text() }, 64),
            (Error::NameRequired { profiles: vec![], text: text() }, 64),
            (Error::InvalidRequest { lines: vec![] }, 64),
            (Error::Unavailable { reason: Reason::TokenPending, retry_after: None, text: text() }, 75),
            (Error::Limit { retry_after: None, text: text() }, 75),
            (Error::ConfigFaults { faults: vec![] }, 78),
            (Error::Internal { text: text() }, 70),
            (Error::BadAnswer("x"), 70),
        ];
        for (error, code) in table {
            assert_eq!(Exit::from(&error).code(), code, "{error}");
        }
        assert_eq!(Exit::System.code(), 71);
        assert_eq!(Exit::Done.code(), 0);
    }
}
