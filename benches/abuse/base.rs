//! What the kernel says of the daemon's process, and when it is back where it was.

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use nix::unistd::Pid;

/// The daemon's process.
pub(crate) struct Process(pub(crate) Pid);

impl Process {
    fn read(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.0)).unwrap()
    }

    fn status(&self, key: &str) -> u64 {
        let status = self.read("status");
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        1024 * line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.status("VmRSS")
    }

    /// The most that was resident since [`Self::forget_peak`].
    pub(crate) fn peak(&self) -> u64 {
        self.status("VmHWM")
    }

    /// proc_pid_clear_refs(5): 5 resets the peak.
    pub(crate) fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.0), "5").unwrap();
    }

    /// Processor time of all threads: the first number of schedstat, in nanoseconds.
    pub(crate) fn time(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0)).unwrap();
        let of_one = |task: std::io::Result<fs::DirEntry>| -> u64 {
            // A thread may end meanwhile.
            let text = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
            text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0)
        };
        Duration::from_nanos(tasks.map(of_one).sum())
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0)).unwrap().count()
    }
}

/// The base line.
pub(crate) struct Base {
    pub(crate) memory: u64,
    descriptors: usize,
}

/// What an allocator may keep.
const KEPT: u64 = 4 << 20;

impl Base {
    pub(crate) fn of(process: &Process) -> Self {
        Self { memory: process.memory(), descriptors: process.descriptors() }
    }

    /// Waits until descriptors are what they were, memory is, but for what an allocator keeps, and the processor is left
    /// alone; at most a minute. How long that took.
    pub(crate) fn wait_for(&self, process: &Process) -> Duration {
        let began = Instant::now();
        loop {
            let elapsed = began.elapsed();
            let before = process.time();
            sleep(Duration::from_millis(100));
            let idle = process.time() - before < Duration::from_millis(5);
            let free = process.descriptors() <= self.descriptors;
            if idle && free && process.memory() <= self.memory + KEPT || elapsed > Duration::from_secs(60) {
                return elapsed;
            }
        }
    }
}
