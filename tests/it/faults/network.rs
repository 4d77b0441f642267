//! Faults of the way: addresses, TCP, names, and time.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use super::{
    names::{NOBODY, Names, OTHER, SERVER, SIX},
    row::{Case, Expect, Fails, Fault, Made, Row, TAKEN, broken_off, case, no_tls, row, unreached},
    script::{Answer, Certificate, Move, Tls, answered, request_then},
    server::Plan,
    story::{Method, World},
};
use crate::support::BLOOM;

const SECOND: Duration = Duration::from_secs(1);
/// The head of an answer whose body never comes whole.
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n";

fn named(what: &str, names: Names, expect: Expect) -> Case {
    Case { what: what.to_owned(), fault: Fault { names, ..Fault::default() }, expect }
}

fn silent(what: &str, names: Vec<IpAddr>, black_holes: &[(IpAddr, Duration)], expect: Expect) -> Case {
    let fault = Fault { names: Names::Are(names), black_holes: black_holes.to_vec(), moves: None };
    Case { what: what.to_owned(), fault, expect }
}

fn bytes(bytes: &[u8]) -> Move {
    Move::Bytes(bytes.to_vec())
}

fn sent(what: &str, then: Vec<Move>, fails: Fails) -> Case {
    case(what, request_then(then), fails.expected())
}

