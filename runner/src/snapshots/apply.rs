//! [`apply`]: unpacks one layer into a directory that becomes an overlay's lower (image-spec, *Applying Changesets*).
//!
//! Names come from strangers. Each is used as a path once, through [`RootDir`], to reach the directory that holds the
//! entry; the entry itself is made by its last component, exclusively, and never followed. A directory reached through
//! a link of the same layer is followed inside the tree, as a process in the container would.
//!
//! What cannot be made without privilege (devices, foreign attributes) is left out and counted: the sandbox brings its
//! own `/dev`, and an image that needs the rest says so when it runs.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use rimg_formats::layer::{Entry, EntryKind, LayerError, LayerPath, LayerReader, Mtime};
use rimg_formats::root_dir::{Directory, RootDir, timestamps};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::Owners;
use crate::kernel::overlay_attributes;

/// What overlayfs keeps its own notes in. An image that ships such attributes wants to steer the overlay.
const OVERLAY_PREFIXES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// Bytes copied at once, and the size of holes that are kept as holes.
const COPY_BYTES: usize = 128 << 10;

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The layer cannot be read.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// An entry cannot be made.
    #[error("failed to make `{path}`: {source}")]
    Entry {
        /// Its path.
        path: LayerPath,
        /// What the kernel said.
        source: io::Error,
    },
    /// A hard link to something that this layer does not contain.
    #[error("`{path}` is a hard link to `{target}`, which is not in the same layer")]
    LinkTarget {
        /// The link.
        path: LayerPath,
        /// What it should be another name of.
        target: LayerPath,
    },
    /// An id that the user namespace does not have.
    #[error(
        "`{path}` belongs to {uid}:{gid}, ids that this user namespace does not have: more subordinate ids in /etc/subuid and /etc/subgid are needed"
    )]
    Owner {
        /// The path.
        path: LayerPath,
        /// Its owner.
        uid: u64,
        /// Its group.
        gid: u64,
    },
}

/// What was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Device nodes that need privilege, or that overlayfs would take for a whiteout.
    pub devices: u64,
    /// Extended attributes that are overlayfs's own or need privilege.
    pub xattrs: u64,
}

struct Applier<'t> {
    tree: &'t RootDir,
    owners: Owners,
    time: Option<Mtime>,
    skipped: Skipped,
    /// Directories whose attributes are set last: restrictive modes would keep their contents out.
    directories: Vec<Entry>,
    /// Paths that whiteouts of this layer removed, for directories that come after them.
    whiteouts: HashSet<LayerPath>,
}

/// Unpacks all entries of `layer` into `tree`, an empty directory. They get the time `time`, if it is given, else their
/// own.
///
/// # Errors
/// See [`ApplyError`]. The directory is of no use then.
pub fn apply(
    layer: &mut LayerReader<'_>,
    tree: &RootDir,
    owners: Owners,
    time: Option<Mtime>,
) -> Result<Skipped, ApplyError> {
    let mut applier = Applier {
        tree,
        owners,
        time,
        skipped: Skipped::default(),
        directories: Vec::new(),
        whiteouts: HashSet::new(),
    };
    while let Some(entry) = layer.next_entry()? {
        let path = entry.path.clone();
        applier.entry(entry, layer).map_err(|error| match error {
            Failure::Apply(error) => error,
            Failure::Io(source) => ApplyError::Entry { path, source },
        })?;
    }
    applier.finish()
}

/// Marks a directory that hides what lies below it in lower layers.
pub(super) fn opaque() -> &'static [u8] {
    overlay_attributes().opaque()
}

