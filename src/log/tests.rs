use std::sync::mpsc;

use tracing::dispatcher::with_default;

use super::*;
use crate::clock::{Now, Timestamp, WallTime};

struct At(i64);

impl Clock for At {
    fn now(&self) -> Now {
        Now { boot: Timestamp::default(), wall: WallTime::from_unix_millis(self.0) }
    }
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(At(1_795_356_300_999))
}

fn lines(level: Level, format: Format, events: impl FnOnce()) -> String {
    let (dispatch, captured) = captured(LogConfig { level, format, ..LogConfig::default() }, clock());
    with_default(&dispatch, events);
    captured.text()
}

#[test]
fn a_text_line_says_when_how_bad_who_and_what() {
    let text = lines(Level::INFO, Format::Text, || {
        let absent: Option<&str> = None;
        tracing::info!(
            target: "bloom_agent::x", profile = "bloom", n = 3u64, neg = -1, ok = true, empty = "", absent,
            said = "a \"b\" =c", shown = %"d\ne", debug = ?"f", "the message: {}", "x\u{1b}[2J"
        );
    });
    assert_eq!(
        text,
        "2026-11-22T14:05:00Z INFO bloom_agent::x: the message: x\\u{1b}[2J profile=bloom n=3 neg=-1 ok=true \
         empty=\"\" said=\"a \\\"b\\\" =c\" shown=d\\ne debug=\"\\\"f\\\"\"\n"
    );
}

#[test]
fn a_json_line_is_one_object() {
    let text = lines(Level::INFO, Format::Json, || {
        tracing::warn!(target: "bloom_agent", profile = "bl\noom", n = 3u64, ok = false, "a \"message\"\n");
    });
    assert_eq!(
        text,
        "{\"time\":\"2026-11-22T14:05:00Z\",\"level\":\"WARN\",\"target\":\"bloom_agent\",\
         \"message\":\"a \\\"message\\\"\\n\",\"profile\":\"bl\\noom\",\"n\":3,\"ok\":false}\n"
    );
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["profile"], "bl\noom");
}

#[test]
fn nothing_of_another_crate_passes_at_any_level() {
    let text = lines(Level::TRACE, Format::Text, || {
        tracing::error!(target: "hyper::proto", "canary");
        tracing::error!(target: "h2", "canary");
        tracing::trace!(target: "reqwest::connect", "canary");
        tracing::warn!(target: "rustls", "canary");
        tracing::info!(target: "tonic::transport", "canary");
        tracing::info!(target: "bloom_agent_other", "canary");
        tracing::info!(target: "bloom_agentx::y", "canary");
        tracing::info!(target: "", "canary");
        tracing::trace!(target: "bloom_agent::ours", "passes");
        tracing::trace!(target: "bloom_agent_cli", "passes");
        tracing::trace!("this module's own target passes");
    });
    assert!(!text.contains("canary"), "{text}");
    assert_eq!(text.lines().count(), 3, "{text}");
}

#[test]
fn the_fields_of_a_span_are_not_written() {
    let text = lines(Level::TRACE, Format::Text, || {
        let _span = tracing::info_span!(target: "bloom_agent::x", "canary", canary = "canary").entered();
        tracing::info!(target: "bloom_agent::x", "inside");
    });
    assert_eq!(text, "2026-11-22T14:05:00Z INFO bloom_agent::x: inside\n");
}

#[test]
fn a_level_silences_what_is_below_it_but_never_the_audit() {
    let text = lines(Level::ERROR, Format::Text, || {
        tracing::error!(target: "bloom_agent::x", "one");
        tracing::warn!(target: "bloom_agent::x", "canary");
        tracing::info!(target: AUDIT_TARGET, "two");
    });
    assert!(text.contains("one") && text.contains("two") && !text.contains("canary"), "{text}");
}

/// For tests that send it nothing.
fn no_journal() -> Journal {
    Journal::at("/nonexistent/journal")
}

