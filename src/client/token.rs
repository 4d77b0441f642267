//! A token as a service gets it: checked once, when it arrives.

use std::{fmt, time::SystemTime};

use super::Error;
use crate::{
    pb,
    token::{Generation, MAX_TOKEN_BYTES},
};

/// A valid access token. It never prints.
///
/// The token and its type are visible ASCII without a space: nothing in them can end a header line, begin a second one,
/// or steer a terminal (CVE-2020-5260 and its kin).
#[derive(Clone, PartialEq)]
pub struct Token {
    message: pb::Token,
    obtained_at: SystemTime,
    expires_at: SystemTime,
}

impl Token {
    pub(super) fn check(message: Option<pb::Token>) -> Result<Self, Error> {
        let message = message.ok_or(Error::BadAnswer("the answer holds no token"))?;
        if message.access_token.len() > MAX_TOKEN_BYTES {
            return Err(Error::BadAnswer("the token is longer than 32 KiB"));
        }
        for (text, complaint) in [
            (&message.access_token, "the token is empty or holds a character that is not visible ASCII"),
            (&message.token_type, "the token's type is empty or holds a character that is not visible ASCII"),
            (&message.name, "the token's profile is empty or holds a character that is not visible ASCII"),
        ] {
            if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(Error::BadAnswer(complaint));
            }
        }
        let time =
            |time: Option<prost_types::Timestamp>| time.and_then(|time| SystemTime::try_from(time).ok());
        Ok(Self {
            obtained_at: time(message.obtained_at)
                .ok_or(Error::BadAnswer("the token has no time of grant"))?,
            expires_at: time(message.expires_at).ok_or(Error::BadAnswer("the token has no expiry"))?,
            message,
        })
    }

    /// The profile it belongs to.
    pub fn name(&self) -> &str {
        &self.message.name
    }

    /// The token itself. Keep it out of logs and command lines.
    pub fn access_token(&self) -> &str {
        &self.message.access_token
    }

    /// The value of an `Authorization` header: `Bearer …` (RFC 6750 §2.1).
    pub fn authorization(&self) -> String {
        // The scheme is the type. Its case is free by RFC 9110 §11.1, but not to every server.
        let scheme = match self.message.token_type.as_str() {
            word if word.eq_ignore_ascii_case("bearer") => "Bearer",
            word => word,
        };
        format!("{scheme} {}", self.access_token())
    }

    /// The scopes that were granted.
    pub fn scopes(&self) -> &[String] {
        &self.message.scopes
    }

    /// The audience it was asked for; empty if none was.
    pub fn audience(&self) -> &str {
        &self.message.audience
    }

    /// When the request for it started, by the agent's wall clock.
    pub fn obtained_at(&self) -> SystemTime {
        self.obtained_at
    }

    /// When it expires. The agent stops serving it a little earlier.
    pub fn expires_at(&self) -> SystemTime {
        self.expires_at
    }

    /// Which token this is. Compare for equality only.
    pub fn generation(&self) -> Generation {
        Generation::from_u64(self.message.generation)
    }

    /// As it came over the socket.
    pub fn as_message(&self) -> &pb::Token {
        &self.message
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.message.fmt(f)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A token for tests: profile `bloom`, of one hour.
    pub(crate) fn message(access_token: &str, generation: u64) -> pb::Token {
        let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        pb::Token {
            name: "bloom".to_owned(),
            access_token: access_token.to_owned(),
            token_type: "Bearer".to_owned(),
            scopes: vec!["data-access:all".to_owned()],
            audience: "dev-api".to_owned(),
            obtained_at: time(1_795_352_700),
            expires_at: time(1_795_356_300),
            generation,
        }
    }

    #[test]
    fn a_token_of_visible_ascii_is_taken_as_it_is() {
        let token = Token::check(Some(message("abc.DEF~+/=!\"\\{}", 7))).unwrap();
        assert_eq!(token.access_token(), "abc.DEF~+/=!\"\\{}");
        assert_eq!(token.authorization(), "Bearer abc.DEF~+/=!\"\\{}");
        assert_eq!(token.generation(), Generation::from_u64(7));
        assert_eq!(token.expires_at().duration_since(token.obtained_at()).unwrap().as_secs(), 3600);
    }

    #[test]
    fn a_token_that_could_steer_a_header_or_a_terminal_is_refused() {
        for text in
            ["", " ", "a b", "a\n", "a\r\nX: y", "a\0", "\u{1b}[2J", "a\u{2028}", "a\u{7f}", "é", "\t"]
        {
            let error = Token::check(Some(message(text, 1))).unwrap_err();
            assert!(matches!(error, Error::BadAnswer(_)), "{text:?}: {error}");
        }
        assert!(Token::check(Some(message(&"x".repeat(MAX_TOKEN_BYTES), 1))).is_ok());
        assert!(Token::check(Some(message(&"x".repeat(MAX_TOKEN_BYTES + 1), 1))).is_err());
    }

    #[test]
    fn an_answer_without_what_a_token_has_is_refused() {
        assert!(Token::check(None).is_err());
        assert!(Token::check(Some(pb::Token { expires_at: None, ..message("t", 1) })).is_err());
        assert!(Token::check(Some(pb::Token { obtained_at: None, ..message("t", 1) })).is_err());
        assert!(Token::check(Some(pb::Token { name: "a\nb".to_owned(), ..message("t", 1) })).is_err());
        assert!(
            Token::check(Some(pb::Token { token_type: "Be\r\n".to_owned(), ..message("t", 1) })).is_err()
        );
    }

    #[test]
    fn the_scheme_is_spelled_as_servers_expect_it() {
        let spelled = |word: &str| {
            let message = pb::Token { token_type: word.to_owned(), ..message("t", 1) };
            Token::check(Some(message)).unwrap().authorization()
        };
        assert_eq!(spelled("bearer"), "Bearer t");
        assert_eq!(spelled("BEARER"), "Bearer t");
        assert_eq!(spelled("DPoP"), "DPoP t");
    }

    #[test]
    fn a_token_does_not_print() {
        let token = Token::check(Some(message("canary", 7))).unwrap();
        assert!(!format!("{token:?}").contains("canary"));
    }
}