pub(crate) fn rows() -> Vec<Row> {
    let nobody = |n| IpAddr::from(Ipv4Addr::new(127, 0, 1, n));
    vec![
        row(
            "connection refused",
            "nobody listens on its port",
            vec![named("refused", Names::Are(vec![NOBODY.into()]), unreached("refused").expected())],
        ),
        row(
            "black hole",
            "drops every SYN, as a firewall does",
            vec![silent(
                "one address",
                vec![NOBODY.into()],
                &[(NOBODY.into(), 10 * SECOND)],
                unreached("time-out").expected(),
            )],
        ),
        row(
            "reset after the connection",
            "resets the connection before TLS is done",
            vec![
                case("at once", vec![Move::Reset], no_tls("connection").expected()),
                case("after the ClientHello", vec![Move::Hear, Move::Reset], no_tls("connection").expected()),
            ],
        ),
        row(
            "reset in the headers",
            "resets the connection before or inside of the headers",
            vec![
                sent("before them", vec![Move::Reset], broken_off("connection")),
                sent(
                    "inside",
                    vec![bytes(b"HTTP/1.1 200 OK\r\ncont"), Move::Reset],
                    broken_off("connection"),
                ),
            ],
        ),
        row(
            "reset in the body",
            "resets the connection inside of the body",
            vec![sent("inside", vec![bytes(HEAD), bytes(b"{\"access_"), Move::Reset], broken_off(""))],
        ),
        row(
            "end in the body",
            "ends the connection, or its own half of it, before the answer is whole",
            vec![
                sent(
                    "in the body, FIN alone",
                    vec![bytes(HEAD), bytes(b"{\"access_"), Move::Fin],
                    broken_off(""),
                ),
                sent(
                    "in the body, with a close_notify",
                    vec![bytes(HEAD), bytes(b"{\"access_")],
                    broken_off(""),
                ),
                sent("in the headers", vec![bytes(b"HTTP/1.1 200 OK\r\ncont"), Move::Fin], broken_off("")),
                sent("before the headers", vec![Move::Fin], broken_off("")),
                case("in the handshake", vec![Move::Hear, Move::Fin], no_tls("").expected()),
                sent(
                    "after a body that only the end delimits, and FIN alone, which anybody can forge",
                    vec![Move::Answer(Answer::good().framed(super::script::Framing::Close)), Move::Fin],
                    broken_off(""),
                ),
            ],
        ),
        row(
            "slow body",
            "sends the body at one byte a second",
            vec![sent(
                "1 B/s",
                vec![bytes(HEAD), Move::Drip(vec![b' '; 99], SECOND)],
                broken_off("time-out"),
            )],
        ),
        row(
            "slow headers",
            "sends the headers at one byte a second",
            vec![sent("1 B/s", vec![Move::Drip(HEAD.to_vec(), SECOND)], broken_off("time-out"))],
        ),
        row(
            "stall",
            "says nothing any more: after the request, in the headers, after them, in the body",
            vec![
                sent("after the request", vec![Move::Stall], broken_off("time-out")),
                sent("in the headers", vec![bytes(b"HTTP/1.1 200"), Move::Stall], broken_off("time-out")),
                sent("after the headers", vec![bytes(HEAD), Move::Stall], broken_off("time-out")),
                sent("in the body", vec![bytes(HEAD), bytes(b"{\"a"), Move::Stall], broken_off("time-out")),
            ],
        ),
        row(
            "latency",
            "answers after 5 s; after 9.99 s; after 10 s, which is one deadline too late",
            vec![
                case("5 s", late(5_000), TAKEN),
                case("9.99 s", late(9_990), TAKEN),
                case("10 s", late(10_000), broken_off("time-out").expected()),
            ],
        ),
        row(
            "jitter",
            "takes any time from 0 to 10 s, before the handshake and before the answer",
            [(0, 100), (400, 8_000), (2_500, 2_500), (6_000, 3_900), (7_900, 10), (3_333, 6_666)]
                .into_iter()
                .map(|(before, after)| {
                    let pause = |by| Move::Pause(Duration::from_millis(by));
                    let moves = [
                        pause(before),
                        Move::Handshake(Tls::Usual, Certificate::Good),
                        Move::Request,
                        pause(after),
                        Move::Answer(Answer::good()),
                    ];
                    case(format!("{before} ms and {after} ms"), moves.to_vec(), TAKEN)
                })
                .collect(),
        ),
        row(
            "bandwidth",
            "sends 1 KiB a second, the handshake too; or 100 bytes a second, which is not enough",
            vec![
                case("1 KiB/s", paced(1024), TAKEN),
                case("100 B/s", paced(100), no_tls("time-out").expected()),
            ],
        ),
        Row {
            name: "answers in another order",
            server: "answers the second of two profiles first",
            made: Made::Story { agent: "gives each profile its own token", tell: || Box::pin(other_order()) },
        },
        Row {
            name: "answer to a previous request",
            server: "sends another answer after the answer, on a connection that it keeps open",
            made: Made::Story {
                agent: "takes the first, hangs up, and makes the next request on a new connection",
                tell: || Box::pin(previous_answer()),
            },
        },
        Row {
            name: "idle connection dropped",
            server: "offers to keep the connection, and would never say a word on it again",
            made: Made::Story {
                agent: "keeps no connection between two refreshes: there is none to be dropped",
                tell: || Box::pin(idle_connection()),
            },
        },
        row(
            "name unknown",
            "its name is not known, or the resolver fails, or knows no address",
            vec![
                named(
                    "NXDOMAIN",
                    Names::Fails("Name or service not known"),
                    unreached("Name or service not known").expected(),
                ),
                named(
                    "SERVFAIL",
                    Names::Fails("Temporary failure in name resolution"),
                    unreached("Temporary failure").expected(),
                ),
                named("no address", Names::Are(Vec::new()), unreached("no address").expected()),
            ],
        ),
        Row {
            name: "slow resolver",
            server: "its name is found after 5 s; after 11 s",
            made: Made::Story {
                agent: "takes the token; PROVIDER_UNREACHABLE, no request",
                tell: || Box::pin(slow_resolver()),
            },
        },
        Row {
            name: "changing address",
            server: "moves to another address; its name says so from then on",
            made: Made::Story {
                agent: "looks the name up for each exchange, and goes where it leads",
                tell: || Box::pin(changing_address()),
            },
        },
        row(
            "many addresses",
            "has 100 addresses, and listens on the last; three of four are black holes",
            vec![
                named("99 refuse", Names::Are((1..100).map(nobody).chain([SERVER.into()]).collect()), TAKEN),
                silent(
                    "3 are silent",
                    vec![nobody(1), nobody(2), nobody(3), SERVER.into()],
                    &[1, 2, 3].map(|n| (nobody(n), 2 * SECOND)),
                    TAKEN,
                ),
            ],
        ),
        row(
            "IPv6 black hole",
            "has an IPv6 address that nothing comes through to, and an IPv4 address",
            vec![silent(
                "IPv4 begins after 300 ms",
                vec![SIX, SERVER.into()],
                &[(SIX, Duration::from_millis(300))],
                TAKEN,
            )],
        ),
        Row {
            name: "MTU black hole",
            server: "its small packets come through and its large ones do not",
            made: Made::Not(
                "packets would have to be dropped by their size between the two ends, and the loopback drops none; \
                 the agent meets it as a handshake that stalls",
            ),
        },
    ]
}

