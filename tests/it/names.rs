//! Users that come and go on the host while the agent runs.

use std::{ffi::CString, fs, os::unix::ffi::OsStrExt as _, path::Path, thread, time::Duration};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
};
use tonic::Code;

use crate::support::{Agent, BLOOM, Setting, as_caller, profile, skipped_without_root};

const USER: &str = "it-late-caller";
const UID: u32 = 1234;

/// Runs a story where `/etc/passwd` is `passwd`: in a mount namespace of this thread and of those that it starts, so that
/// the host's own file is not touched. Needs root.
fn where_passwd_is(passwd: &Path, story: impl Future<Output = ()> + Send) {
    thread::scope(|scope| {
        let with_own_mounts = || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(Path::new("none"), Path::new("/"), libc::MS_REC | libc::MS_PRIVATE);
            mount(passwd, Path::new("/etc/passwd"), libc::MS_BIND);
            // What looks names up runs on threads of this runtime, which this thread starts.
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(story);
        };
        scope.spawn(with_own_mounts).join().unwrap();
    });
}

#[allow(unsafe_code, reason = "mount(2) has no wrapper among nix's features that we take")]
fn mount(source: &Path, target: &Path, flags: libc::c_ulong) {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
    let (source, target) = (text(source), text(target));
    // SAFETY: C strings that outlive the call, no type and no data.
    let answer =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), std::ptr::null(), flags, std::ptr::null()) };
    Errno::result(answer).unwrap();
}

#[test]
fn a_user_that_is_made_after_the_start_is_known_at_the_next_refusal_ten_seconds_later() {
    if skipped_without_root("a_user_that_is_made_after_the_start_is_known_at_the_next_refusal") {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let before = fs::read_to_string("/etc/passwd").unwrap();
    fs::write(file.path(), &before).unwrap();
    let with_user = format!("{before}{USER}:x:{UID}:{UID}::/nonexistent:/usr/sbin/nologin\n");
    where_passwd_is(file.path(), async {
        let tokens = profile(BLOOM, &format!("allow = ['user:{USER}']"));
        let agent = Agent::start_with(Setting { tokens, ..Setting::default() }).await;
        let unknown = "tokens.bloom.allow[0]: names a user that this host does not know";
        assert!(agent.log().contains(unknown), "{}", agent.log());
        let (operator, caller) = (agent.client().await, as_caller(&agent, UID).await);
        let denied = |status: tonic::Status| assert_eq!(status.code(), Code::PermissionDenied);
        denied(caller.get(BLOOM).await.expect_err("there is no such user"));

        fs::write(file.path(), &with_user).unwrap();
        agent.time.advance(Duration::from_millis(9_999));
        denied(caller.get(BLOOM).await.expect_err("looked up less than 10 s ago"));
        agent.time.advance(Duration::from_millis(1));
        let token = caller.get(BLOOM).await.expect("the name is looked up before the caller is turned away");
        assert_eq!(operator.get(BLOOM).await.unwrap(), token);

        // A user that is gone is noticed at a reload.
        fs::write(file.path(), &before).unwrap();
        let warnings = operator.reload().await.unwrap().warnings;
        assert!(warnings.iter().any(|warning| warning.contains(unknown)), "{warnings:?}");
        denied(caller.get(BLOOM).await.expect_err("gone"));
        assert_eq!(agent.issuer.request_count(), 1);
        agent.stop().await;
    });
}
