//! The default system call filter: an allow-list with the effect of Docker's default profile.
//!
//! Owns the table of calls and the small compiler to classic BPF. Calls that are allowed are neighbours more often
//! than not, so the table becomes a few dozen ranges and the program a binary search over them: about a hundred and
//! fifty instructions, built in microseconds and quick to verify and to run, where one comparison per call would take
//! a few thousand.
//!
//! Answers: allowed calls pass; `clone3` and calls newer than the table say `ENOSYS`, so that programs fall back to
//! what the filter can judge; everything else says `EPERM`. Foreign architectures get `ENOSYS`.

mod calls;

use crate::sys::BpfInstruction;
use calls::{ALLOWED, ALLOWED_LEGACY, BY_CAPABILITY};

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