/// An error of one entry before its path is added.
enum Failure {
    Apply(ApplyError),
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

impl From<ApplyError> for Failure {
    fn from(error: ApplyError) -> Failure {
        Failure::Apply(error)
    }
}

impl Applier<'_> {
    fn entry(&mut self, entry: Entry, layer: &mut LayerReader<'_>) -> Result<(), Failure> {
        if let EntryKind::OpaqueMarker = entry.kind {
            return Ok(self.opaque(&entry.path)?);
        }
        if entry.path.is_root() {
            self.directories.push(entry);
            return Ok(());
        }
        let (parent, name) = self.holder(&entry.path)?;
        match &entry.kind {
            EntryKind::Whiteout => return self.whiteout(&entry, &parent, &name),
            EntryKind::Directory => return self.directory(entry, &parent, &name),
            _ => parent.remove(&name)?,
        }
        match &entry.kind {
            EntryKind::Regular { size } => {
                let file = parent.create_file(&name, 0o600)?;
                fill(&file, &mut layer.content(), *size)?;
            }
            EntryKind::Symlink { target } => parent.symlink(&name, target)?,
            EntryKind::Hardlink { target } => return self.hardlink(&entry.path, &parent, &name, target),
            EntryKind::Fifo => parent.make_node(&name, FileType::Fifo, 0o600, 0, 0)?,
            EntryKind::CharDevice { major, minor } => {
                if !self.device(&parent, &name, FileType::CharacterDevice, *major, *minor)? {
                    return Ok(());
                }
            }
            EntryKind::BlockDevice { major, minor } => {
                if !self.device(&parent, &name, FileType::BlockDevice, *major, *minor)? {
                    return Ok(());
                }
            }
            EntryKind::Directory | EntryKind::Whiteout | EntryKind::OpaqueMarker => {}
        }
        self.attributes(&entry, &parent, &name)
    }

    /// The directory that holds `path`, made if need be, and the name in it.
    fn holder(&self, path: &LayerPath) -> io::Result<(Directory, Vec<u8>)> {
        let name = path.file_name().unwrap_or_default().to_vec();
        let parent = path.parent().unwrap_or_else(LayerPath::root);
        Ok((self.make_directory(&parent)?, name))
    }

