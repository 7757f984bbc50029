//! The default system call filter: an allow-list with the effect of Docker's default profile.
//!
//! Owns the table of calls and the small compiler to classic BPF. Calls that are allowed are neighbours more often
//! than not, so the table becomes a few dozen ranges and the program a binary search over them: about a hundred and
//! fifty instructions, built in microseconds and quick to verify and to run, where one comparison per call would take
//! a few thousand.
//!
//! Answers: allowed calls pass; `clone3` and calls newer than the table say `ENOSYS`, so that programs fall back to
//! what the filter can judge; everything else says `EPERM`. On x86-64 the 32-bit calls of i386 have a table of their own,
//! and those of x32 share the machine's. Other architectures get `ENOSYS`.

mod calls;
#[cfg(target_arch = "x86_64")]
mod i386;

use crate::sys::BpfInstruction;
use calls::{ALLOWED, ALLOWED_LEGACY, BY_CAPABILITY};

/// The last call the table was checked against; what is newer says `ENOSYS`.
const LAST_KNOWN: u32 = 467;

/// Namespace flags of `clone(2)`: every `CLONE_NEW*` but `CLONE_NEWTIME`, which lies in the exit signal's byte.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;

/// Address families that sockets may have, as first and last of a run: Docker's list. The others are old, and still
/// bring code of the kernel within reach; two of them reach further. `AF_ALG` (38): through it, files that can only be
/// read were changed in the page cache, which containers share (CVE-2026-31431). `AF_VSOCK` (40) reaches the hypervisor
/// past every network namespace.
const SOCKET_FAMILIES: [(u32, u32); 9] =
    [(0, 2), (7, 10), (13, 18), (21, 22), (24, 24), (26, 33), (35, 36), (39, 39), (41, 45)];

/// `SYS_SOCKET` of `socketcall(2)` (linux/net.h).
const SOCKETCALL_SOCKET: u32 = 1;

/// Execution domains that programs use: Linux, Linux with `UNAME26`, 32-bit, both, and "tell me".
const PERSONALITIES: [u32; 5] = [0x0, 0x0002_0000, 0x8, 0x0002_0008, 0xffff_ffff];

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
/// What 32-bit x86 programs call through (`AUDIT_ARCH_I386`).
#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
/// Set in the numbers of x32, which share the machine's table (`__X32_SYSCALL_BIT`).
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;
/// x32's numbers for calls whose arguments differ from the machine's own: the first, and how many there are.
#[cfg(target_arch = "x86_64")]
const X32_OWN: (usize, usize) = (512, 36);
/// Those of them that are refused: `kexec_load` and `move_pages`.
#[cfg(target_arch = "x86_64")]
const X32_REFUSED: [usize; 2] = [528, 533];
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
    /// Allowed for the usual address families.
    Socket,
    /// `socketcall(2)`: allowed but for making a socket, whose address family lies in memory that no filter sees. The
    /// answer is `ENOSYS`: programs use `socket(2)`, which i386 has since Linux 4.3.
    SocketCall,
    /// Allowed for the usual execution domains.
    Personality,
}

/// The default filter for a payload with these capability bits.
pub(crate) fn default_profile(capabilities: u64) -> Vec<BpfInstruction> {
    #[cfg(target_arch = "x86_64")]
    return program(
        &ranges(&with_x32(verdicts(capabilities))),
        &[(AUDIT_ARCH_I386, ranges(&i386_verdicts(capabilities)))],
    );
    #[cfg(not(target_arch = "x86_64"))]
    program(&ranges(&verdicts(capabilities)), &[])
}

/// A filter that lets these calls of the machine's own architecture through and refuses all others.
pub(crate) fn only(calls: &[libc::c_long]) -> Vec<BpfInstruction> {
    let mut table = vec![Verdict::Errno(libc::EPERM as u32); LAST_KNOWN as usize + 2];
    for &call in calls {
        if let Some(entry) = usize::try_from(call).ok().and_then(|number| table.get_mut(number)) {
            *entry = Verdict::Allow;
        }
    }
    program(&ranges(&table), &[])
}

