//! A token as callers get it: one gRPC message, framed once per rotation and shared by every answer.
//!
//! GetToken's answer and WatchToken's message are the same bytes on the wire (field 1 is the token), and each is whole in one
//! frame: a byte that says that nothing is compressed, the length, the message (gRPC over HTTP/2, "Length-Prefixed-Message").
//! The access token is a part of them: where the frame lies in locked pages, there is no other copy.

use bytes::Bytes;
use prost::Message as _;
use zeroize::Zeroizing;

use crate::{
    clock::WallTime,
    pb,
    token::{AccessToken, Reply, Scope, Token},
};

/// The head of a frame, in bytes: whether it is compressed, and its length.
pub const HEAD: usize = 5;

/// A token as a message: one of the two places where it leaves the agent's own types.
pub fn message(token: &Token) -> pb::Token {
    pb::Token {
        name: token.name.as_str().to_owned(),
        access_token: token.access_token.expose_secret().to_owned(),
        token_type: "Bearer".to_owned(),
        scopes: texts(&token.scopes),
        audience: token.audience.as_deref().unwrap_or_default().to_owned(),
        obtained_at: Some(timestamp(token.life.requested.wall)),
        expires_at: Some(timestamp(token.life.expires_wall())),
        generation: token.generation.as_u64(),
    }
}

/// The frame of a token: the shared one, or one of its own for a token that has none yet.
pub fn of(token: &Token) -> Bytes {
    if token.reply.is_made() {
        return token.reply.expose_secret();
    }
    framed(token.clone(), Bytes::copy_from_slice).reply.expose_secret()
}

/// The token with its frame, which `hold` puts into memory that is fit for it; its access token lies in there from then on.
pub fn framed(token: Token, hold: impl FnOnce(&[u8]) -> Bytes) -> Token {
    let message = pb::GetTokenResponse { token: Some(message(&token)) };
    let length = message.encoded_len();
    let mut frame = Zeroizing::new(Vec::with_capacity(HEAD + length));
    frame.push(0);
    // A token is at most 32 KiB, and what it comes with is not much more.
    frame.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    // A Vec has room for everything.
    let _always_fits = message.encode(&mut *frame);
    let reply = hold(&frame);
    let wanted = token.access_token.expose_secret().as_bytes();
    let at = reply.windows(wanted.len()).position(|window| window == wanted);
    let inside = at.and_then(|at| AccessToken::parse(reply.slice(at..at + wanted.len())).ok());
    Token {
        access_token: inside.unwrap_or_else(|| token.access_token.clone()),
        reply: Reply::new(reply),
        ..token
    }
}

/// Scopes as they are sent.
pub fn texts(scopes: &[Scope]) -> Vec<String> {
    scopes.iter().map(|scope| scope.as_str().to_owned()).collect()
}

/// A moment as it is sent, to the millisecond.
pub fn timestamp(time: WallTime) -> prost_types::Timestamp {
    let millis = time.unix_millis();
    let nanos = i32::try_from(millis.rem_euclid(1000)).unwrap_or(0) * 1_000_000;
    prost_types::Timestamp { seconds: millis.div_euclid(1000), nanos }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        clock::Now,
        token::{Generation, Life, LifeSource, ProfileName},
    };

    fn token(name: &str, access_token: &str) -> Token {
        Token {
            name: ProfileName::parse(name).unwrap(),
            generation: Generation::from_u64(7),
            access_token: AccessToken::parse(Bytes::copy_from_slice(access_token.as_bytes())).unwrap(),
            scopes: vec![Scope::parse("a").unwrap(), Scope::parse("b").unwrap()],
            audience: Some("https://api.example".into()),
            life: Life {
                requested: Now::default(),
                length: Duration::from_secs(60),
                source: LifeSource::Provider,
            },
            reply: Reply::default(),
        }
    }

    #[test]
    fn the_frame_is_the_message_of_both_methods() {
        for access_token in ["t", "bloom", &"x".repeat(32 * 1024)] {
            let plain = token("bloom", access_token);
            let framed = framed(plain.clone(), Bytes::copy_from_slice);
            assert_eq!(of(&plain), of(&framed));
            let mut body = framed.reply.expose_secret();
            let head = body.split_to(HEAD);
            assert_eq!(head[0], 0);
            assert_eq!(u32::from_be_bytes(head[1..].try_into().unwrap()) as usize, body.len());
            let answer = pb::GetTokenResponse::decode(body.clone()).unwrap();
            assert_eq!(answer.token, Some(message(&plain)));
            assert_eq!(pb::WatchTokenResponse::decode(body).unwrap().token, answer.token);
            assert_eq!(message(&framed), message(&plain));
        }
    }

    #[test]
    fn the_access_token_lies_in_its_frame_and_nowhere_else() {
        let framed = framed(token("bloom", "a-token"), Bytes::copy_from_slice);
        let frame = framed.reply.expose_secret().as_ptr_range();
        let inside = framed.access_token.expose_secret().as_bytes().as_ptr_range();
        assert!(frame.start <= inside.start && inside.end <= frame.end);
    }
}
