//! The list, and the filter in the kernel's terms: classic BPF over `struct seccomp_data` (linux/seccomp.h).

use nix::{
    errno::Errno,
    libc::{self, c_int, c_long, sock_filter},
};

macro_rules! calls {
    ($($name:ident)*) => { [$((stringify!($name), libc::$name)),*] };
}

/// What an agent that serves never does, whatever library it is linked with or loads.
pub(in crate::wall) const DENIED: &[&[(&str, c_long)]] = &[
    // Another program.
    &calls![SYS_execve SYS_execveat],
    // Another process's memory and descriptors. (Landlock denies ptrace(2) of what is outside it, and signals to it.)
    &calls![SYS_ptrace SYS_process_vm_readv SYS_process_vm_writev SYS_process_madvise SYS_process_mrelease SYS_pidfd_getfd SYS_kcmp],
    // Another user.
    &calls![
        SYS_setuid SYS_setgid SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid SYS_setgroups SYS_setfsuid
        SYS_setfsgid SYS_capset
    ],
    // Another world: namespaces (clone(2) is below), mounts, roots, and files by handles instead of paths.
    &calls![
        SYS_setns SYS_unshare SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_fsopen SYS_fsconfig SYS_fsmount
        SYS_fspick SYS_move_mount SYS_open_tree SYS_mount_setattr SYS_open_by_handle_at SYS_personality
    ],
    // The attributes of files, which Landlock does not know. (Opening with O_TRUNC is Landlock's.)
    &calls![
        SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_setxattr SYS_lsetxattr SYS_fsetxattr SYS_removexattr
        SYS_lremovexattr SYS_fremovexattr SYS_utimensat SYS_truncate
    ],
    // Parts of the kernel that an attacker likes for their faults, or that are for whoever runs the host.
    &calls![
        SYS_bpf SYS_perf_event_open SYS_userfaultfd SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register
        SYS_fanotify_init SYS_add_key SYS_request_key SYS_keyctl
    ],
    &calls![
        SYS_kexec_load SYS_kexec_file_load SYS_init_module SYS_finit_module SYS_delete_module SYS_reboot SYS_swapon
        SYS_swapoff SYS_acct SYS_quotactl SYS_quotactl_fd SYS_syslog SYS_settimeofday SYS_clock_settime
        SYS_clock_adjtime SYS_adjtimex SYS_sethostname SYS_setdomainname SYS_vhangup
    ],
    // A second door: the sockets that are served listen already. (Landlock knows bind(2) only.)
    &calls![SYS_listen],
    // Younger than libc's list; one number on every architecture.
    &[
        ("fchmodat2", 452),
        ("setxattrat", 463),
        ("removexattrat", 466),
        ("open_tree_attr", 467),
        ("file_setattr", 469),
    ],
    #[cfg(target_arch = "x86_64")]
    &calls![
        SYS_chmod SYS_chown SYS_lchown SYS_utime SYS_utimes SYS_futimesat SYS_iopl SYS_ioperm SYS_modify_ldt
    ],
];

/// linux/audit.h: the ELF machine, 64 bits, little endian.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
/// x32 has x86-64's architecture and numbers with this bit (asm/unistd.h).
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const DENY: u32 = libc::SECCOMP_RET_ERRNO | Errno::EPERM as u32;
/// As before Linux 5.3: whoever called it tries clone(2), whose flags a filter can see.
const NO_SUCH_CALL: u32 = libc::SECCOMP_RET_ERRNO | Errno::ENOSYS as u32;

const NEW_NAMESPACE: c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// The filter. The kernel finds out once which numbers pass whatever their arguments, and does not run it for those
/// (Linux 5.11); the others, some of which are made for every answer, are looked for first.
pub(super) fn program() -> Vec<sock_filter> {
    let mut program = vec![load(ARCHITECTURE_AT)];
    program.extend(one_of([ARCHITECTURE]));
    program.push(load(NUMBER_AT));
    #[cfg(target_arch = "x86_64")]
    program.extend([jump(libc::BPF_JGE, X32, 0, 1), end(DENY)]);
    program.extend(of_call(libc::SYS_clone3, &[end(NO_SUCH_CALL)]));
    program.extend(of_call(libc::SYS_clone, &without_bits(0, NEW_NAMESPACE)));
    // TCP Fast Open connects without connect(2), where Landlock looks.
    program.extend(of_call(libc::SYS_sendto, &without_bits(3, libc::MSG_FASTOPEN)));
    program.extend(of_call(libc::SYS_sendmsg, &without_bits(2, libc::MSG_FASTOPEN)));
    program.extend(of_call(libc::SYS_sendmmsg, &without_bits(3, libc::MSG_FASTOPEN)));
    program.extend(of_call(libc::SYS_socket, &sockets()));
    // What is typed into the terminal that the agent was started from is run by its shell.
    program.extend(of_call(
        libc::SYS_ioctl,
        &[
            load(argument(1)),
            jump(libc::BPF_JEQ, word(libc::TIOCSTI as c_int), 1, 0),
            jump(libc::BPF_JEQ, word(libc::TIOCLINUX as c_int), 0, 1),
            end(DENY),
            end(ALLOW),
        ],
    ));
    for (_, number) in DENIED.iter().copied().flatten() {
        program.extend(of_call(*number, &[end(DENY)]));
    }
    program.push(end(ALLOW));
    program
}

