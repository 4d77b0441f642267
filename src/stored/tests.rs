use ::bytes::Bytes;
use aws_lc_rs::digest::{SHA256, digest};
use proptest::{option, prelude::*};

use super::*;

const NOW: Timestamp = Timestamp::from_boot(Duration::from_secs(1_000_000));
const BOOT: BootId = BootId([7; 16]);

fn parse(bytes: &[u8]) -> Result<Record, Unusable> {
    Record::parse(bytes, &BOOT, NOW, Bytes::copy_from_slice)
}

fn ago(seconds: u64) -> Now {
    let boot = NOW - Duration::from_secs(seconds);
    Now { boot, wall: WallTime::from_unix_millis(1_700_000_000_000 - 1000 * seconds as i64) }
}

fn profile(name: &str) -> ProfileName {
    ProfileName::parse(name).unwrap()
}

fn token(value: &[u8]) -> StoredToken {
    StoredToken {
        access_token: AccessToken::parse(Bytes::copy_from_slice(value)).unwrap(),
        scopes: ["data-access:all", "a"].map(|scope| Scope::parse(scope).unwrap()).into(),
    }
}

/// A record with something in every field.
fn full() -> Record {
    let generation = Generation::from_u64(1_700_000_000_000);
    let life = Life { requested: ago(60), length: Duration::from_secs(86_400), source: LifeSource::Provider };
    Record {
        name: RecordName { profile: profile("bloom"), number: 1_700_000_000_001 },
        boot: BOOT,
        identity: Digest([1; 32]),
        settings: Mark { key: [2; 16], tag: [3, 4] },
        secret: Some(Mark { key: [5; 16], tag: [6, 7] }),
        standing: Standing {
            generation: Some(generation),
            held: Some(Held { generation, life, draw: Draw::restored(-0.25).unwrap(), reported: true }),
            granted: Some((ago(60).boot, life.length)),
            failing: Some(Failing {
                backoff: Backoff::restored([1, 2, 3], Some(NOW + Duration::from_secs(600))),
                count: 6,
                last: Schedule::Refusal,
                retry: NOW + Duration::from_secs(900),
            }),
            budget: Budget::restored(Some((ago(10).boot, Duration::from_secs(120)))),
            last_stepped: Some(ago(30).boot),
            last_mended: Some(ago(20).boot),
        },
        token: Some(token(b"eyJ.canary.token==")),
        failure: Some((
            Failure {
                kind: FailureKind::Refused,
                schedule: Schedule::Refusal,
                retry_after: Some(Duration::from_secs(600)),
                code: Some("invalid_client"),
                text: "the provider says invalid_client".into(),
            },
            ago(5),
        )),
    }
}

fn empty() -> Record {
    let standing = Standing::default();
    Record { secret: None, standing, token: None, failure: None, ..full() }
}

/// The bytes with a checksum that fits them again.
fn summed(body: &[u8]) -> Vec<u8> {
    [body, digest(&SHA256, body).as_ref()].concat()
}

#[test]
fn a_record_comes_back_as_it_was() {
    for record in [full(), empty()] {
        assert_eq!(parse(&record.encode().unwrap()), Ok(record));
    }
}

#[test]
fn what_is_cut_changed_or_followed_by_more_is_refused() {
    for record in [full(), empty()] {
        let bytes = record.encode().unwrap();
        for length in 0..bytes.len() {
            assert!(parse(&bytes[..length]).is_err(), "cut to {length}");
            assert!(
                parse(&summed(&bytes[..length.saturating_sub(CHECKSUM)])).is_err() || length == bytes.len()
            );
        }
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&changed).is_err(), "bit {bit}");
        }
        assert_eq!(parse(&[&bytes[..], b"\0"].concat()), Err(Unusable::Damaged));
        let followed = summed(&[&bytes[..bytes.len() - CHECKSUM], b"\0"].concat());
        assert_eq!(parse(&followed), Err(Unusable::Value("something at its end")));
    }
}

