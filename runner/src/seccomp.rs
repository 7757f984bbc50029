//! The default system call filter: an allow-list with the effect of Docker's default profile.
//!
//! Owns the table of calls and the small compiler to classic BPF. Calls that are allowed are neighbours more often
//! than not, so the table becomes a few dozen ranges and the program a binary search over them: about a hundred and
//! fifty instructions, built in microseconds and quick to verify and to run, where one comparison per call would take
//! a few thousand.
//!
//! Answers: allowed calls pass; `clone3` and calls newer than the table say `ENOSYS`, so that programs fall back to
//! what the filter can judge; everything else says `EPERM`. Foreign architectures get `ENOSYS`.

use crate::sys::BpfInstruction;

/// Calls harmless in a container, on every architecture.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_adjtimex,
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_chdir,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_connect,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fanotify_mark,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_getcpu,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getitimer,
    libc::SYS_getpeername,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_get_robust_list,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_getxattr,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_io_cancel,
    libc::SYS_ioctl,
    libc::SYS_io_destroy,
    libc::SYS_io_getevents,
    IO_PGETEVENTS,
    libc::SYS_ioprio_get,
    libc::SYS_ioprio_set,
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    libc::SYS_kill,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_lgetxattr,
    libc::SYS_linkat,
    libc::SYS_listen,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_lremovexattr,
    libc::SYS_lseek,
    libc::SYS_lsetxattr,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_mincore,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mq_getsetattr,
    libc::SYS_mq_notify,
    libc::SYS_mq_open,
    libc::SYS_mq_timedreceive,
    libc::SYS_mq_timedsend,
    libc::SYS_mq_unlink,
    libc::SYS_mremap,
    libc::SYS_msgctl,
    libc::SYS_msgget,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munlockall,
    libc::SYS_munmap,
    libc::SYS_name_to_handle_at,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pipe2,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pkey_mprotect,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_prlimit64,
    libc::SYS_process_mrelease,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pselect6,
    libc::SYS_ptrace,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_remap_file_pages,
    libc::SYS_removexattr,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getattr,
    libc::SYS_sched_getparam,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_rr_get_interval,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_yield,
    libc::SYS_seccomp,
    libc::SYS_semctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_sendfile,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setitimer,
    libc::SYS_setpgid,
    libc::SYS_setpriority,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_set_robust_list,
    libc::SYS_setsid,
    libc::SYS_setsockopt,
    libc::SYS_set_tid_address,
    libc::SYS_setuid,
    libc::SYS_setxattr,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_shmdt,
    libc::SYS_shmget,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_socketpair,
    libc::SYS_splice,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sync,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_sysinfo,
    libc::SYS_tee,
    libc::SYS_tgkill,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_times,
    libc::SYS_tkill,
    libc::SYS_truncate,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_vmsplice,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_write,
    libc::SYS_writev,
    // Newer calls, which have one number everywhere: cachestat, fchmodat2, map_shadow_stack, futex_wake, futex_wait,
    // futex_requeue, statmount, listmount, mseal, setxattrat, getxattrat, listxattrat, removexattrat.
    451,
    452,
    453,
    454,
    455,
    456,
    457,
    458,
    462,
    463,
    464,
    465,
    466,
];

/// `io_pgetevents`, which the C library bindings lack.
#[cfg(target_arch = "x86_64")]
const IO_PGETEVENTS: libc::c_long = 333;
#[cfg(not(target_arch = "x86_64"))]
const IO_PGETEVENTS: libc::c_long = 292;

/// Calls that only older architectures have.
#[cfg(target_arch = "x86_64")]
const ALLOWED_LEGACY: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_alarm,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_creat,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_ctl_old,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_wait_old,
    libc::SYS_eventfd,
    libc::SYS_fork,
    libc::SYS_futimesat,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_get_thread_area,
    libc::SYS_inotify_init,
    libc::SYS_lchown,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_mknod,
    libc::SYS_modify_ldt,
    libc::SYS_open,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_setrlimit,
    libc::SYS_set_thread_area,
    libc::SYS_signalfd,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_time,
    libc::SYS_unlink,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_LEGACY: &[libc::c_long] = &[];

