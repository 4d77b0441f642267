//! What the kernel knows of a process, and where it may run.

use std::fs;

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// Keeps the calling thread on one CPU.
pub(crate) fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &set).unwrap();
}

/// A launcher that keeps a program on one CPU.
pub(crate) fn on(cpu: &'static str) -> Vec<&'static str> {
    vec!["taskset", "-c", cpu]
}

/// A field of `/proc/PID/status` or of a file like it, in kB or as a count.
fn field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

/// Resident memory, in kB.
pub(crate) fn rss(pid: u32) -> f64 {
    field(&format!("/proc/{pid}/status"), "VmRSS") as f64
}

/// Resident memory that is anonymous: what the program made, without what it is.
pub(crate) fn anonymous(pid: u32) -> f64 {
    field(&format!("/proc/{pid}/status"), "RssAnon") as f64
}

/// Resident memory with what is shared divided among those that share it, in kB.
pub(crate) fn pss(pid: u32) -> f64 {
    field(&format!("/proc/{pid}/smaps_rollup"), "Pss") as f64
}

fn threads(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    entries.map(|entry| entry.unwrap().path().display().to_string()).collect()
}

/// How often its threads have gone to sleep: each was woken as often.
pub(crate) fn sleeps(pid: u32) -> u64 {
    threads(pid).iter().map(|task| field(&format!("{task}/status"), "voluntary_ctxt_switches")).sum()
}

/// CPU time of all its threads, in microseconds, by the scheduler's own count.
pub(crate) fn cpu_us(pid: u32) -> f64 {
    let threads = threads(pid);
    let nanos = threads.iter().map(|task| {
        let text = fs::read_to_string(format!("{task}/schedstat")).unwrap();
        text.split_whitespace().next().unwrap().parse::<f64>().unwrap()
    });
    nanos.sum::<f64>() / 1000.0
}