/// What names and token endpoints are reached by: TCP as such and UDP, on which Landlock's word is to hold (MPTCP, SCTP
/// and SMC reach TCP's ports past it); sockets of the host; and the routes, by which getaddrinfo(3) sorts addresses.
fn sockets() -> Vec<sock_filter> {
    let family = |family: c_int| jump(libc::BPF_JEQ, word(family), 0, 1);
    let mut block = vec![load(argument(0)), family(libc::AF_UNIX), end(ALLOW)];
    let mut routes = vec![load(argument(2))];
    routes.extend(one_of([word(libc::NETLINK_ROUTE)]));
    routes.push(end(ALLOW));
    block.extend(past(word(libc::AF_NETLINK), &routes));
    block.extend(one_of([libc::AF_INET, libc::AF_INET6].map(word)));
    // The type's low bits; the others are SOCK_CLOEXEC and SOCK_NONBLOCK.
    block.extend([load(argument(1)), statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0xf)]);
    block.extend(one_of([libc::SOCK_STREAM, libc::SOCK_DGRAM].map(word)));
    block.push(load(argument(2)));
    block.extend(one_of([0, libc::IPPROTO_TCP, libc::IPPROTO_UDP].map(word)));
    block.push(end(ALLOW));
    block
}

/// `block`, for this call alone: the number is loaded before it and after it.
fn of_call(number: c_long, block: &[sock_filter]) -> Vec<sock_filter> {
    past(u32::try_from(number).unwrap_or(u32::MAX), block)
}

/// `block` where what is loaded is `value`, else past it. A block ends the program.
fn past(value: u32, block: &[sock_filter]) -> Vec<sock_filter> {
    let length = u8::try_from(block.len()).unwrap_or(u8::MAX);
    let mut whole = vec![jump(libc::BPF_JEQ, value, 0, length)];
    whole.extend_from_slice(block);
    whole
}

/// Goes on where what is loaded is one of `values`, else it is denied.
fn one_of<const N: usize>(values: [u32; N]) -> Vec<sock_filter> {
    let left = |index: usize| u8::try_from(N - index).unwrap_or(u8::MAX);
    let mut tests: Vec<_> =
        values.iter().enumerate().map(|(index, value)| jump(libc::BPF_JEQ, *value, left(index), 0)).collect();
    tests.push(end(DENY));
    tests
}

/// Denied with any of these bits in this argument.
fn without_bits(index: u32, bits: c_int) -> [sock_filter; 4] {
    [load(argument(index)), jump(libc::BPF_JSET, word(bits), 0, 1), end(DENY), end(ALLOW)]
}

/// Where the low half of an argument is in `struct seccomp_data`, on little endian. All that are looked at are ints to
/// the kernel, which drops the other half too.
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

const fn word(value: c_int) -> u32 {
    value.cast_unsigned()
}

const fn load(at: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at)
}

const fn end(action: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, action)
}

const fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Skips `yes` or `no` of the next.
const fn jump(test: u32, value: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | test | libc::BPF_K) as u16, jt: yes, jf: no, k: value }
}

/// For every thread of the process.
#[expect(unsafe_code, reason = "seccomp(2) has no wrapper")]
pub(super) fn install(program: &[sock_filter]) -> Result<(), Errno> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::E2BIG)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel copies `len` instructions from `filter`, which live until it has, and writes nothing.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const program,
        )
    };
    match Errno::result(answer)? {
        0 => Ok(()),
        // The id of a thread that cannot follow; nothing was installed.
        _ => Err(Errno::ESRCH),
    }
}