/// Calls that come with a capability, by its number in `capabilities(7)`.
const BY_CAPABILITY: &[(u32, &[libc::c_long])] = &[
    (2, &[libc::SYS_open_by_handle_at]),
    (16, &[libc::SYS_delete_module, libc::SYS_init_module, libc::SYS_finit_module]),
    (18, &[libc::SYS_chroot]),
    (19, &[libc::SYS_kcmp, libc::SYS_pidfd_getfd, libc::SYS_process_madvise]),
    (20, &[libc::SYS_acct]),
    (
        SYS_ADMIN,
        &[
            libc::SYS_bpf,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_fanotify_init,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fsopen,
            libc::SYS_fspick,
            libc::SYS_lookup_dcookie,
            libc::SYS_mount,
            libc::SYS_mount_setattr,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_perf_event_open,
            libc::SYS_quotactl,
            libc::SYS_quotactl_fd,
            libc::SYS_setdomainname,
            libc::SYS_sethostname,
            libc::SYS_setns,
            libc::SYS_syslog,
            libc::SYS_umount2,
            libc::SYS_unshare,
            459,
            460,
            461,
            467,
        ],
    ),
    (22, &[libc::SYS_reboot]),
    (
        23,
        &[
            libc::SYS_get_mempolicy,
            libc::SYS_mbind,
            libc::SYS_set_mempolicy,
            libc::SYS_set_mempolicy_home_node,
        ],
    ),
    (25, &[libc::SYS_settimeofday, libc::SYS_clock_settime]),
    (26, &[libc::SYS_vhangup]),
    (34, &[libc::SYS_syslog]),
    (38, &[libc::SYS_perf_event_open]),
    (39, &[libc::SYS_bpf]),
];

/// `CAP_SYS_ADMIN`.
const SYS_ADMIN: u32 = 21;

/// The last call the table was checked against; what is newer says `ENOSYS`.
const LAST_KNOWN: u32 = 467;

/// Namespace flags of `clone(2)`: every `CLONE_NEW*` but `CLONE_NEWTIME`, which lies in the exit signal's byte.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;

/// `AF_VSOCK` reaches the hypervisor past every network namespace.
const AF_VSOCK: u32 = 40;

/// Execution domains that programs use: Linux, Linux with `UNAME26`, 32-bit, both, and "tell me".
const PERSONALITIES: [u32; 5] = [0x0, 0x0002_0000, 0x8, 0x0002_0008, 0xffff_ffff];

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const AUDIT_ARCH: u32 = 0xc000_00f3;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    Errno(u32),
    /// Allowed unless it makes namespaces.
    Clone,
    /// Allowed but for one address family.
    Socket,
    /// Allowed for the usual execution domains.
    Personality,
}

/// The default filter for a payload with these capability bits.
pub(crate) fn default_profile(capabilities: u64) -> Vec<BpfInstruction> {
    let mut program = vec![
        statement(LOAD, OFFSET_ARCH),
        jump(JUMP_EQUAL, AUDIT_ARCH, 1, 0),
        statement(RETURN, errno(libc::ENOSYS)),
        statement(LOAD, OFFSET_NUMBER),
    ];
    program.extend(search(&ranges(&verdicts(capabilities))));
    program
}