/// The whole filter: the machine's own calls first, then those of each further architecture.
fn program(native: &[(u32, Verdict)], further: &[(u32, Vec<(u32, Verdict)>)]) -> Vec<BpfInstruction> {
    let mut program = vec![statement(LOAD, OFFSET_ARCH)];
    program.extend(for_architecture(AUDIT_ARCH, native));
    for (architecture, ranges) in further {
        program.extend(for_architecture(*architecture, ranges));
    }
    program.push(statement(RETURN, errno(libc::ENOSYS)));
    program
}

/// A piece that decides about the calls of one architecture, and is passed over by those of others. The accumulator
/// holds the architecture.
fn for_architecture(architecture: u32, ranges: &[(u32, Verdict)]) -> Vec<BpfInstruction> {
    let mut body = vec![statement(LOAD, OFFSET_NUMBER)];
    #[cfg(target_arch = "x86_64")]
    if architecture == AUDIT_ARCH {
        body.extend([jump(JUMP_GREATER_EQUAL, X32, 0, 1), statement(AND, !X32)]);
    }
    body.extend(search(ranges));
    let mut piece = vec![jump(JUMP_EQUAL, architecture, 1, 0), statement(JUMP_ALWAYS, body.len() as u32)];
    piece.append(&mut body);
    piece
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

/// The machine's table with x32's own numbers behind it. The kernel refuses them to programs that are not x32.
#[cfg(target_arch = "x86_64")]
fn with_x32(mut table: Vec<Verdict>) -> Vec<Verdict> {
    let (first, count) = X32_OWN;
    table.resize(first, Verdict::Errno(libc::ENOSYS as u32));
    table.resize(first + count, Verdict::Allow);
    for number in X32_REFUSED {
        table[number] = Verdict::Errno(libc::EPERM as u32);
    }
    table.push(Verdict::Errno(libc::ENOSYS as u32));
    table
}

/// As [`verdicts`], for i386.
#[cfg(target_arch = "x86_64")]
fn i386_verdicts(capabilities: u64) -> Vec<Verdict> {
    let mut table = vec![Verdict::Errno(libc::EPERM as u32); LAST_KNOWN as usize + 1];
    for (number, _) in i386::ALLOWED {
        table[*number as usize] = Verdict::Allow;
    }
    table[i386::CLONE] = Verdict::Clone;
    table[i386::CLONE3] = Verdict::Errno(libc::ENOSYS as u32);
    table[i386::SOCKET] = Verdict::Socket;
    table[i386::SOCKETCALL] = Verdict::SocketCall;
    table[i386::PERSONALITY] = Verdict::Personality;
    for (capability, calls) in i386::BY_CAPABILITY {
        if capabilities >> capability & 1 == 1 {
            calls.iter().for_each(|(number, _)| table[*number as usize] = Verdict::Allow);
        }
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
            let mut families = Vec::new();
            for (first, last) in SOCKET_FAMILIES {
                families.extend([(first, Verdict::Allow), (last + 1, Verdict::Errno(libc::EPERM as u32))]);
            }
            let mut program = vec![statement(LOAD, argument(0))];
            program.extend(search(&families));
            program
        }
        Verdict::SocketCall => vec![
            statement(LOAD, argument(0)),
            jump(JUMP_EQUAL, SOCKETCALL_SOCKET, 1, 0),
            allow,
            statement(RETURN, errno(libc::ENOSYS)),
        ],
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
#[cfg(target_arch = "x86_64")]
const AND: u16 = 0x54;
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
                AND => {
                    accumulator &= instruction.k;
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
            assert!(program.len() < 600, "{} instructions", program.len());
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
        for family in [3, 38, 40, 46, u32::MAX] {
            assert_eq!(docker(libc::SYS_socket, family), eperm, "family {family}");
        }
        assert_eq!(docker(libc::SYS_personality, 0x8), allow);
        assert_eq!(docker(libc::SYS_personality, 0xffff_ffff), allow);
        assert_eq!(docker(libc::SYS_personality, 0x0040_0000), eperm);
        assert_eq!(docker(9_999, 0), enosys);
        let program = default_profile(0);
        assert_eq!(run(&program, AUDIT_ARCH ^ 1, libc::SYS_read as u32, 0), enosys);
    }

    /// Docker's own profile, by name: what it allows is allowed here, and nothing else.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_profile_allows_what_dockers_does_and_nothing_else() {
        // Decided by arguments, which the other tests look at; x86-64's ioperm and iopl stand for themselves.
        let by_argument = ["clone", "clone3", "socket", "socketcall", "personality"];
        let listed = include_str!("../../../fixtures/seccomp/docker.txt");
        let sets = [CapabilitySet::EMPTY, CapabilitySet::DOCKER, CapabilitySet::ALL];
        for set in sets {
            let tables = [verdicts(set.bits()), i386_verdicts(set.bits())];
            let mut expected = [const { [false; LAST_KNOWN as usize + 1] }; 2];
            let mut skipped = Vec::new();
            for line in listed.lines().filter(|line| !line.starts_with('#')) {
                let fields: Vec<&str> = line.split(' ').collect();
                if fields[0] == "socket-families" {
                    continue;
                }
                let capability = fields[3].trim_start_matches("CAP_");
                let numbers = [fields[1], fields[2]].map(|number| number.parse::<usize>().ok());
                for (side, number) in numbers.into_iter().enumerate() {
                    let Some(number) = number.filter(|number| *number <= LAST_KNOWN as usize) else {
                        continue;
                    };
                    expected[side][number] |= capability == "-" || set.has(capability);
                    if by_argument.contains(&fields[0]) {
                        skipped.push((side, number));
                    }
                }
            }
            let mut different = Vec::new();
            for (side, table) in tables.iter().enumerate() {
                for number in 0..=LAST_KNOWN as usize {
                    let decided = matches!(table[number], Verdict::Allow | Verdict::Errno(_));
                    let allowed = table[number] == Verdict::Allow;
                    if decided && !skipped.contains(&(side, number)) && allowed != expected[side][number] {
                        different.push((["x86-64", "i386"][side], number, allowed));
                    }
                }
            }
            assert!(different.is_empty(), "{different:?}");
        }
        let families = listed.lines().find_map(|line| line.strip_prefix("socket-families ")).unwrap();
        let families: Vec<u32> = families.split(' ').map(|family| family.parse().unwrap()).collect();
        for family in 0..64 {
            let allowed = verdict(CapabilitySet::DOCKER, libc::SYS_socket, family) == ALLOW;
            assert_eq!(allowed, families.contains(&family), "family {family}");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn programs_of_32_bits_are_filtered_by_their_own_numbers() {
        let program = default_profile(CapabilitySet::DOCKER.bits());
        let i386 = |number, first| run(&program, AUDIT_ARCH_I386, number, first);
        let x32 = |number: u32, first| run(&program, AUDIT_ARCH, number | X32, first);
        let (eperm, enosys) = (errno(libc::EPERM), errno(libc::ENOSYS));
        for (number, verdict) in i386_verdicts(CapabilitySet::DOCKER.bits()).iter().enumerate() {
            let expected = match verdict {
                Verdict::Errno(number) => ERRNO | number,
                _ => ALLOW,
            };
            assert_eq!(i386(number as u32, 0), expected, "call {number}");
        }
        // write, mmap2, socket, ptrace; mount, init_module, setns, bpf; far beyond the table.
        for number in [4, 192, 359, 26] {
            assert_eq!(i386(number, 1), ALLOW, "call {number}");
        }
        for number in [21, 128, 346, 357] {
            assert_eq!(i386(number, 0), eperm, "call {number}");
        }
        assert_eq!((i386(9_999, 0), i386(435, 0)), (enosys, enosys));
        assert_eq!((i386(120, libc::SIGCHLD as u32), i386(120, libc::CLONE_NEWUSER as u32)), (ALLOW, eperm));
        assert_eq!((i386(359, 38), i386(359, 40), i386(102, 1), i386(102, 3)), (eperm, eperm, enosys, ALLOW));
        assert_eq!((i386(136, 0x8), i386(136, 0x0040_0000)), (ALLOW, eperm));
        // x32: write, execve, kexec_load; mount; beyond.
        assert_eq!((x32(1, 0), x32(520, 0), x32(528, 0)), (ALLOW, ALLOW, eperm));
        assert_eq!((x32(165, 0), x32(41, 38), x32(548, 0)), (eperm, eperm, enosys));
        assert_eq!((x32(500, 0), run(&program, AUDIT_ARCH, u32::MAX, 0)), (enosys, enosys));
    }
}
