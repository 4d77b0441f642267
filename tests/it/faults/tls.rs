//! Faults of the handshake, and of certificates.

use std::time::Duration;

use super::{
    row::{Row, TAKEN, broken_off, case, no_tls, row},
    script::{Answer, Certificate, Move, Tls, shaken},
};

/// An alert record: level, description.
fn alert(version: [u8; 2], level: u8, description: u8) -> Vec<u8> {
    vec![0x15, version[0], version[1], 0, 2, level, description]
}

/// A ServerHello of an old version: a record with a handshake message that chooses `version` and a cipher of its time
/// (TLS_RSA_WITH_AES_128_CBC_SHA), without extensions.
fn old_hello(version: [u8; 2]) -> Vec<u8> {
    let mut body = version.to_vec();
    body.extend([0x5a; 32]);
    body.extend([0, 0x00, 0x2f, 0]);
    let mut record = vec![0x16, version[0], version[1], 0, body.len() as u8 + 4, 2, 0, 0, body.len() as u8];
    record.extend(body);
    record
}

fn heard(bytes: impl Into<Vec<u8>>) -> Vec<Move> {
    vec![Move::Hear, Move::Bytes(bytes.into())]
}

pub(crate) fn rows() -> Vec<Row> {
    let good = |tls| shaken(tls, Certificate::Good);
    let shown = |certificate| shaken(Tls::Usual, certificate);
    vec![
        row(
            "expired certificate",
            "shows a certificate that expired in 2001",
            vec![case("expired", shown(Certificate::Expired), no_tls("has expired").expected())],
        ),
        row(
            "certificate not yet valid",
            "shows a certificate that will be valid in the year 4000",
            vec![case("not yet", shown(Certificate::NotYetValid), no_tls("not valid yet").expected())],
        ),
        row(
            "certificate of another host",
            "shows a certificate of another name, of names alike, or with its name in the subject alone",
            vec![
                case("another name", shown(Certificate::OtherHost), no_tls("another name").expected()),
                case("names alike", shown(Certificate::OtherSubdomain), no_tls("another name").expected()),
                case(
                    "subject alone",
                    shown(Certificate::NameInSubjectOnly),
                    no_tls("another name").expected(),
                ),
            ],
        ),
        row(
            "unknown authority",
            "shows a certificate of an authority that is not in ca_file, or of nobody's word but its own",
            vec![
                case(
                    "a stranger's",
                    shown(Certificate::OfAStranger),
                    no_tls("not issued by a CA").expected(),
                ),
                case("self-signed", shown(Certificate::SelfSigned), no_tls("not issued by a CA").expected()),
            ],
        ),
        row(
            "old TLS",
            "speaks nothing newer than TLS 1.1: chooses it, or says so by an alert",
            vec![
                case("TLS 1.1 chosen", heard(old_hello([3, 2])), no_tls("neither TLS 1.2 nor").expected()),
                case("TLS 1.0 chosen", heard(old_hello([3, 1])), no_tls("neither TLS 1.2 nor").expected()),
                case("SSL 3.0 chosen", heard(old_hello([3, 0])), no_tls("neither TLS 1.2 nor").expected()),
                case("refused by TLS 1.1", heard(alert([3, 2], 2, 70)), no_tls("ProtocolVersion").expected()),
                case("refused by TLS 1.0", heard(alert([3, 1], 2, 70)), no_tls("ProtocolVersion").expected()),
            ],
        ),
        row(
            "TLS of today",
            "speaks TLS 1.2 alone; TLS 1.3 alone; no ALPN",
            vec![
                case("1.2", good(Tls::Only12), TAKEN),
                case("1.3", good(Tls::Only13), TAKEN),
                case("no ALPN", good(Tls::NoProtocol), TAKEN),
            ],
        ),
        row(
            "no TLS",
            "speaks something else on the port: HTTP, SSH, zeros",
            vec![
                case(
                    "HTTP",
                    heard(*b"HTTP/1.1 400 Bad Request\r\n\r\n"),
                    no_tls("does not speak TLS").expected(),
                ),
                case("SSH", heard(*b"SSH-2.0-OpenSSH_9.9\r\n"), no_tls("does not speak TLS").expected()),
                case("zeros", heard([0; 64]), no_tls("does not speak TLS").expected()),
            ],
        ),
        row(
            "no common protocol",
            "agrees by ALPN to speak what the agent does not",
            vec![case("spdy", good(Tls::OtherProtocol), no_tls("NoApplicationProtocol").expected())],
        ),
        row(
            "handshake stall",
            "says nothing; nothing after the ClientHello; half a record; one byte a second",
            vec![
                case("nothing", vec![Move::Stall], no_tls("time-out").expected()),
                case("after the ClientHello", vec![Move::Hear, Move::Stall], no_tls("time-out").expected()),
                case(
                    "half a record",
                    vec![Move::Hear, Move::Bytes(vec![0x16, 3, 3, 0x10]), Move::Stall],
                    no_tls("time-out").expected(),
                ),
                case(
                    "a byte a second",
                    [vec![Move::Pace(1, Duration::from_secs(1))], good(Tls::Usual)].concat(),
                    no_tls("time-out").expected(),
                ),
            ],
        ),
        row(
            "alert storm",
            "answers the ClientHello with 10,000 warnings, or with a fatal alert of each kind",
            std::iter::once(case(
                "warnings",
                heard(alert([3, 3], 1, 112).repeat(10_000)),
                no_tls("").expected(),
            ))
            .chain([10, 20, 40, 47, 48, 50, 51, 71, 80, 86, 90, 112, 120].into_iter().map(|kind| {
                case(
                    format!("fatal {kind}"),
                    heard(alert([3, 3], 2, kind)),
                    no_tls("refused the handshake").expected(),
                )
            }))
            .collect(),
        ),
        row(
            "certificate rotated",
            "shows another certificate on each connection: of the same authority; of another one",
            vec![
                case("the same authority", shown(Certificate::Another), TAKEN),
                case("another authority", shown(Certificate::OfAStranger), no_tls("not issued").expected()),
            ],
        ),
        row(
            "client certificate demanded",
            "demands a certificate of the client: over TLS 1.2, before anything is sent; over TLS 1.3, after it",
            vec![
                case("TLS 1.2", good(Tls::DemandsCertificate12), no_tls("refused the handshake").expected()),
                case(
                    "TLS 1.3",
                    good(Tls::DemandsCertificate),
                    broken_off("CertificateRequired").unheard().expected(),
                ),
            ],
        ),
        row(
            "garbage tickets",
            "sends 8 session tickets of 2 kB that mean nothing; one over TLS 1.2; 32 of 16 kB, which is too much of it",
            vec![
                case("TLS 1.3", good(Tls::GarbageTickets), TAKEN),
                case("a flood of them", good(Tls::TicketFlood), broken_off("").expected()),
                case(
                    "TLS 1.2",
                    vec![
                        Move::Handshake(Tls::GarbageTickets12, Certificate::Good),
                        Move::Request,
                        Move::Answer(Answer::good()),
                    ],
                    TAKEN,
                ),
            ],
        ),
    ]
}