    fn make_directory(&self, path: &LayerPath) -> io::Result<Directory> {
        match self.tree.mkdir_all(path) {
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::LOOP | Errno::NOTDIR)) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let inside = self.tree.open_in_root(path.as_bytes(), flags, Mode::empty());
                inside.map(Directory::from_fd).map_err(|_| error)
            }
            result => result,
        }
    }

    fn opaque(&self, path: &LayerPath) -> io::Result<()> {
        if path.is_root() {
            // The root of a lower directory cannot be opaque to overlayfs by an attribute; no image does this.
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the root of a layer cannot hide all layers below",
            ));
        }
        self.make_directory(path)?;
        let (parent, name) = self.holder(path)?;
        parent.set_xattr(&name, opaque(), b"y")
    }

    /// A whiteout removes from the layers below only: what this layer itself put there stays.
    fn whiteout(&mut self, entry: &Entry, parent: &Directory, name: &[u8]) -> Result<(), Failure> {
        match parent.stat(name) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                parent.set_xattr(name, opaque(), b"y")?
            }
            Ok(_) => {}
            Err(_) => {
                parent.make_node(name, FileType::CharacterDevice, 0, 0, 0)?;
                self.whiteouts.insert(entry.path.clone());
            }
        }
        Ok(())
    }

    fn directory(&mut self, entry: Entry, parent: &Directory, name: &[u8]) -> Result<(), Failure> {
        let exists =
            parent.stat(name).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if !exists {
            parent.remove(name)?;
            parent.create_dir(name, 0o700)?;
        }
        if self.whiteouts.remove(&entry.path) {
            parent.set_xattr(name, opaque(), b"y")?;
        }
        self.directories.push(entry);
        Ok(())
    }

    fn hardlink(
        &self,
        path: &LayerPath,
        parent: &Directory,
        name: &[u8],
        target: &LayerPath,
    ) -> Result<(), Failure> {
        let missing = || ApplyError::LinkTarget { path: path.clone(), target: target.clone() };
        let (source, source_name) = self.tree.parent_of(target).map_err(|_| missing())?;
        let stat = source.stat(source_name).map_err(|_| missing())?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(missing().into());
        }
        Ok(parent.hardlink(name, &source, source_name)?)
    }

    /// Makes a device; false when it was left out.
    fn device(
        &mut self,
        parent: &Directory,
        name: &[u8],
        kind: FileType,
        major: u32,
        minor: u32,
    ) -> io::Result<bool> {
        // Character device 0/0 is overlayfs's whiteout; an image cannot mean it as a device, there is none.
        let whiteout = kind == FileType::CharacterDevice && (major, minor) == (0, 0);
        let made = match whiteout {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => parent.make_node(name, kind, 0o600, major, minor),
        };
        match made {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.skipped.devices += 1;
                Ok(false)
            }
            result => result.map(|()| true),
        }
    }

    /// Owner, attributes, mode and time, in the order in which one does not undo the other.
    fn attributes(&mut self, entry: &Entry, parent: &Directory, name: &[u8]) -> Result<(), Failure> {
        let (uid, gid) = self.owner(entry)?;
        match parent.set_owner(name, uid, gid) {
            Err(_) if self.owners == Owners::Squash => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(foreign(entry).into()),
            result => result?,
        }
        for (key, value) in &entry.xattrs {
            let overlays_own = OVERLAY_PREFIXES.iter().any(|prefix| key.starts_with(prefix));
            if overlays_own || parent.set_xattr(name, key, value).is_err() {
                self.skipped.xattrs += 1;
            }
        }
        if !matches!(entry.kind, EntryKind::Symlink { .. }) {
            parent.set_mode(name, entry.mode)?;
        }
        Ok(parent.set_mtime(name, self.time.unwrap_or(entry.mtime))?)
    }

    /// The same for the tree itself, which has no name in a directory of ours.
    fn root_attributes(&mut self, entry: &Entry) -> Result<(), Failure> {
        let (uid, gid) = self.owner(entry)?;
        let owner = (Uid::from_raw(uid), Gid::from_raw(gid));
        match rustix::fs::fchown(self.tree, Some(owner.0), Some(owner.1)) {
            Err(_) if self.owners == Owners::Squash => {}
            Err(Errno::INVAL) => return Err(foreign(entry).into()),
            result => result.map_err(io::Error::from)?,
        }
        // Attributes of the root are overlayfs's in the merged view: it shows those of the topmost layer.
        self.skipped.xattrs += entry.xattrs.len() as u64;
        rustix::fs::fchmod(self.tree, Mode::from_raw_mode(entry.mode)).map_err(io::Error::from)?;
        Ok(rustix::fs::futimens(self.tree, &timestamps(self.time.unwrap_or(entry.mtime)))
            .map_err(io::Error::from)?)
    }

    fn owner(&self, entry: &Entry) -> Result<(u32, u32), ApplyError> {
        match (self.owners, u32::try_from(entry.uid), u32::try_from(entry.gid)) {
            (Owners::Squash, ..) => Ok((0, 0)),
            // The largest number means "leave as it is" to chown.
            (_, Ok(uid), Ok(gid)) if uid < u32::MAX && gid < u32::MAX => Ok((uid, gid)),
            _ => Err(foreign(entry)),
        }
    }

    /// Sets the attributes of directories, the deepest first, since each change in one moves its time.
    fn finish(mut self) -> Result<Skipped, ApplyError> {
        let mut directories = std::mem::take(&mut self.directories);
        directories.reverse();
        for entry in directories {
            let path = entry.path.clone();
            let result = match path.is_root() {
                true => self.root_attributes(&entry),
                false => match self.holder(&path) {
                    // A later entry of the same path may have replaced the directory.
                    Ok((parent, name)) if is_directory(&parent, &name) => {
                        self.attributes(&entry, &parent, &name)
                    }
                    Ok(_) => Ok(()),
                    Err(error) => Err(Failure::Io(error)),
                },
            };
            result.map_err(|error| match error {
                Failure::Apply(error) => error,
                Failure::Io(source) => ApplyError::Entry { path, source },
            })?;
        }
        Ok(self.skipped)
    }
}

fn is_directory(parent: &Directory, name: &[u8]) -> bool {
    parent.stat(name).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn foreign(entry: &Entry) -> ApplyError {
    ApplyError::Owner { path: entry.path.clone(), uid: entry.uid, gid: entry.gid }
}

/// Writes `size` bytes of `content`; long runs of zeros stay holes.
fn fill(file: &File, content: &mut impl Read, size: u64) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES.min(usize::try_from(size).unwrap_or(COPY_BYTES)).max(1)];
    let mut position = 0;
    let mut ends_in_hole = false;
    while position < size {
        let mut filled = 0;
        while filled < buffer.len() && position + (filled as u64) < size {
            match content.read(&mut buffer[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        ends_in_hole = filled == COPY_BYTES && buffer[..filled].iter().all(|byte| *byte == 0);
        if !ends_in_hole {
            file.write_all_at(&buffer[..filled], position)?;
        }
        position += filled as u64;
    }
    if ends_in_hole { file.set_len(size) } else { Ok(()) }
}
