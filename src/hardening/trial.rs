//! Tests that need a process, a user or a kernel of their own: what they do there reaches no other test.
#![expect(
    unsafe_code,
    reason = "raw system calls, because libc's wrappers change every thread of the process"
)]

use std::process::Command;

use nix::{errno::Errno, unistd::geteuid};

/// Whose files a test may use for "somebody else".
pub(crate) const STRANGER: u32 = 1234;
/// The agent's own uid in tests that are not about root.
pub(crate) const AGENT: u32 = 4242;
const NOBODY: u32 = 65_534;
const MARK: &str = "BLOOM_AGENT_TRIAL";

/// Runs `body` in a process of its own: this test binary again, with the test that is called `name` alone.
pub(crate) fn in_own_process(name: &str, body: impl FnOnce()) {
    if std::env::var_os(MARK).is_some_and(|mark| mark == name) {
        return body();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(MARK, name)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    // The harness exits 0 when the name fits no test.
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Whether the test may change users; says so if it may not.
pub(crate) fn is_root(test: &str) -> bool {
    let root = geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: {test} needs root");
    }
    root
}

/// Runs `body` as another user, on a thread that ends with it. Needs root.
pub(crate) fn as_user<T: Send>(uid: u32, body: impl FnOnce() -> T + Send) -> T {
    on_own_thread(|| {
        // SAFETY: plain system calls; the raw ones change this thread only.
        unsafe {
            for result in [
                libc::syscall(libc::SYS_setgroups, 0, 0),
                libc::syscall(libc::SYS_setresgid, uid, uid, uid),
                libc::syscall(libc::SYS_setresuid, uid, uid, uid),
            ] {
                Errno::result(result).unwrap();
            }
        }
        body()
    })
}

/// Runs `body` without root's capabilities: as nobody if we are root, else as we are.
pub(crate) fn as_nobody<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    if geteuid().is_root() { as_user(NOBODY, body) } else { body() }
}

/// Runs `body` on a kernel that refuses the system call `number` with `errno`: a seccomp filter of this thread.
pub(crate) fn without_call<T: Send>(number: i64, errno: Errno, body: impl FnOnce() -> T + Send) -> T {
    on_own_thread(|| {
        let number = u32::try_from(number).unwrap();
        // offsetof(struct seccomp_data, nr) is 0.
        let filter = [
            statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
            statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number, 1),
            statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32, 0),
            statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
        ];
        let program = libc::sock_fprog { len: 4, filter: filter.as_ptr().cast_mut() };
        // SAFETY: `program` and `filter` outlive the calls, which copy them; both concern this thread only.
        unsafe {
            if !geteuid().is_root() {
                Errno::result(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)).unwrap();
            }
            Errno::result(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program))
                .unwrap();
        }
        body()
    })
}

fn statement(code: u32, k: u32, skip_unless: u8) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).unwrap(), jt: 0, jf: skip_unless, k }
}

/// A thread that is joined; its panic is the test's.
pub(crate) fn on_own_thread<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(body).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
