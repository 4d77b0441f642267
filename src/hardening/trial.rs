//! Tests that need a process, a user or a kernel of their own: what they do there reaches no other test.
#![expect(
    unsafe_code,
    reason = "raw system calls, because libc's wrappers change every thread of the process"
)]

use std::{
    ffi::CString,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
};

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
        // Past the test runner, which keeps what a passing test prints to itself.
        let _loud =
            std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("SKIPPED: {test} needs root\n"));
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

/// Mounts a `fs_type` on `directory`, lets `make` fill it, makes it read-only and runs `test`: in a mount namespace that
/// only this thread, and those that it starts, are in. Needs root.
pub(crate) fn with_mount(
    directory: &Path,
    fs_type: &str,
    make: impl FnOnce() + Send,
    test: impl FnOnce() + Send,
) {
    let target = CString::new(directory.as_os_str().as_bytes()).unwrap();
    let fs_type = CString::new(fs_type).unwrap();
    on_own_thread(|| {
        let mount = |target: &std::ffi::CStr, flags: libc::c_ulong| {
            // SAFETY: C strings that outlive the call, and no data.
            let result = unsafe {
                libc::mount(c"none".as_ptr(), target.as_ptr(), fs_type.as_ptr(), flags, std::ptr::null())
            };
            Errno::result(result).unwrap();
        };
        // SAFETY: moves this thread only.
        Errno::result(unsafe { libc::unshare(libc::CLONE_NEWNS) }).unwrap();
        mount(c"/", libc::MS_REC | libc::MS_PRIVATE);
        mount(&target, libc::MS_NOSUID | libc::MS_NODEV);
        make();
        mount(&target, libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV);
        test();
    });
}

/// Gives `path` an ACL: `owner` for its owner, `granted` for `user` and as the mask, nothing for anybody else. The form
/// is linux/posix_acl_xattr.h's: a version, then tag, permissions and id of each entry.
pub(crate) fn set_acl(path: &Path, owner: u16, user: u32, granted: u16) {
    const NO_ID: u32 = u32::MAX;
    let entries = [
        (0x01, owner, NO_ID),
        (0x02, granted, user),
        (0x04, 0, NO_ID),
        (0x10, granted, NO_ID),
        (0x20, 0, NO_ID),
    ];
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        acl.extend(u16::to_le_bytes(tag));
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let name = c"system.posix_acl_access";
    // SAFETY: C strings and a buffer that outlive the call.
    Errno::result(unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), acl.as_ptr().cast(), acl.len(), 0) })
        .unwrap();
}

/// What is logged on this thread while the guard lives.
pub(crate) struct Log {
    lines: Arc<Mutex<Vec<u8>>>,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Log {
    pub(crate) fn start() -> Self {
        let lines = Arc::default();
        let writer = Arc::clone(&lines);
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .with_writer(move || Line(Arc::clone(&writer)))
            .finish();
        Self { lines, _guard: tracing::subscriber::set_default(subscriber) }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.lines.lock().unwrap().clone()).unwrap()
    }
}

struct Line(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
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