/// The verdict of every number from 0 to one past the last known.
fn verdicts(capabilities: u64) -> Vec<Verdict> {
    let mut table = vec![Verdict::Errno(libc::EPERM as u32); LAST_KNOWN as usize + 1];
    let mut set = |number: libc::c_long, verdict: Verdict| {
        if let Some(entry) = usize::try_from(number).ok().and_then(|number| table.get_mut(number)) {
            *entry = verdict;
        }
    };
    for &number in ALLOWED.iter().chain(ALLOWED_LEGACY) {
        set(number, Verdict::Allow);
    }
    set(libc::SYS_clone, Verdict::Clone);
    set(libc::SYS_clone3, Verdict::Errno(libc::ENOSYS as u32));
    set(libc::SYS_socket, Verdict::Socket);
    set(libc::SYS_personality, Verdict::Personality);
    for (capability, numbers) in BY_CAPABILITY {
        if capabilities >> capability & 1 == 1 {
            numbers.iter().for_each(|number| set(*number, Verdict::Allow));
        }
    }
    #[cfg(target_arch = "x86_64")]
    if capabilities >> 17 & 1 == 1 {
        set(libc::SYS_iopl, Verdict::Allow);
        set(libc::SYS_ioperm, Verdict::Allow);
    }
    table.push(Verdict::Errno(libc::ENOSYS as u32));
    table
}

/// First number and verdict of every run of equal verdicts; the last run goes on for ever.
fn ranges(table: &[Verdict]) -> Vec<(u32, Verdict)> {
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    for (number, verdict) in table.iter().enumerate() {
        if ranges.last().is_none_or(|(_, last)| last != verdict) {
            ranges.push((number as u32, *verdict));
        }
    }
    ranges
}

/// A program that finds the range the accumulator lies in.
fn search(ranges: &[(u32, Verdict)]) -> Vec<BpfInstruction> {
    let [(_, verdict)] = ranges else {
        let (left, right) = ranges.split_at(ranges.len() / 2);
        let (below, above) = (search(left), search(right));
        let mut program = match u8::try_from(below.len()) {
            Ok(distance) => vec![jump(JUMP_GREATER_EQUAL, right[0].0, distance, 0)],
            Err(_) => {
                vec![jump(JUMP_GREATER_EQUAL, right[0].0, 0, 1), statement(JUMP_ALWAYS, below.len() as u32)]
            }
        };
        program.extend(below);
        program.extend(above);
        return program;
    };
    leaf(*verdict)
}

fn leaf(verdict: Verdict) -> Vec<BpfInstruction> {
    let (allow, refuse) = (statement(RETURN, ALLOW), statement(RETURN, errno(libc::EPERM)));
    match verdict {
        Verdict::Allow => vec![allow],
        Verdict::Errno(number) => vec![statement(RETURN, ERRNO | number)],
        Verdict::Clone => vec![
            statement(LOAD, argument(CLONE_FLAGS_ARGUMENT)),
            jump(JUMP_ANY_BIT, CLONE_NAMESPACES, 1, 0),
            allow,
            refuse,
        ],
        Verdict::Socket => {
            vec![statement(LOAD, argument(0)), jump(JUMP_EQUAL, AF_VSOCK, 1, 0), allow, refuse]
        }
        Verdict::Personality => {
            let mut program = vec![statement(LOAD, argument(0))];
            let count = PERSONALITIES.len() as u8;
            let jumps = PERSONALITIES.iter().enumerate();
            program.extend(jumps.map(|(i, domain)| jump(JUMP_EQUAL, *domain, count - i as u8, 0)));
            program.extend([refuse, allow]);
            program
        }
    }
}

const CLONE_FLAGS_ARGUMENT: u32 = 0;

// Operations and return values of classic BPF and seccomp: linux/bpf_common.h, linux/seccomp.h.
const LOAD: u16 = 0x20;
const RETURN: u16 = 0x06;
const JUMP_ALWAYS: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;

/// Offset of the low half of an argument in `struct seccomp_data`, on little-endian machines.
fn argument(index: u32) -> u32 {
    16 + 8 * index
}

fn errno(number: i32) -> u32 {
    ERRNO | number as u32
}