#[test]
fn another_version_another_boot_and_too_much_are_told_apart() {
    let bytes = full().encode().unwrap();
    let mut newer = bytes.to_vec();
    newer[7] = 2;
    assert_eq!(parse(&newer), Err(Unusable::Form));
    let other = Record { boot: BootId([8; 16]), ..full() };
    assert_eq!(parse(&other.encode().unwrap()), Err(Unusable::OtherBoot));
    assert_eq!(parse(&vec![b'b'; MAX_RECORD + 1]), Err(Unusable::TooLarge));
    let long =
        StoredToken { scopes: vec![Scope::parse(&"s".repeat(40_000)).unwrap()], ..token(&[b't'; 32 * 1024]) };
    assert_eq!(Record { token: Some(long), ..full() }.encode(), Err(TooLarge));
}

#[test]
fn a_state_that_no_machine_can_be_in_is_refused() {
    type Change = fn(&mut Record);
    let cases: [(&str, Change); 16] = [
        ("requested in the future", |r| {
            r.standing.held.as_mut().unwrap().life.requested.boot = NOW + Duration::from_nanos(1);
        }),
        ("a life longer than is believed", |r| {
            r.standing.held.as_mut().unwrap().life.length = crate::token::MAX_LIFE + Duration::from_secs(1);
        }),
        ("a generation above the last", |r| r.standing.generation = Some(Generation::from_u64(1))),
        ("a token of no generation", |r| r.standing.generation = None),
        ("a token that nothing is known of", |r| r.standing.held = None),
        ("no token where one is held", |r| r.token = None),
        ("granted in the future", |r| {
            r.standing.granted = Some((NOW + Duration::from_secs(1), Duration::ZERO));
        }),
        ("no failure counted", |r| r.standing.failing.as_mut().unwrap().count = 0),
        ("a failure of nothing that fails", |r| r.standing.failing = None),
        ("a next attempt in a month", |r| {
            r.standing.failing.as_mut().unwrap().retry = NOW + Duration::from_secs(31 * 86_400);
        }),
        ("a silence of a day", |r| {
            r.standing.failing.as_mut().unwrap().backoff =
                Backoff::restored([0; 3], Some(NOW + Duration::from_secs(86_400)));
        }),
        ("a gap of a day", |r| {
            r.standing.budget = Budget::restored(Some((NOW, Duration::from_secs(86_400))));
        }),
        ("stepped in the future", |r| r.standing.last_stepped = Some(NOW + Duration::from_secs(1))),
        ("mended far in the future", |r| r.standing.last_mended = Some(NOW + Duration::from_secs(86_400))),
        ("failed in the future", |r| r.failure.as_mut().unwrap().1.boot = NOW + Duration::from_secs(1)),
        ("a line break in the log", |r| r.failure.as_mut().unwrap().0.text = "a\nb".into()),
    ];
    for (name, change) in cases {
        let mut record = full();
        change(&mut record);
        assert!(matches!(parse(&record.encode().unwrap()), Err(Unusable::Value(_))), "{name}");
    }
}

#[test]
fn a_long_text_is_cut_and_whole_characters_stay() {
    let mut record = full();
    record.failure.as_mut().unwrap().0.text = "é".repeat(MAX_TEXT).into();
    let read = parse(&record.encode().unwrap()).unwrap();
    assert_eq!(read.failure.unwrap().0.text.as_ref(), "é".repeat(MAX_TEXT / 2));
}

#[test]
fn no_token_is_in_what_prints() {
    let printed = format!("{:?} {:?}", full(), full().token);
    assert!(!printed.contains("canary"), "{printed}");
}

#[test]
fn a_name_is_written_in_one_way() {
    let name = RecordName { profile: profile("a-b"), number: 17 };
    assert_eq!(name.to_string(), "token.a-b.17");
    assert_eq!(RecordName::parse("token.a-b.17"), Some(name));
    for text in [
        "",
        "token.",
        "token.a",
        "token.a.",
        "token.a.x",
        "token.a.01",
        "token.a.+1",
        "token..1",
        "token.A.1",
        "token.a.1.2",
        "tokens.a.1",
        "token.a.18446744073709551616",
    ] {
        assert_eq!(RecordName::parse(text), None, "{text}");
    }
}

#[test]
fn a_boot_id_is_read_as_systemd_and_as_the_kernel_write_it() {
    let expected = BootId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef_u128.to_be_bytes());
    for text in ["0123456789abcdef0123456789abcdef", "01234567-89ab-cdef-0123-456789abcdef\n"] {
        assert_eq!(BootId::parse(text), Ok(expected), "{text}");
    }
    for text in [
        "",
        "%b",
        "0123456789abcdef0123456789abcde",
        "+123456789abcdef0123456789abcdef",
        "0123456789abcdef0123456789abcdeg",
    ] {
        assert_eq!(BootId::parse(text), Err(NotABootId), "{text}");
    }
}

