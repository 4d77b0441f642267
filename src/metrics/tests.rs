use super::*;

fn metrics() -> Arc<Metrics> {
    Metrics::new("1.2.3", DroppedLines::default(), Panics::default())
}

fn name(text: &str) -> ProfileName {
    ProfileName::parse(text).unwrap()
}

#[test]
fn the_whole_text_is_as_documented() {
    let (dropped, panics) = (DroppedLines::default(), Panics::default());
    let metrics = Metrics::new("1.2.3", dropped.clone(), panics.clone());
    metrics.set_profiles(&[name("partner"), name("bloom")]);
    metrics.call(Method::GetToken, Code::Ok);
    metrics.call(Method::GetToken, Code::Ok);
    metrics.call(Method::GetToken, Code::PermissionDenied);
    metrics.call(Method::Unknown, Code::Unimplemented);
    metrics.denied(Verb::Get);
    metrics.degrade("mlock");
    metrics.degrade("pidfd");
    metrics.restore("pidfd");
    let bloom = metrics.profile(&name("bloom"));
    bloom.attempt(Ok(()), 2);
    bloom.attempt(Err(FailureKind::SecretUnreadable), 0);
    bloom.token_expires(Some(WallTime::from_unix_millis(1_795_356_300_999)));
    bloom.deviation("expires_in_string");
    dropped.add(3);
    panics.add();
    metrics.serving(Serving { connections: 1, watches: 1, refused: 2, cut: 3 });
    assert_eq!(metrics.text(), include_str!("expected.txt"));
}

#[test]
fn a_profile_that_is_gone_vanishes_and_one_that_stays_keeps_its_numbers() {
    let metrics = metrics();
    metrics.set_profiles(&[name("bloom"), name("partner")]);
    metrics.profile(&name("bloom")).attempt(Ok(()), 1);
    let gone = metrics.profile(&name("partner"));
    metrics.set_profiles(&[name("bloom"), name("blooma")]);
    gone.attempt(Ok(()), 1);
    let text = metrics.text();
    assert!(!text.contains("partner"), "{text}");
    assert!(text.contains("bloom_agent_token_requests_total{profile=\"bloom\"} 1\n"), "{text}");
    assert!(text.contains("bloom_agent_token_requests_total{profile=\"blooma\"} 0\n"), "{text}");
}

#[test]
fn every_method_and_code_has_its_own_cell() {
    let metrics = metrics();
    for (index, (method, name, _)) in Method::ALL.iter().enumerate() {
        assert_eq!(*method as usize, index, "{name}");
        for code in 0..17 {
            metrics.call(*method, Code::from_i32(code));
        }
    }
    let text = metrics.text();
    let calls = text.lines().filter(|line| line.starts_with("bloom_agent_calls_total{"));
    assert_eq!(calls.clone().count(), Method::ALL.len() * CODES.len());
    assert!(calls.clone().all(|line| line.ends_with(" 1")), "{text}");
    // The names are the specification's: those of tonic's enum, in another spelling.
    for (code, name) in CODES.iter().enumerate() {
        let camel = format!("{:?}", Code::from_i32(i32::try_from(code).unwrap()));
        assert_eq!(camel.to_uppercase(), name.replace('_', ""), "{code}");
    }
}

#[test]
fn a_withdrawn_token_has_no_expiry() {
    let metrics = metrics();
    metrics.set_profiles(&[name("bloom")]);
    let bloom = metrics.profile(&name("bloom"));
    bloom.token_expires(Some(WallTime::from_unix_millis(5_000)));
    bloom.token_expires(None);
    let line = "bloom_agent_token_expiry_timestamp_seconds{profile=\"bloom\"} 0\n";
    assert!(metrics.text().contains(line));
}

/// The types that node_exporter's parser (prometheus/common/expfmt) knows.
#[test]
fn every_type_is_one_of_the_prometheus_text_format() {
    let metrics = metrics();
    metrics.set_profiles(&[name("bloom")]);
    let text = metrics.text();
    for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
        assert!(line.ends_with(" counter") || line.ends_with(" gauge"), "{line}");
    }
    assert!(text.ends_with("\n# EOF\n"));
}