fn statement(code: u16, k: u32) -> BpfInstruction {
    jump(code, k, 0, 0)
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> BpfInstruction {
    BpfInstruction { code, jt, jf, k }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::capabilities::CapabilitySet;

    /// What the kernel would do with the program: an interpreter of the few operations it uses.
    fn run(program: &[BpfInstruction], arch: u32, number: u32, first: u32) -> u32 {
        let (mut accumulator, mut at) = (0u32, 0usize);
        loop {
            let instruction = program[at];
            at += 1;
            let condition = match instruction.code {
                LOAD => {
                    accumulator = match instruction.k {
                        OFFSET_NUMBER => number,
                        OFFSET_ARCH => arch,
                        16 => first,
                        other => panic!("load of {other}"),
                    };
                    continue;
                }
                RETURN => return instruction.k,
                JUMP_ALWAYS => {
                    at += instruction.k as usize;
                    continue;
                }
                JUMP_EQUAL => accumulator == instruction.k,
                JUMP_GREATER_EQUAL => accumulator >= instruction.k,
                JUMP_ANY_BIT => accumulator & instruction.k != 0,
                other => panic!("operation {other:#x}"),
            };
            at += usize::from(if condition { instruction.jt } else { instruction.jf });
        }
    }

    fn verdict(capabilities: CapabilitySet, number: libc::c_long, first: u32) -> u32 {
        run(&default_profile(capabilities.bits()), AUDIT_ARCH, number as u32, first)
    }

    #[test]
    fn the_search_agrees_with_the_table_for_every_number() {
        for capabilities in [CapabilitySet::EMPTY, CapabilitySet::DOCKER, CapabilitySet::ALL] {
            let program = default_profile(capabilities.bits());
            assert!(program.len() < 400, "{} instructions", program.len());
            for (number, expected) in verdicts(capabilities.bits()).iter().enumerate() {
                let got = run(&program, AUDIT_ARCH, number as u32, 0);
                let expected = match expected {
                    Verdict::Errno(number) => ERRNO | number,
                    _ => ALLOW,
                };
                assert_eq!(got, expected, "call {number}");
            }
        }
    }

    #[test]
    fn dangerous_calls_are_refused_with_dockers_capabilities() {
        let refused = [
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
            libc::SYS_pivot_root,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
            libc::SYS_userfaultfd,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_open_by_handle_at,
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_settimeofday,
            libc::SYS_process_madvise,
            libc::SYS_pidfd_getfd,
        ];
        for number in refused {
            assert_eq!(verdict(CapabilitySet::DOCKER, number, 0), errno(libc::EPERM), "call {number}");
        }
    }

    #[test]
    fn arguments_decide() {
        let docker = |number, first| verdict(CapabilitySet::DOCKER, number, first);
        let (allow, eperm, enosys) = (ALLOW, errno(libc::EPERM), errno(libc::ENOSYS));
        assert_eq!(docker(libc::SYS_clone, libc::SIGCHLD as u32), allow);
        assert_eq!(docker(libc::SYS_clone, libc::CLONE_NEWUSER as u32), eperm);
        assert_eq!(docker(libc::SYS_clone, libc::CLONE_NEWNS as u32), eperm);
        assert_eq!(docker(libc::SYS_clone3, 0), enosys);
        assert_eq!(verdict(CapabilitySet::ALL, libc::SYS_clone, libc::CLONE_NEWUSER as u32), allow);
        assert_eq!(docker(libc::SYS_socket, libc::AF_INET as u32), allow);
        assert_eq!(docker(libc::SYS_socket, AF_VSOCK), eperm);
        assert_eq!(docker(libc::SYS_personality, 0x8), allow);
        assert_eq!(docker(libc::SYS_personality, 0xffff_ffff), allow);
        assert_eq!(docker(libc::SYS_personality, 0x0040_0000), eperm);
        assert_eq!(docker(9_999, 0), enosys);
        // The x32 numbers of x86-64 lie above every known call.
        assert_eq!(docker(0x4000_0000, 0), enosys);
        let program = default_profile(0);
        assert_eq!(run(&program, AUDIT_ARCH ^ 1, libc::SYS_read as u32, 0), enosys);
    }
}
