//! Between the calls and a stderr or a journal that may be slow, stuck or closed: a bounded queue and one thread that
//! writes.
//!
//! - A push takes a lock for a few instructions and never waits for the writer.
//! - What does not fit is dropped and counted; when there is room again, one line says how many were lost.
//! - The writer's thread outlives every fault of the writer, and nobody ever joins it: it may be stuck in write(2).

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use super::{DroppedLines, Flushed, journal::Journal};

/// Memory that waiting lines may take: some thousands of them.
const MAX_WAITING_BYTES: usize = 1024 * 1024;

/// write_all needs little; the default of 2 MiB would count where all memory is locked.
const STACK_BYTES: usize = 128 * 1024;

/// One event, written out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// For stderr: a line that ends in a newline.
    Line(String),
    /// For the journal: one datagram of its native protocol.
    Entry(Vec<u8>),
}

impl Record {
    /// Its size in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Line(line) => line.len(),
            Self::Entry(entry) => entry.len(),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The queue. The writer's thread lives as long as the process.
#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    /// Something to write.
    filled: Condvar,
    /// Nothing waits and nothing is being written.
    drained: Condvar,
    dropped: DroppedLines,
}

#[derive(Debug, Default)]
struct State {
    records: VecDeque<Record>,
    bytes: usize,
    writing: bool,
    /// Dropped since the last notice.
    lost: u64,
}

impl Queue {
    /// Starts the thread that writes lines to `writer`, one write_all for each, and entries to `journal`, and counts what
    /// is lost in `dropped`.
    pub fn start(
        writer: impl Write + Send + 'static,
        journal: Journal,
        dropped: DroppedLines,
    ) -> io::Result<Arc<Self>> {
        let queue = Arc::new(Self {
            state: Mutex::default(),
            filled: Condvar::new(),
            drained: Condvar::new(),
            dropped,
        });
        let writers = Arc::clone(&queue);
        let thread = thread::Builder::new().name("log".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(move || writers.write_to(writer, journal))?;
        Ok(queue)
    }

    /// Takes a record, or drops it. `notice` makes the one that tells of lost ones.
    pub fn push(&self, record: Record, notice: impl FnOnce(u64) -> Record) {
        let mut state = self.lock();
        if state.bytes + record.len() > MAX_WAITING_BYTES {
            state.lost += 1;
            drop(state);
            self.dropped.add(1);
            return;
        }
        if state.lost > 0 {
            let lost = std::mem::take(&mut state.lost);
            state.take(notice(lost));
        }
        state.take(record);
        drop(state);
        self.filled.notify_one();
    }

    /// Waits until nothing is left, at most `within`.
    pub fn flush(&self, within: Duration) -> Flushed {
        let busy = |state: &mut State| state.writing || !state.records.is_empty();
        let (state, _) = self
            .drained
            .wait_timeout_while(self.lock(), within, busy)
            .unwrap_or_else(PoisonError::into_inner);
        if state.writing || !state.records.is_empty() { Flushed::GaveUp } else { Flushed::All }
    }

    fn write_to(&self, mut writer: impl Write, mut journal: Journal) {
        let mut reached = true;
        loop {
            let written = match self.next() {
                // EPIPE, EBADF, ENOSPC: nobody to tell, and no reason to end.
                Record::Line(line) => writer.write_all(line.as_bytes()).and_then(|()| writer.flush()),
                Record::Entry(entry) => {
                    let sent = journal.send(&entry);
                    if let (Err(error), true) = (&sent, reached) {
                        let notice = journal.unreachable(error);
                        // Who cannot hear that either finds it in the count.
                        let _deaf = writer.write_all(notice.as_bytes()).and_then(|()| writer.flush());
                    }
                    reached = sent.is_ok();
                    sent
                }
            };
            if written.is_err() {
                self.dropped.add(1);
            }
        }
    }

    fn next(&self) -> Record {
        let mut state = self.lock();
        state.writing = false;
        loop {
            if let Some(record) = state.records.pop_front() {
                state.bytes -= record.len();
                state.writing = true;
                return record;
            }
            self.drained.notify_all();
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, record: Record) {
        self.bytes += record.len();
        self.records.push_back(record);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    /// A writer that says when it has been asked to write, and waits for permission.
    struct Gate {
        asked: mpsc::Sender<String>,
        permit: mpsc::Receiver<()>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8_lossy(bytes).into_owned();
            self.asked.send(text).map_err(io::Error::other)?;
            self.permit.recv().map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gate() -> (Gate, mpsc::Receiver<String>, mpsc::Sender<()>) {
        let (asked, was_asked) = mpsc::channel();
        let (permitted, permit) = mpsc::channel();
        (Gate { asked, permit }, was_asked, permitted)
    }

    fn notice(lost: u64) -> Record {
        Record::Line(format!("lost {lost}\n"))
    }

    fn line(text: &str) -> Record {
        Record::Line(text.to_owned())
    }

    /// For tests that send it nothing.
    fn no_journal() -> Journal {
        Journal::at("/nonexistent/journal")
    }

    #[test]
    fn a_stuck_writer_costs_lines_and_never_a_wait() {
        let (gate, asked, permit) = gate();
        let dropped = DroppedLines::default();
        let queue = Queue::start(gate, no_journal(), dropped.clone()).unwrap();
        queue.push(line("first\n"), notice);
        assert_eq!(asked.recv().unwrap(), "first\n");

        let long = "x".repeat(MAX_WAITING_BYTES / 4 - 1) + "\n";
        for _ in 0..7 {
            queue.push(line(&long), notice);
        }
        assert_eq!(dropped.count(), 3);
        assert_eq!(queue.flush(Duration::from_millis(1)), Flushed::GaveUp);

        for _ in 0..5 {
            permit.send(()).unwrap();
        }
        assert_eq!(queue.flush(LONG), Flushed::All);
        assert!(asked.try_iter().all(|written| written == long));

        // The next line brings the notice with it.
        permit.send(()).unwrap();
        permit.send(()).unwrap();
        queue.push(line("last\n"), notice);
        assert_eq!(queue.flush(LONG), Flushed::All);
        assert_eq!(asked.try_iter().collect::<Vec<_>>(), ["lost 3\n", "last\n"]);
        assert_eq!(dropped.count(), 3);
    }

    #[test]
    fn a_writer_that_fails_is_counted_and_asked_again() {
        struct Broken(mpsc::Sender<String>, u32);
        impl Write for Broken {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 += 1;
                if self.1 <= 2 {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                self.0.send(String::from_utf8_lossy(bytes).into_owned()).map_err(io::Error::other)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (sender, written) = mpsc::channel();
        let dropped = DroppedLines::default();
        let queue = Queue::start(Broken(sender, 0), no_journal(), dropped.clone()).unwrap();
        for text in ["a\n", "b\n", "c\n"] {
            queue.push(line(text), notice);
        }
        assert_eq!(queue.flush(LONG), Flushed::All);
        assert_eq!(written.try_iter().collect::<Vec<_>>(), ["c\n"]);
        assert_eq!(dropped.count(), 2);
    }

    #[test]
    fn an_empty_queue_is_flushed_at_once() {
        let queue = Queue::start(io::sink(), no_journal(), DroppedLines::default()).unwrap();
        assert_eq!(queue.flush(LONG), Flushed::All);
    }
}
