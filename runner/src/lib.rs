//! rimg-runner: snapshots, overlay root filesystems, namespaced sandboxes and the containers' state on disk.
//!
//! A caller describes a [`SandboxSpec`]; [`Sandbox::new`] opens what it names, [`Sandbox::spawn`] makes the
//! namespaces, and [`Running::wait`] tells how the payload ended. Nothing is mounted in the caller's own mount
//! namespace, so nothing is left over when anything dies.
//!
//! | module | owns |
//! |---|---|
//! | [`spec`] | what a caller wants |
//! | `plan` | the list of set-up operations: a pure function of the spec |
//! | [`rootfs`] | the overlay, by whichever mechanism the kernel has |
//! | `mounts` | attributes of mounts; a private mount namespace |
//! | [`kernel`] | what is needed of the kernel, and what is done without it |
//! | [`sandbox`] | the parent's side: clone, id maps, waiting |
//! | `executable` | our own binary, as process 1 may execute it |
//! | `init`, `tree`, `kernel_fs`, `payload` | the child's side: carrying out the plan, becoming the payload |
//! | `privileges` | what the payload loses before it runs, and the proof that it has |
//! | `reaper` | the child's side with `init`: process 1 beside the payload |
//! | `process` | process 1 from outside: signals, and its end with ours |
//! | [`foreground`], `terminal` | a payload on the caller's terminal and under its signals |
//! | `stdio`, `copies` | standard descriptors: what is handed on, what is copied through pipes |
//! | [`userns`] | becoming root in a user namespace; subordinate ids |
//! | [`user`], `idmap` | `--user` text; which ids there are |
//! | [`capabilities`], `seccomp` | what a payload may do |
//! | [`limits`] | cgroups |
//! | [`snapshots`] | layers as overlay lower directories, and changes back |
//! | [`containers`] | state of foreground runs; sweeping of dead ones |
//! | [`claim`] | folders of living processes |
//! | [`doctor`] | facts about this host |
//! | `sys` | every `unsafe` block |
//!
//! The executable that uses this crate has to call [`child_main_if_requested`] first thing in its `main`.
#![deny(unsafe_code)]

pub mod capabilities;
pub mod claim;
pub mod containers;
mod copies;
pub mod doctor;
mod executable;
pub mod foreground;
mod idmap;
mod init;
pub mod kernel;
mod kernel_fs;
pub mod limits;
mod message;
mod mounts;
mod payload;
mod plan;
mod privileges;
mod process;
mod reaper;
pub mod rootfs;
pub mod sandbox;
mod seccomp;
pub mod snapshots;
pub mod spec;
mod stdio;
mod sys;
pub mod terminal;
mod tree;
pub mod user;
pub mod userns;

pub use foreground::run_foreground;
pub use idmap::UnmappedUser;
pub use message::SetupFailure;
pub use sandbox::{ExitStatus, Running, Sandbox, SandboxError};
pub use spec::SandboxSpec;
pub use sys::SignalPipe;

/// Becomes a sandbox's process 1, and never returns, if this process was executed as one.
///
/// To be called first thing in `main`: sandboxes are made by executing the same program again.
/// In every other process it makes sure that children can be waited for, whatever the caller did to SIGCHLD, and that
/// no signal is blocked.
pub fn child_main_if_requested() {
    init::main_if_requested();
    sys::receive_signals();
}
