//! The root file system of a sandbox as a detached overlay mount.
//!
//! Owns the overlay's options and the [`Mechanism`]s by which the kernel is told the layers, the newest first; which
//! one works is found out once a process. Nothing appears in the caller's mount table, whichever it is.

use std::ffi::CString;
use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
};

use crate::kernel::{self, Version, overlay_attributes};
use crate::mounts;
use crate::sandbox::SandboxError;
use crate::spec::{RootFs, Upper};
use crate::sys::MountChange;

/// How the kernel is told an overlay's layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// Each by a descriptor.
    Descriptors,
    /// Each by a name.
    Names,
    /// All of them in the option string of `mount(2)`.
    MountCall,
}

impl Mechanism {
    /// All of them, in the order in which they are tried.
    pub const ALL: [Mechanism; 3] = [Mechanism::Descriptors, Mechanism::Names, Mechanism::MountCall];

    /// What to try when the kernel answers the first layer so; `None` for an error that is not about the mechanism.
    ///
    /// - EBADF, EINVAL: overlayfs takes a layer by name only, or knows no `lowerdir+`;
    /// - EOPNOTSUPP: it does not speak the interface of `fsconfig` itself, so names would not help either;
    /// - ENOSYS: there is no `fsopen`.
    fn after(self, answer: Errno) -> Option<Mechanism> {
        match (self, answer) {
            (Mechanism::Descriptors, Errno::BADF | Errno::INVAL) => Some(Mechanism::Names),
            (Mechanism::Descriptors, Errno::OPNOTSUPP | Errno::NOSYS) => Some(Mechanism::MountCall),
            (Mechanism::Names, Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Some(Mechanism::MountCall),
            _ => None,
        }
    }
}

/// The mechanism that worked in this process, as an index into [`Mechanism::ALL`].
static WORKING: AtomicUsize = AtomicUsize::new(0);

/// Makes the root's mount.
pub(crate) fn mount(rootfs: &RootFs) -> Result<OwnedFd, SandboxError> {
    let known = WORKING.load(Ordering::Relaxed);
    let (mount, mechanism) = mount_from(rootfs, Mechanism::ALL[known]).map_err(too_old_for_users)?;
    if mechanism != Mechanism::ALL[known] {
        let index = Mechanism::ALL.iter().position(|candidate| *candidate == mechanism);
        WORKING.store(index.unwrap_or(known), Ordering::Relaxed);
    }
    Ok(mount)
}

/// The mechanism that mounted the last overlay of this process.
pub(crate) fn working() -> Mechanism {
    Mechanism::ALL[WORKING.load(Ordering::Relaxed)]
}

/// Names the reason for which an ordinary user cannot have an overlay on an old kernel.
fn too_old_for_users(error: SandboxError) -> SandboxError {
    match error {
        SandboxError::Kernel { operation, source }
            if source.raw_os_error() == Some(libc::EPERM)
                && Version::running() < kernel::USERS_SINCE
                && !kernel::is_host_root() =>
        {
            let (since, running) = (kernel::USERS_SINCE, Version::running());
            let operation =
                format!("{operation}: users other than root need Linux {since}, this is {running}");
            SandboxError::Kernel { operation, source }
        }
        other => other,
    }
}

/// Makes the root's mount by the first mechanism from `mechanism` on that this kernel has, and says which it was.
fn mount_from(rootfs: &RootFs, mut mechanism: Mechanism) -> Result<(OwnedFd, Mechanism), SandboxError> {
    loop {
        match mount_by(rootfs, mechanism) {
            Err(Failure::Missing(answer, error)) => match mechanism.after(answer) {
                Some(next) => mechanism = next,
                None => return Err(error),
            },
            Err(Failure::Real(error)) => return Err(error),
            Ok(mount) => return Ok((mount, mechanism)),
        }
    }
}

/// Makes a root's mount, detached, by this mechanism and no other.
///
/// # Errors
/// The kernel's, also when it does not have the mechanism.
pub fn mount_only_by(rootfs: &RootFs, mechanism: Mechanism) -> Result<OwnedFd, SandboxError> {
    mount_by(rootfs, mechanism).map_err(Failure::into_error)
}

/// Why a mechanism did not do it.
enum Failure {
    /// Perhaps because this kernel does not have it: this was the answer to its first use.
    Missing(Errno, SandboxError),
    /// Something else.
    Real(SandboxError),
}

impl Failure {
    fn into_error(self) -> SandboxError {
        match self {
            Failure::Missing(_, error) | Failure::Real(error) => error,
        }
    }
}

impl From<SandboxError> for Failure {
    fn from(error: SandboxError) -> Failure {
        Failure::Real(error)
    }
}

fn mount_by(rootfs: &RootFs, mechanism: Mechanism) -> Result<OwnedFd, Failure> {
    if let ([only], Upper::None) = (rootfs.lowers.as_slice(), &rootfs.upper) {
        return Ok(bind_read_only(only)?);
    }
    match mechanism {
        Mechanism::Descriptors | Mechanism::Names => by_configuration(rootfs, mechanism),
        Mechanism::MountCall => Ok(by_mount_call(rootfs)?),
    }
}

/// By `fsopen`, `fsconfig` and `fsmount`.
fn by_configuration(rootfs: &RootFs, mechanism: Mechanism) -> Result<OwnedFd, Failure> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| Failure::Missing(errno, refused("open an overlay context")(errno)))?;
    // Init waits for this mount and its end of it; the layers are only needed while the overlay is put together.
    for (index, lower) in rootfs.lowers.iter().rev().enumerate() {
        match set_layer(context.as_fd(), "lowerdir+", lower, mechanism) {
            Err(Failure::Missing(_, error)) if index > 0 => return Err(Failure::Real(error)),
            other => other?,
        }
    }
    Ok(finish(context.as_fd(), &rootfs.upper, mechanism)?)
}

