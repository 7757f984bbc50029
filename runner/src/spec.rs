//! What a caller wants of a sandbox: [`SandboxSpec`] and its parts.
//!
//! Owns the vocabulary and its defaults (Docker's, where Docker has one). Leaves to others: what the kernel has to be
//! asked for it ([`crate::plan`]) and the doing of it ([`crate::sandbox`], [`crate::init`]).

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::capabilities::CapabilitySet;
use crate::limits::Limits;

/// Everything that decides how a sandbox looks.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// The root file system.
    pub rootfs: RootFs,
    /// Program and arguments. A program without `/` is searched in the `PATH` of `env`.
    pub args: Vec<OsString>,
    /// The payload's environment, complete: nothing is inherited. `HOME` is added when it is absent.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory inside the sandbox; made when it is missing. Relative paths start at `/`.
    pub cwd: PathBuf,
    /// `name|uid[:group|gid]` as in `--user` and the image's `User`; empty for root.
    pub user: String,
    /// Host name inside.
    pub hostname: String,
    /// Further mounts, in any order; parents are mounted before what lies below them.
    pub mounts: Vec<Mount>,
    /// Small files that every container sees, such as `/etc/hosts`; mounted, so they never become part of a layer.
    pub files: Vec<EtcFile>,
    /// Files that only some may read, such as secrets. They are in memory, and gone with the sandbox.
    pub private_files: Vec<PrivateFile>,
    /// Network of the sandbox.
    pub network: Network,
    /// A user namespace of its own, without which capabilities are the host's: over the host's network they have effect
    /// only so. Without one the caller has to be the host's root.
    pub user_namespace: bool,
    /// Resource limits.
    pub limits: Limits,
    /// Mount the root read-only.
    pub read_only: bool,
    /// Bounding, permitted and effective capabilities of the payload.
    pub capabilities: CapabilitySet,
    /// System call filter.
    pub seccomp: Seccomp,
    /// `no_new_privs`: set-user-id programs gain nothing. On by default, unlike Docker's.
    pub no_new_privileges: bool,
    /// Put an init before the payload, as process 1: it reaps orphans and passes signals on. Without it the payload is
    /// process 1 itself.
    pub init: bool,
    /// Give the payload a terminal of this initial size.
    pub tty: Option<WindowSize>,
    /// Size of `/dev/shm` in bytes.
    pub shm_size_bytes: u64,
}

impl SandboxSpec {
    /// A sandbox with every default: host network, no limits, Docker's capabilities, seccomp and `no_new_privs` on.
    #[must_use]
    pub fn new(rootfs: RootFs, args: Vec<OsString>) -> SandboxSpec {
        SandboxSpec {
            rootfs,
            args,
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            user: String::new(),
            hostname: "rimg".to_owned(),
            mounts: Vec::new(),
            files: Vec::new(),
            private_files: Vec::new(),
            network: Network::Host,
            user_namespace: true,
            limits: Limits::default(),
            read_only: false,
            capabilities: CapabilitySet::DOCKER,
            seccomp: Seccomp::Default,
            no_new_privileges: true,
            init: false,
            tty: None,
            shm_size_bytes: 64 << 20,
        }
    }
}

/// The directories a root file system is stacked from.
#[derive(Debug, Clone)]
pub struct RootFs {
    /// Read-only layers, the lowest (the base) first, as an image lists them. At most [`RootFs::LOWERS_MAX`].
    pub lowers: Vec<PathBuf>,
    /// Where changes go.
    pub upper: Upper,
}

impl RootFs {
    /// The kernel's limit on overlay layers.
    pub const LOWERS_MAX: usize = 500;
}

/// Where the changes of a run go.
#[derive(Debug, Clone)]
pub enum Upper {
    /// Nothing can be changed.
    None,
    /// Changes go to `upper`; `work` is an empty directory of the same file system.
    Directory {
        /// Receives the changes in overlay format, with the attributes of [`crate::kernel::overlay_attributes`].
        upper: PathBuf,
        /// The overlay's scratch directory.
        work: PathBuf,
        /// Skip every sync: much faster at the end. The upper cannot be mounted a second time afterwards.
        volatile: bool,
    },
}

/// A small file given to the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcFile {
    /// Absolute path inside.
    pub target: PathBuf,
    /// What it contains; the sandbox may change its own copy. At most [`EtcFile::SIZE_MAX`] bytes.
    pub content: Vec<u8>,
}

/// An [`EtcFile`] with an owner and permissions of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateFile {
    /// The file.
    pub file: EtcFile,
    /// Permission bits.
    pub mode: u32,
    /// Owner inside.
    pub uid: u32,
    /// Group inside.
    pub gid: u32,
}

impl EtcFile {
    /// They live in a small tmpfs; nobody's hosts file is larger.
    pub const SIZE_MAX: usize = 1 << 20;
}

/// A mount the caller asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountKind,
    /// Absolute path inside; made when it is missing. Symbolic links in it are followed inside the root only.
    pub target: PathBuf,
    /// Forbid writing through this mount, also to the mounts below a bind's source.
    pub read_only: bool,
}

/// What a [`Mount`] puts in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// A file or directory of the host, with the mounts below it.
    Bind {
        /// Path outside; it has to exist.
        source: PathBuf,
    },
    /// An empty file system in memory.
    Tmpfs(Tmpfs),
    /// The root's own directory, made when it is missing; it can be written to where the root is read-only.
    Volume,
}

/// An empty file system in memory (tmpfs(5)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Mode of its root; when absent that of the directory which it covers, or 1777 where there was none.
    pub mode: Option<u32>,
    /// Allow programs in it to be executed.
    pub exec: bool,
    /// Give set-user-ID bits effect.
    pub suid: bool,
    /// Parameters by the kernel's names, such as `size` and `uid`.
    pub parameters: Vec<(String, String)>,
}

/// Network of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// A namespace of its own with nothing but loopback.
    None,
    /// The caller's network.
    Host,
}

/// System call filter of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// An allow-list with the effect of Docker's default, widened by the capabilities granted.
    Default,
    /// No filter.
    Unconfined,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// One of a payload's three standard descriptors.
#[derive(Debug, Default)]
pub enum StdioEnd {
    /// `/dev/null`.
    #[default]
    Null,
    /// A new pipe, whose other end [`crate::Running`] holds.
    Pipe,
    /// For standard error: what standard output has.
    SameAsStdout,
    /// This descriptor: a pipe without a name, or a device that every sandbox has as well. Nothing else can be handed to
    /// a payload, which could do to a file whatever its owner may.
    Fd(OwnedFd),
}

/// A payload's standard descriptors. Without meaning for a sandbox with a terminal.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Standard input.
    pub stdin: StdioEnd,
    /// Standard output.
    pub stdout: StdioEnd,
    /// Standard error.
    pub stderr: StdioEnd,
}

impl Stdio {
    /// Nothing to read, output and errors into pipes.
    #[must_use]
    pub fn output_piped() -> Stdio {
        Stdio { stdin: StdioEnd::Null, stdout: StdioEnd::Pipe, stderr: StdioEnd::Pipe }
    }
}
