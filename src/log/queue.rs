//! Between the calls and a stderr that may be slow, stuck or closed: a bounded queue and one thread that writes.
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

use super::{DroppedLines, Flushed};

/// Memory that waiting lines may take: some thousands of them.
const MAX_WAITING_BYTES: usize = 1024 * 1024;

/// write_all needs little; the default of 2 MiB would count where all memory is locked.
const STACK_BYTES: usize = 128 * 1024;

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
    lines: VecDeque<String>,
    bytes: usize,
    writing: bool,
    /// Dropped since the last notice.
    lost: u64,
}

impl Queue {
    /// Starts the thread that writes to `writer`, one write_all per line, and counts what is lost in `dropped`.
    pub fn start(writer: impl Write + Send + 'static, dropped: DroppedLines) -> io::Result<Arc<Self>> {
        let queue = Arc::new(Self {
            state: Mutex::default(),
            filled: Condvar::new(),
            drained: Condvar::new(),
            dropped,
        });
        let writers = Arc::clone(&queue);
        let thread = thread::Builder::new().name("log".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(move || writers.write_to(writer))?;
        Ok(queue)
    }

    /// Takes a line that ends in a newline, or drops it. `notice` makes the line that tells of lost ones.
    pub fn push(&self, line: String, notice: impl FnOnce(u64) -> String) {
        let mut state = self.lock();
        if state.bytes + line.len() > MAX_WAITING_BYTES {
            state.lost += 1;
            drop(state);
            self.dropped.add(1);
            return;
        }
        if state.lost > 0 {
            let lost = std::mem::take(&mut state.lost);
            state.take(notice(lost));
        }
        state.take(line);
        drop(state);
        self.filled.notify_one();
    }

    /// Waits until nothing is left, at most `within`.
    pub fn flush(&self, within: Duration) -> Flushed {
        let busy = |state: &mut State| state.writing || !state.lines.is_empty();
        let (state, _) = self
            .drained
            .wait_timeout_while(self.lock(), within, busy)
            .unwrap_or_else(PoisonError::into_inner);
        if state.writing || !state.lines.is_empty() { Flushed::GaveUp } else { Flushed::All }
    }

    fn write_to(&self, mut writer: impl Write) {
        loop {
            let line = self.next();
            // EPIPE, EBADF, ENOSPC: nobody to tell, and no reason to end.
            if writer.write_all(line.as_bytes()).and_then(|()| writer.flush()).is_err() {
                self.dropped.add(1);
            }
        }
    }

    fn next(&self) -> String {
        let mut state = self.lock();
        state.writing = false;
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.bytes -= line.len();
                state.writing = true;
                return line;
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
    fn take(&mut self, line: String) {
        self.bytes += line.len();
        self.lines.push_back(line);
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

    fn notice(lost: u64) -> String {
        format!("lost {lost}\n")
    }

    #[test]
    fn a_stuck_writer_costs_lines_and_never_a_wait() {
        let (gate, asked, permit) = gate();
        let dropped = DroppedLines::default();
        let queue = Queue::start(gate, dropped.clone()).unwrap();
        queue.push("first\n".to_owned(), notice);
        assert_eq!(asked.recv().unwrap(), "first\n");

        let line = "x".repeat(MAX_WAITING_BYTES / 4 - 1) + "\n";
        for _ in 0..7 {
            queue.push(line.clone(), notice);
        }
        assert_eq!(dropped.count(), 3);
        assert_eq!(queue.flush(Duration::from_millis(1)), Flushed::GaveUp);

        for _ in 0..5 {
            permit.send(()).unwrap();
        }
        assert_eq!(queue.flush(LONG), Flushed::All);
        assert!(asked.try_iter().all(|written| written == line));

        // The next line brings the notice with it.
        permit.send(()).unwrap();
        permit.send(()).unwrap();
        queue.push("last\n".to_owned(), notice);
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
        let queue = Queue::start(Broken(sender, 0), dropped.clone()).unwrap();
        for line in ["a\n", "b\n", "c\n"] {
            queue.push(line.to_owned(), notice);
        }
        assert_eq!(queue.flush(LONG), Flushed::All);
        assert_eq!(written.try_iter().collect::<Vec<_>>(), ["c\n"]);
        assert_eq!(dropped.count(), 2);
    }

    #[test]
    fn an_empty_queue_is_flushed_at_once() {
        let queue = Queue::start(io::sink(), DroppedLines::default()).unwrap();
        assert_eq!(queue.flush(LONG), Flushed::All);
    }
}