#[test]
fn a_mark_tells_a_change_of_either_text() {
    let mark = Mark::of([9; 16], &[Some(b"first"), None]);
    assert!(mark.fits(&[Some(b"first"), None]));
    let others: [&[Option<&[u8]>]; 6] = [
        &[Some(b"other"), None],
        &[None, None],
        &[None, Some(b"first")],
        &[Some(b"first"), Some(b"")],
        &[Some(b"firs"), Some(b"t")],
        &[Some(b"first\0"), None],
    ];
    for other in others {
        assert!(!mark.fits(other), "{other:?}");
    }
    let keyed = (0..4_u8).map(|key| Mark::of([key; 16], &[Some(b"first")]).tag);
    assert_eq!(keyed.collect::<std::collections::BTreeSet<_>>().len(), 4, "the tag hangs on the key");
}

/// Any two of these configs, one way and the other.
#[test]
fn two_clients_have_one_digest_exactly_if_their_profiles_have_one_identity() {
    use crate::config::{self, Kind, SourceFile};
    let lines = [
        "",
        "scopes = ['a', 'b']",
        "scopes = ['b', 'a']",
        "scopes = ['ab']",
        "scopes = ['a']\nresource = ['https://b']",
        "resource = ['https://a', 'https://b']",
        "resource = ['https://b', 'https://a']",
        "audience = 'a'",
        "audience = 'b'",
        "auth_method = 'client_secret_basic'",
        "body = 'json'",
        "extra = { a = 'b' }",
        "extra = { a = 'c' }",
        "extra = { ab = 'c', d = 'e' }",
        "extra = { d = 'e', ab = 'c' }",
        "allow = ['uid:1']\nrefresh = { at = 0.5 }\nassumed_lifetime = '5m'\nrequire_scope = true\nscopes = ['a', 'b']",
    ];
    let profiles: Vec<_> = lines
        .iter()
        .map(|lines| format!("provider = 'oauth2'\ntoken_url = 'https://id.example/token'\nclient_id = 'c'\nclient_secret.file = '/s'\n{lines}"))
        .chain(["provider = 'oauth2'\ntoken_url = 'https://id.example/other'\nclient_id = 'c'\nclient_secret.file = '/s'", "provider = 'oauth2'\ntoken_url = 'https://id.example/token'\nclient_id = 'd'\nclient_secret.file = '/t'"].map(str::to_owned))
        .map(|lines| {
            let text = format!("[tokens.a]\n{lines}\n");
            let source = SourceFile { name: "config.toml".into(), text, kind: Kind::Main };
            config::read(&[source]).unwrap().tokens.into_values().next().unwrap()
        })
        .collect();
    for one in &profiles {
        for other in &profiles {
            assert_eq!(
                identity(&one.client) == identity(&other.client),
                one.same_identity(other),
                "{:?} {:?}",
                one.client,
                other.client
            );
        }
    }
}

prop_compose! {
    fn any_past()(nanos in 0..=NOW.since_boot().as_nanos() as u64) -> Timestamp {
        Timestamp::from_boot(Duration::from_nanos(nanos))
    }
}

prop_compose! {
    fn any_moment()(boot in any_past(), wall in any::<i64>()) -> Now {
        Now { boot, wall: WallTime::from_unix_millis(wall) }
    }
}

prop_compose! {
    fn any_soon()(nanos in 0..=(NOW.since_boot() + Duration::from_secs(3_600)).as_nanos() as u64) -> Timestamp {
        Timestamp::from_boot(Duration::from_nanos(nanos))
    }
}

fn any_schedule() -> impl Strategy<Value = Schedule> {
    prop_oneof![Just(Schedule::Transient), Just(Schedule::RateLimited), Just(Schedule::Refusal)]
}

fn any_kind() -> impl Strategy<Value = FailureKind> {
    use FailureKind::{ProviderError, Refused, SecretUnreadable, Unreachable};
    prop_oneof![Just(Unreachable), Just(ProviderError), Just(Refused), Just(SecretUnreadable)]
}