/// The options other than the lower layers, and the mount.
fn finish(context: BorrowedFd<'_>, upper: &Upper, mechanism: Mechanism) -> Result<OwnedFd, SandboxError> {
    let failed = |errno| explained(context, errno);
    for (key, value) in overlay_attributes().options() {
        match value {
            Some(value) => fsconfig_set_string(context, *key, *value),
            None => fsconfig_set_flag(context, *key),
        }
        .map_err(failed)?;
    }
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
    match upper {
        Upper::None => attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY,
        Upper::Directory { upper, work, volatile } => {
            for (key, path) in [("upperdir", upper), ("workdir", work)] {
                set_layer(context, key, path, mechanism).map_err(Failure::into_error)?;
            }
            if *volatile {
                fsconfig_set_flag(context, "volatile").map_err(failed)?;
            }
        }
    }
    fsconfig_create(context).map_err(failed)?;
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed)
}

fn set_layer(context: BorrowedFd<'_>, key: &str, path: &Path, mechanism: Mechanism) -> Result<(), Failure> {
    let set = match mechanism {
        // A descriptor that only names the directory (O_PATH) would be refused before Linux 6.15.
        Mechanism::Descriptors => fsconfig_set_fd(context, key, open_layer(path, OFlags::RDONLY)?.as_fd()),
        Mechanism::Names | Mechanism::MountCall => {
            let layer = open_layer(path, OFlags::PATH)?;
            // Short, and without a character that means something to overlayfs.
            fsconfig_set_string(context, key, format!("/proc/self/fd/{}", layer.as_raw_fd()).as_str())
        }
    };
    set.map_err(|source| {
        let operation = format!("add {} to the overlay as {key}", path.display());
        Failure::Missing(source, SandboxError::Kernel { operation, source: source.into() })
    })
}

/// An error of an overlay's context, with what the kernel says about it.
fn explained(context: BorrowedFd<'_>, errno: Errno) -> SandboxError {
    let mut message = [0; 512];
    let length = rustix::io::read(context, &mut message).unwrap_or(0);
    let said = String::from_utf8_lossy(&message[..length]);
    let operation = match said.trim().strip_prefix("e ") {
        Some(said) => format!("mount the overlay ({said})"),
        None => "mount the overlay".to_owned(),
    };
    SandboxError::Kernel { operation, source: errno.into() }
}

/// By `mount(2)`, in a mount namespace of its own, and a detached clone of what it mounted there.
///
/// The kernel takes a page of options. The names of open descriptors, relative to their directory, are so short that
/// [`RootFs::LOWERS_MAX`] layers fit.
fn by_mount_call(rootfs: &RootFs) -> Result<OwnedFd, SandboxError> {
    let invalid = || SandboxError::Invalid("a root without a layer".to_owned());
    let point = std::path::absolute(rootfs.lowers.first().ok_or_else(invalid)?)
        .map_err(|source| SandboxError::Open { path: rootfs.lowers[0].clone(), source })?;
    let made = mounts::in_private_namespace(|| {
        // Opened here: overlayfs clones the mounts of its layers, which have to be of the present namespace.
        Ok(open_layers(rootfs).and_then(|layers| mount_layers(&layers, &rootfs.upper, &point)))
    });
    made.map_err(|source| SandboxError::Kernel {
        operation: "make a mount namespace to mount the overlay in".to_owned(),
        source,
    })?
}