/// Gives each write to a channel.
struct Channel(mpsc::Sender<String>);

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(String::from_utf8_lossy(bytes).into_owned()).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn level_and_format_change_while_it_runs() {
    let (sender, written) = mpsc::channel();
    let (log, dispatch) = build(LogConfig::default(), clock(), Channel(sender), no_journal()).unwrap();
    let event = || tracing::debug!(target: "bloom_agent::x", "seen");
    with_default(&dispatch, || {
        event();
        log.set(LogConfig { level: Level::DEBUG, format: Format::Json, ..LogConfig::default() });
        event();
        log.set(LogConfig { level: Level::DEBUG, format: Format::Text, ..LogConfig::default() });
        event();
        log.set(LogConfig::default());
        event();
    });
    assert_eq!(log.flush(Duration::from_secs(30)), Flushed::All);
    let written: Vec<_> = written.try_iter().collect();
    assert_eq!(written.len(), 2, "{written:?}");
    assert!(written[0].starts_with('{') && written[1].starts_with("2026"), "{written:?}");
}

#[test]
fn every_config_survives_the_switch() {
    for level in [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE] {
        for format in [Format::Text, Format::Json, Format::Journal] {
            for audit in [AuditLines::Always, AuditLines::ByLevel] {
                let config = LogConfig { level, format, audit };
                assert_eq!(Switch::new(config).get(), config);
            }
        }
    }
}

#[test]
fn dropping_the_log_writes_what_is_left() {
    let (sender, written) = mpsc::channel();
    let (log, dispatch) = build(LogConfig::default(), clock(), Channel(sender), no_journal()).unwrap();
    with_default(&dispatch, || {
        for n in 0..100 {
            tracing::info!(target: "bloom_agent::x", n, "line");
        }
    });
    drop(log);
    assert_eq!(written.try_iter().count(), 100);
}

#[test]
fn a_panic_is_reported_by_its_place_and_counted() {
    let panics = Panics::default();
    let text = lines(Level::ERROR, Format::Text, || {
        report_panic(&panics, Some(panic::Location::caller()));
        report_panic(&panics, None);
    });
    assert_eq!(panics.count(), 2);
    assert!(text.contains("place=src/log/tests.rs:"), "{text}");
    assert!(text.contains("place=\"an unknown place\""), "{text}");
}