prop_compose! {
    fn any_held()(generation in any::<u64>(), requested in any_moment(), length in 0..=2_592_000_u64,
        assumed in any::<bool>(), place in -1.0..=1.0_f64, reported in any::<bool>()) -> Held {
        let source = if assumed { LifeSource::Assumed } else { LifeSource::Provider };
        let life = Life { requested, length: Duration::from_secs(length), source };
        Held { generation: Generation::from_u64(generation), life, draw: Draw::restored(place).unwrap(), reported }
    }
}

prop_compose! {
    fn any_failing()(counts in any::<[u32; 3]>(), not_before in option::of(any_soon()), count in 1..=u32::MAX,
        last in any_schedule(), retry in any_soon()) -> Failing {
        Failing { backoff: Backoff::restored(counts, not_before), count, last, retry }
    }
}

prop_compose! {
    fn any_record()(name in "[a-z][a-z0-9-]{0,62}", number in any::<u64>(), identity in any::<[u8; 32]>(),
        settings in any::<([u8; 16], [u8; 2])>(), secret in option::of(any::<([u8; 16], [u8; 2])>()),
        held in option::of(any_held()), generation in option::of(any::<u64>()),
        granted in option::of((any_past(), 0..=2_592_000_u64)), failing in option::of(any_failing()))
        (budget in option::of((any_soon(), 60..=3_600_u64)), last_stepped in option::of(any_past()),
        last_mended in option::of(any_soon()), value in "[A-Za-z0-9._~+/-]{1,300}={0,2}",
        scopes in proptest::collection::vec("[!#-\\[\\]-~]{1,20}", 0..5),
        text in "[ -~]{0,300}", kind in any_kind(), schedule in any_schedule(), at in any_moment(),
        retry_after in option::of(0..=3_600_u64), failed in any::<bool>(),
        code in option::of(prop::sample::select(&crate::failure::KNOWN_CODES[..])),
        name in Just(name), number in Just(number), identity in Just(identity), settings in Just(settings),
        secret in Just(secret), held in Just(held), generation in Just(generation), granted in Just(granted),
        failing in Just(failing)) -> Record {
        let mark = |(key, tag)| Mark { key, tag };
        let seconds = Duration::from_secs;
        let last = generation.map(Generation::from_u64).max(held.map(|held: Held| held.generation));
        let failure = Failure { kind, schedule, retry_after: retry_after.map(seconds), code, text: text.into() };
        Record {
            name: RecordName { profile: profile(&name), number },
            boot: BOOT,
            identity: Digest(identity),
            settings: mark(settings),
            secret: secret.map(mark),
            standing: Standing {
                generation: last,
                held,
                granted: granted.map(|(at, length)| (at, seconds(length))),
                failing,
                budget: Budget::restored(budget.map(|(at, gap)| (at, seconds(gap)))),
                last_stepped,
                last_mended,
            },
            token: held.map(|_| StoredToken {
                access_token: AccessToken::parse(Bytes::from(value)).unwrap(),
                scopes: scopes.iter().map(|scope| Scope::parse(scope).unwrap()).collect(),
            }),
            failure: failing.filter(|_| failed).map(|_| (failure, at)),
        }
    }
}

proptest! {
    #[test]
    fn every_record_comes_back(record in any_record()) {
        prop_assert_eq!(parse(&record.encode().unwrap()), Ok(record));
    }

    #[test]
    fn no_bytes_are_more_than_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(parse(&bytes).is_err());
        // Past the magic, the checksum and the boot, where the lengths are.
        let body = [&MAGIC[..], &BOOT.0, &bytes].concat();
        if let Ok(record) = parse(&summed(&body)) {
            prop_assert_eq!(record.encode().unwrap().to_vec(), summed(&body));
        }
    }

    #[test]
    fn a_changed_value_is_refused_or_is_what_it_says(record in any_record(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = record.encode().unwrap().to_vec();
        bytes.truncate(bytes.len() - CHECKSUM);
        let at = at.index(bytes.len());
        bytes[at] = to;
        let bytes = summed(&bytes);
        if let Ok(read) = parse(&bytes) {
            prop_assert_eq!(read.encode().unwrap().to_vec(), bytes);
        }
    }
}