/// The lower layers, the highest first, then upper and work directory if there are any.
fn open_layers(rootfs: &RootFs) -> Result<Vec<OwnedFd>, SandboxError> {
    let mut paths: Vec<&Path> = rootfs.lowers.iter().rev().map(PathBuf::as_path).collect();
    if let Upper::Directory { upper, work, .. } = &rootfs.upper {
        paths.extend([upper.as_path(), work.as_path()]);
    }
    paths.into_iter().map(|path| open_layer(path, OFlags::PATH)).collect()
}

fn mount_layers(layers: &[OwnedFd], upper: &Upper, point: &Path) -> Result<OwnedFd, SandboxError> {
    let (options, flags) = options(layers, upper);
    rustix::process::chdir("/proc/self/fd").map_err(refused("enter /proc/self/fd"))?;
    let options = CString::new(options).map_err(|error| SandboxError::Invalid(error.to_string()))?;
    rustix::mount::mount("overlay", point, "overlay", flags, options.as_c_str())
        .map_err(refused("mount the overlay"))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, point, flags).map_err(refused("clone the overlay's mount"))
}

/// What `mount(2)` is told.
fn options(layers: &[OwnedFd], upper: &Upper) -> (String, MountFlags) {
    let mut flags = MountFlags::NODEV;
    let mut names: Vec<String> = layers.iter().map(|layer| layer.as_raw_fd().to_string()).collect();
    let mut tail = String::new();
    for (key, value) in overlay_attributes().options() {
        let _ = match value {
            Some(value) => write!(tail, ",{key}={value}"),
            None => write!(tail, ",{key}"),
        };
    }
    match upper {
        Upper::None => flags |= MountFlags::RDONLY,
        Upper::Directory { volatile, .. } => {
            let [upper, work] = [1, 0].map(|last| names.remove(names.len() - 1 - last));
            let _ = write!(tail, ",upperdir={upper},workdir={work}");
            tail.push_str(if *volatile { ",volatile" } else { "" });
        }
    }
    (format!("lowerdir={}{tail}", names.join(":")), flags)
}

fn open_layer(path: &Path, access: OFlags) -> Result<OwnedFd, SandboxError> {
    let flags = access | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(open(path))
}

fn bind_read_only(path: &Path) -> Result<OwnedFd, SandboxError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(CWD, path, flags).map_err(open(path))?;
    let change = MountChange { read_only: true, no_dev: true, private: true, ..MountChange::default() };
    mounts::restrict(mount, change).map_err(|source| SandboxError::Kernel {
        operation: format!("make {} a read-only root", path.display()),
        source,
    })
}

fn open(path: &Path) -> impl FnOnce(Errno) -> SandboxError + '_ {
    move |source| SandboxError::Open { path: path.to_owned(), source: source.into() }
}

fn refused(operation: &str) -> impl FnOnce(Errno) -> SandboxError + '_ {
    move |source| SandboxError::Kernel { operation: operation.to_owned(), source: io::Error::from(source) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn an_answer_that_is_about_the_mechanism_leads_to_the_next_one() {
        use Mechanism::{Descriptors, MountCall, Names};
        for (mechanism, answer, next) in [
            (Descriptors, Errno::BADF, Some(Names)),
            (Descriptors, Errno::INVAL, Some(Names)),
            (Descriptors, Errno::OPNOTSUPP, Some(MountCall)),
            (Descriptors, Errno::NOSYS, Some(MountCall)),
            (Names, Errno::INVAL, Some(MountCall)),
            (Names, Errno::OPNOTSUPP, Some(MountCall)),
            (Descriptors, Errno::NOENT, None),
            (Descriptors, Errno::PERM, None),
            (Descriptors, Errno::NODEV, None),
            (Names, Errno::LOOP, None),
            (MountCall, Errno::INVAL, None),
        ] {
            assert_eq!(mechanism.after(answer), next, "{mechanism:?} {answer}");
        }
    }

    #[test]
    fn options_of_as_many_layers_as_there_can_be_fit_into_a_page() {
        let layer = File::open("/").unwrap();
        let layers: Vec<OwnedFd> =
            (0..RootFs::LOWERS_MAX + 2).map(|_| layer.try_clone().unwrap().into()).collect();
        let upper = Upper::Directory { upper: "/u".into(), work: "/w".into(), volatile: true };
        // Descriptors of a process that has a thousand others would have one digit more.
        let longest = options(&layers, &upper).0.len() + RootFs::LOWERS_MAX + 2;
        assert!(longest < 4096, "{longest}");
        let (text, _) = options(&layers[..4], &upper);
        let [first, second, third, fourth] = [0, 1, 2, 3].map(|index: usize| layers[index].as_raw_fd());
        assert!(text.starts_with(&format!("lowerdir={first}:{second},")), "{text}");
        assert!(text.contains(&format!(",upperdir={third},workdir={fourth}")), "{text}");
    }
}