#[test]
fn a_full_pipe_is_waited_for_even_if_it_is_non_blocking() {
    let (read, write) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let mut full = 0;
    while let Ok(written) = nix::unistd::write(&write, &[b'x'; 4096]) {
        full += written;
    }
    let writer = std::thread::spawn(move || Unbuffered(write).write_all(&[b'y'; 100_000]));
    let mut seen = 0;
    let mut buffer = [0; 4096];
    while seen < full + 100_000 {
        match nix::unistd::read(&read, &mut buffer) {
            Ok(bytes) => seen += bytes,
            Err(Errno::EAGAIN) => {
                poll(&mut [PollFd::new(read.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
            }
            Err(errno) => panic!("{errno}"),
        }
    }
    writer.join().unwrap().unwrap();
    assert_eq!(seen, full + 100_000);
}

#[test]
fn a_pipe_without_a_reader_costs_lines_and_nothing_else() {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    drop(read);
    let (log, dispatch) = build(LogConfig::default(), clock(), Unbuffered(write), no_journal()).unwrap();
    with_default(&dispatch, || {
        for _ in 0..3 {
            tracing::info!(target: "bloom_agent::x", "lost");
        }
    });
    assert_eq!(log.flush(Duration::from_secs(30)), Flushed::All);
    assert_eq!(log.dropped().count(), 3);
}

#[test]
fn a_writer_that_never_returns_does_not_keep_a_flush_from_ending() {
    struct Stuck(mpsc::Receiver<()>);
    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            // Until the test is over.
            let _over = self.0.recv();
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (over, waits) = mpsc::channel();
    let (log, dispatch) = build(LogConfig::default(), clock(), Stuck(waits), no_journal()).unwrap();
    with_default(&dispatch, || tracing::info!(target: "bloom_agent::x", "stuck"));
    assert_eq!(log.flush(Duration::from_millis(10)), Flushed::GaveUp);
    drop(over);
    assert_eq!(log.flush(Duration::from_secs(30)), Flushed::All);
}

/// Reads one entry of a journal of the test's own.
fn entry(journal: &std::os::unix::net::UnixDatagram) -> String {
    let mut buffer = vec![0; 256 * 1024];
    let length = journal.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

#[test]
fn lines_become_entries_and_entries_lines_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listening = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let (sender, written) = mpsc::channel();
    let (log, dispatch) = build(LogConfig::default(), clock(), Channel(sender), Journal::at(&path)).unwrap();
    with_default(&dispatch, || {
        for (n, format) in
            [Format::Text, Format::Journal, Format::Json, Format::Journal].into_iter().enumerate()
        {
            log.set(LogConfig { format, ..LogConfig::default() });
            tracing::info!(target: "bloom_agent::x", n, "seen");
        }
    });
    for n in [1, 3] {
        let entry = entry(&listening);
        assert!(entry.contains(&format!("\nMESSAGE=seen n={n}\n")), "{entry}");
    }
    assert_eq!(log.flush(Duration::from_secs(30)), Flushed::All);
    let lines: Vec<_> = written.try_iter().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].ends_with(" INFO bloom_agent::x: seen n=0\n"), "{lines:?}");
    assert!(lines[1].ends_with("\"message\":\"seen\",\"n\":2}\n"), "{lines:?}");
    assert_eq!(log.dropped().count(), 0);
}

#[test]
fn an_absent_journal_costs_entries_is_told_once_on_stderr_and_is_found_when_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let (sender, written) = mpsc::channel();
    let config = LogConfig { format: Format::Journal, ..LogConfig::default() };
    let (log, dispatch) = build(config, clock(), Channel(sender), Journal::at(&path)).unwrap();
    let event = |n: u64| with_default(&dispatch, || tracing::info!(target: "bloom_agent::x", n, "seen"));
    for outage in 1..=2 {
        for n in 0..3 {
            event(n);
        }
        assert_eq!(log.flush(Duration::from_secs(30)), Flushed::All);
        assert_eq!(log.dropped().count(), outage * 3);
        let told: Vec<_> = written.try_iter().collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("bloom-agent: the log is lost: "), "{told:?}");

        let listening = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        event(7);
        assert!(entry(&listening).ends_with("BLOOM_N=7\n"));
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_journal_that_does_not_read_never_makes_a_call_wait() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listening = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let config = LogConfig { format: Format::Journal, ..LogConfig::default() };
    let (log, dispatch) = build(config, clock(), io::sink(), Journal::at(&path)).unwrap();
    let long = "x".repeat(4096);
    let sent = 2000;
    with_default(&dispatch, || {
        for n in 0..sent {
            tracing::info!(target: "bloom_agent::x", n, long, "seen");
        }
    });
    assert_eq!(log.flush(Duration::from_millis(1)), Flushed::GaveUp);
    let dropped = log.dropped().count();
    assert!(dropped > 0 && dropped < sent, "{dropped}");
    for _ in 0..sent - dropped {
        entry(&listening);
    }
    assert_eq!(log.flush(Duration::from_secs(30)), Flushed::All);
    // The next one brings the notice with it.
    with_default(&dispatch, || tracing::info!(target: "bloom_agent::x", "last"));
    let notice = entry(&listening);
    assert!(notice.ends_with(&format!("BLOOM_LINES={dropped}\n")), "{notice}");
    assert!(entry(&listening).contains("MESSAGE=last\n"));
    assert_eq!(log.dropped().count(), dropped);
}