fn late(millis: u64) -> Vec<Move> {
    request_then([Move::Pause(Duration::from_millis(millis)), Move::Answer(Answer::good())])
}

fn paced(bytes: usize) -> Vec<Move> {
    let handshake = Move::Handshake(Tls::Usual, Certificate::Good);
    vec![Move::Pace(bytes, SECOND), handshake, Move::Request, Move::Answer(Answer::good())]
}

async fn other_order() {
    const OTHERS: &str = "others";
    let mut world =
        World::before_the_first("answers in another order", Method::Post, &[BLOOM, OTHERS], "").await;
    // Whoever comes first is answered second: after a second, which goes by once both are there.
    world.server.set(Plan::InTurn(vec![late(1_000), answered(Answer::good())]));
    world.settle_of(OTHERS).await;
    world.settle_of(BLOOM).await;
    let minted = world.server.minted();
    let tokens = [world.get().await, world.client.get(OTHERS).await.unwrap()];
    assert_eq!((minted.len(), world.server.accepted()), (2, 2));
    assert!(tokens.iter().all(|token| world.is_given(token)));
    assert_ne!(tokens[0].access_token, tokens[1].access_token, "two profiles never share one");
    assert_eq!((tokens[0].name.as_str(), tokens[1].name.as_str()), (BLOOM, OTHERS));
    world.end().await;
}

async fn previous_answer() {
    let mut world = World::start("an answer to a previous request").await;
    let twice = request_then([Move::Answer(Answer::good()), Move::Answer(Answer::good())]);
    world.server.set(Plan::Each(twice));
    let accepted = world.server.accepted();
    for turn in 1..=3 {
        world.attempt().await;
        assert_eq!(world.server.accepted(), accepted + turn, "a connection of its own");
        // Of each two tokens that were sent, the first.
        let minted = world.server.minted();
        assert_eq!(world.get().await.access_token, minted[minted.len() - 2]);
    }
    world.end().await;
}

async fn idle_connection() {
    let mut world = World::start("an idle connection").await;
    let kept = Answer::good().with("connection", "keep-alive").with("keep-alive", "timeout=86400");
    world.server.set(Plan::Each(request_then([Move::Answer(kept), Move::Linger])));
    let accepted = world.server.accepted();
    for turn in 1..=3 {
        // `attempt` waits until nobody is connected any more: it is the agent that hangs up.
        let after = world.attempt().await;
        assert!(after.last_failure.is_none());
        assert_eq!(world.server.accepted(), accepted + turn);
    }
    world.end().await;
}

async fn slow_resolver() {
    let mut world = World::start("a slow resolver").await;
    let first = world.get().await;
    world.resolver.set(Names::After(5 * SECOND));
    let after = world.attempt().await;
    assert!(after.last_failure.is_none(), "{after:?}");
    let second = world.get().await;
    assert!(second.generation > first.generation);

    world.resolver.set(Names::After(11 * SECOND));
    let (accepted, asked) = (world.server.accepted(), world.resolver.asked());
    let before = world.agent.attempts(BLOOM);
    let after = world.attempt().await;
    let (failure, _) = &**after.last_failure.as_ref().unwrap();
    assert!(failure.text.contains("time-out: the resolver did not answer"), "{}", failure.text);
    assert_eq!((after.requests, world.server.accepted()), (before.requests, accepted));
    assert_eq!(world.resolver.asked(), asked + 1);
    assert_eq!(world.get().await, second);
    world.resolver.set(Names::Server);
    let after = world.attempt().await;
    assert!(after.last_failure.is_none(), "{after:?}");
    world.end().await;
}

async fn changing_address() {
    let mut world = World::start("a changing address").await;
    for address in [OTHER, SERVER, OTHER] {
        world.resolver.set(Names::Are(vec![address.into()]));
        let asked = world.resolver.asked();
        world.attempt().await;
        assert_eq!(world.resolver.asked(), asked + 1, "nothing is remembered of a name");
        assert_eq!(world.server.last_address(), IpAddr::from(address));
    }
    // The old address is gone before the name says so: one failure, and then the new one.
    world.resolver.set(Names::Are(vec![NOBODY.into()]));
    let after = world.attempt().await;
    assert_eq!(after.consecutive_failures, 1);
    world.resolver.set(Names::Are(vec![OTHER.into()]));
    let after = world.attempt().await;
    assert_eq!(after.consecutive_failures, 0);
    world.end().await;
}
