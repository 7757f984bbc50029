//! [`Unpacking`]: one layer becomes a directory that is an overlay's lower (image-spec, *Applying Changesets*).
//!
//! What an entry means is decided by [`OwnTree`]; here it is carried out. Names come from strangers: each placed path
//! is used once, through [`RootDir`] and without following any link, to reach the directory that holds the entry; the
//! entry itself is made by its last component, exclusively, and never followed.
//!
//! A layer that has directories without entries, or hard links to files that it does not have, depends on the layers
//! below: these are asked once, at the end, as a [`MergedTree`](rimg_formats::layer::MergedTree).
//!
//! What cannot be made without privilege (devices, foreign attributes) is left out and counted: the sandbox brings its
//! own `/dev`, and an image that needs the rest says so when it runs.

use std::collections::HashMap;
use std::io::{self, Read};

use rimg_formats::layer::{
    Action, Entry, EntryKind, LayerError, LayerPath, LayerReader, Limits, MergedTree, Mtime, OwnTree, Placed,
};
use rimg_formats::root_dir::{Directory, RootDir, is_xattr_refusal, timestamps};
use rimg_formats::sparse_file::write_sparse;
use rustix::fs::{FileType, Gid, Mode, Uid};
use rustix::io::Errno;

use super::Owners;
use super::source::LayerSource;
use crate::kernel::overlay_attributes;

/// What overlayfs keeps its own notes in. An image that ships such attributes wants to steer the overlay.
const OVERLAY_PREFIXES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The layer cannot be read.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The layers below cannot be read.
    #[error("failed to read the layers below: {0}")]
    Below(#[source] io::Error),
    /// An entry cannot be made.
    #[error("failed to make `{path}`: {source}")]
    Entry {
        /// Its path.
        path: LayerPath,
        /// What the kernel said.
        source: io::Error,
    },
    /// A hard link to something that no layer contains.
    #[error("`{path}` is a hard link to `{target}`, which is no file of this layer or of those below")]
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
    /// Extended attributes that are overlayfs's own or that cannot be had here.
    pub xattrs: u64,
}

/// A layer on its way into an empty directory. The directory is of no use after an error.
pub(super) struct Unpacking<'t> {
    tree: &'t RootDir,
    owners: Owners,
    /// The time of all entries; without one they have their own.
    time: Option<Mtime>,
    skipped: Skipped,
    own: OwnTree,
    /// Directories whose attributes are set last: restrictive modes would keep their contents out.
    directories: Vec<(u32, Entry)>,
    /// Hard links whose target did not exist when they were read.
    later: Vec<(u32, Entry)>,
    /// The directory of the entry before.
    recent: Option<(LayerPath, Directory)>,
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

impl Failure {
    fn at(self, path: LayerPath) -> ApplyError {
        match self {
            Failure::Apply(error) => error,
            // The content of a file, which is read out of the layer while the file is written.
            Failure::Io(source) => match source.downcast::<LayerError>() {
                Ok(layer) => layer.into(),
                Err(source) => ApplyError::Entry { path, source },
            },
        }
    }
}

impl<'t> Unpacking<'t> {
    /// Begins in `tree`, an empty directory. Entries get the time `time`, if it is given, else their own.
    pub(super) fn new(
        tree: &'t RootDir,
        owners: Owners,
        time: Option<Mtime>,
        limits: &Limits,
    ) -> Unpacking<'t> {
        Unpacking {
            tree,
            owners,
            time,
            skipped: Skipped::default(),
            own: OwnTree::new(limits),
            directories: Vec::new(),
            later: Vec::new(),
            recent: None,
        }
    }

    /// Unpacks all entries of `layer`, as far as that can be done without knowing what lies below.
    pub(super) fn entries(&mut self, layer: &mut LayerReader<'_>) -> Result<(), ApplyError> {
        let mut number = 0;
        while let Some(mut entry) = layer.next_entry()? {
            let placed = self.own.place(number, &entry)?;
            entry.path = placed.path.clone();
            let path = entry.path.clone();
            let mut content = layer.content();
            self.entry(number, entry, placed, &mut content).map_err(|error| error.at(path))?;
            // The reader's limit on entries is far below.
            number += 1;
        }
        self.link_own()
    }

    /// Whether the tree depends on what lies below: whether [`Unpacking::finish`] will ask for it.
    pub(super) fn needs_below(&self) -> bool {
        !self.later.is_empty() || self.own.implied().next().is_some()
    }

    /// Makes what depends on the layers below, whose contents `source` has, and sets the attributes of directories.
    pub(super) fn finish(
        mut self,
        below: &MergedTree,
        source: &dyn LayerSource,
    ) -> Result<Skipped, ApplyError> {
        while !self.later.is_empty() {
            let before = self.later.len();
            self.copy_from_below(below, source)?;
            self.link_own()?;
            if self.later.len() == before
                && let Some((_, entry)) = self.later.first()
            {
                return Err(dangling(entry));
            }
        }
        let Unpacking { own, directories, .. } = &mut self;
        directories.retain(|(number, entry)| own.stands(*number, &entry.path));
        let mut directories: Vec<Entry> = directories.drain(..).map(|(_, entry)| entry).collect();
        directories.extend(own.implied().map(|implied| match below.implied(&implied) {
            Some(entry) => Entry { path: implied.path, ..entry.clone() },
            None => Entry::new(implied.path, EntryKind::Directory, 0o755),
        }));
        self.recent = None;
        // The deepest first: a directory that is closed to us is not entered any more.
        directories.sort_by(|left, right| right.path.cmp(&left.path));
        for entry in directories {
            self.directory_attributes(&entry).map_err(|error| error.at(entry.path.clone()))?;
        }
        Ok(self.skipped)
    }

    fn entry(
        &mut self,
        number: u32,
        entry: Entry,
        placed: Placed,
        content: &mut dyn Read,
    ) -> Result<(), Failure> {
        for path in &placed.uncovered {
            self.uncover(path)?;
        }
        if entry.path.is_root() {
            if entry.kind == EntryKind::Directory {
                self.directories.push((number, entry));
            }
            return Ok(());
        }
        let name = entry.path.split_name().1.to_vec();
        match placed.action {
            Action::Nothing => {}
            Action::Make { replace } => {
                self.clear(&entry.path, replace)?;
                self.make(&entry, content)?;
            }
            Action::Directory { exists, replace, opaque: hides } => {
                self.clear(&entry.path, replace)?;
                let parent = self.holder(&entry.path)?;
                if !exists {
                    parent.create_dir(&name, 0o700)?;
                }
                if hides {
                    parent.set_xattr(&name, opaque(), b"y")?;
                }
                self.directories.push((number, entry));
            }
            Action::Link { target, replace, .. } => {
                self.clear(&entry.path, replace)?;
                self.link(&entry.path, &target)?;
            }
            Action::LinkLater { replace, .. } => {
                self.clear(&entry.path, replace)?;
                self.later.push((number, entry));
            }
            Action::Whiteout => {
                let parent = self.holder(&entry.path)?;
                parent.make_node(&name, FileType::CharacterDevice, 0, 0, 0)?;
                // Empty: "copied up, but from where is unknown".
                parent.set_own_xattr(overlay_attributes().origin(), b"")?;
            }
            Action::Opaque => {
                // The marker may be all that the layer says of the directory.
                self.tree.mkdir_all(&entry.path)?;
                self.holder(&entry.path)?.set_xattr(&name, opaque(), b"y")?;
            }
        }
        Ok(())
    }

    /// The directory that holds `path`, made if need be.
    fn holder(&mut self, path: &LayerPath) -> io::Result<&Directory> {
        let parent = path.parent().unwrap_or_default();
        let directory = match self.recent.take() {
            Some((recent, directory)) if recent == parent => directory,
            _ => self.tree.mkdir_all(&parent)?,
        };
        Ok(&self.recent.insert((parent, directory)).1)
    }

    /// Removes what the layer has at `path`, if it is to be replaced.
    fn clear(&mut self, path: &LayerPath, replace: bool) -> io::Result<()> {
        if replace {
            self.holder(path)?.remove(path.split_name().1)?;
        }
        Ok(())
    }

    /// Makes a directory of a whiteout, because something of the same layer lies below it.
    fn uncover(&mut self, path: &LayerPath) -> io::Result<()> {
        let name = path.split_name().1;
        let parent = self.holder(path)?;
        parent.remove(name)?;
        parent.create_dir(name, 0o700)?;
        parent.set_xattr(name, opaque(), b"y")
    }

    /// Makes anything but directories, hard links and markers.
    fn make(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), Failure> {
        let name = entry.path.split_name().1;
        let parent = self.holder(&entry.path)?;
        let made = match &entry.kind {
            EntryKind::Regular { size } => {
                write_sparse(&parent.create_file(name, 0o600)?, content, *size)?;
                true
            }
            EntryKind::Symlink { target } => {
                parent.symlink(name, target)?;
                true
            }
            EntryKind::Fifo => {
                parent.make_node(name, FileType::Fifo, 0o600, 0, 0)?;
                true
            }
            EntryKind::CharDevice { major, minor } => {
                device(parent, name, FileType::CharacterDevice, *major, *minor)?
            }
            EntryKind::BlockDevice { major, minor } => {
                device(parent, name, FileType::BlockDevice, *major, *minor)?
            }
            _ => true,
        };
        if !made {
            self.skipped.devices += 1;
            return Ok(());
        }
        self.attributes(entry)
    }

    fn link(&mut self, path: &LayerPath, target: &LayerPath) -> io::Result<()> {
        let (source, source_name) = self.tree.parent_of(target)?;
        let linked = self.holder(path)?.hardlink(path.split_name().1, &source, source_name);
        match linked {
            // A device that was left out.
            Err(error) if error.kind() == io::ErrorKind::NotFound && source.stat(source_name).is_err() => {
                self.skipped.devices += 1;
                Ok(())
            }
            linked => linked,
        }
    }

    /// Makes those of the later links whose target is a file of the layer by now. Links to links wait for the path that
    /// they name, so that a chain costs what its links do, in whatever order they stand.
    fn link_own(&mut self) -> Result<(), ApplyError> {
        let mut ready = Vec::new();
        let mut waiting: HashMap<LayerPath, Vec<(u32, Entry)>> = HashMap::new();
        for (number, entry) in std::mem::take(&mut self.later) {
            let EntryKind::Hardlink { target } = &entry.kind else { continue };
            if !self.own.stands(number, &entry.path) {
                continue;
            }
            match self.own.link_target(target) {
                Some(target) if self.is_made(&target) => ready.push((entry.path, target)),
                Some(target) => waiting.entry(target).or_default().push((number, entry)),
                None => self.later.push((number, entry)),
            }
        }
        while let Some((path, target)) = ready.pop() {
            self.link(&path, &target).map_err(|error| Failure::Io(error).at(path.clone()))?;
            let next = waiting.remove(&path).unwrap_or_default();
            ready.extend(next.into_iter().map(|(_, entry)| (entry.path, path.clone())));
        }
        self.later.extend(waiting.into_values().flatten());
        // Whatever the order of a map: the first of its tar is copied, and is the one that an error names.
        self.later.sort_by_key(|(number, _)| *number);
        Ok(())
    }

    fn is_made(&self, path: &LayerPath) -> bool {
        self.tree.parent_of(path).is_ok_and(|(parent, name)| parent.stat(name).is_ok())
    }

    /// Makes those of the later links whose target is a file of the layers below: a copy of each such file, and links to
    /// the copy. A layer of many links to one large file takes no more room than the file.
    fn copy_from_below(&mut self, below: &MergedTree, source: &dyn LayerSource) -> Result<(), ApplyError> {
        // By the file's own place: an upper layer may have another one at the same path.
        let mut copies: HashMap<(Option<usize>, LayerPath), LayerPath> = HashMap::new();
        for (number, entry) in std::mem::take(&mut self.later) {
            let EntryKind::Hardlink { target } = &entry.kind else { continue };
            if self.own.link_target(target).is_some() {
                self.later.push((number, entry));
                continue;
            }
            let node = below.link_target(target).ok_or_else(|| dangling(&entry))?;
            let found = node.entry.ok_or_else(|| dangling(&entry))?;
            let origin = (node.layer, found.path().clone());
            if let Some(copy) = copies.get(&origin) {
                match self.link(&entry.path, copy) {
                    // A file system has so many names for a file: the next ones are those of another copy.
                    Err(error) if Errno::from_io_error(&error) == Some(Errno::MLINK) => {}
                    linked => {
                        linked.map_err(|error| Failure::Io(error).at(entry.path.clone()))?;
                        continue;
                    }
                }
            }
            copies.insert(origin, entry.path.clone());
            let copy = Entry { path: entry.path.clone(), ..found.entry.clone() };
            let mut content: Box<dyn Read> = match copy.kind {
                EntryKind::Regular { .. } => {
                    Box::new(below.read_file(node, |digest| source.blob(digest)).map_err(ApplyError::Below)?)
                }
                _ => Box::new(io::empty()),
            };
            self.make(&copy, &mut content).map_err(|error| error.at(copy.path.clone()))?;
        }
        Ok(())
    }

    /// Owner, attributes, mode and time, in the order in which one does not undo the other.
    fn attributes(&mut self, entry: &Entry) -> Result<(), Failure> {
        let (uid, gid) = self.owner(entry)?;
        let (owners, time) = (self.owners, self.time.unwrap_or(entry.mtime));
        let name = entry.path.split_name().1;
        let parent = self.holder(&entry.path)?;
        let owned = parent.set_owner(name, uid, gid);
        owner_result(owned, owners, entry)?;
        let mut skipped = 0;
        for (key, value) in &entry.xattrs {
            if OVERLAY_PREFIXES.iter().any(|prefix| key.starts_with(prefix)) {
                skipped += 1;
                continue;
            }
            match parent.set_xattr(name, key, value) {
                Err(error) if is_xattr_refusal(key, &error) => skipped += 1,
                result => result?,
            }
        }
        if !matches!(entry.kind, EntryKind::Symlink { .. }) {
            parent.set_mode(name, entry.mode)?;
        }
        parent.set_mtime(name, time)?;
        self.skipped.xattrs += skipped;
        Ok(())
    }

    fn directory_attributes(&mut self, entry: &Entry) -> Result<(), Failure> {
        if entry.path.is_root() { self.root_attributes(entry) } else { self.attributes(entry) }
    }

    /// The same for the tree itself, which has no name in a directory of ours.
    fn root_attributes(&mut self, entry: &Entry) -> Result<(), Failure> {
        let (uid, gid) = self.owner(entry)?;
        let owned = rustix::fs::fchown(self.tree, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        owner_result(owned.map_err(io::Error::from), self.owners, entry)?;
        // Attributes of the root are overlayfs's in the merged view: it shows those of the topmost layer.
        self.skipped.xattrs += entry.xattrs.len() as u64;
        rustix::fs::fchmod(self.tree, Mode::from_raw_mode(entry.mode)).map_err(io::Error::from)?;
        set_times(self.tree, self.time.unwrap_or(entry.mtime))
    }

    fn owner(&self, entry: &Entry) -> Result<(u32, u32), ApplyError> {
        match (self.owners, u32::try_from(entry.uid), u32::try_from(entry.gid)) {
            (Owners::Squash, ..) => Ok((0, 0)),
            // The largest number means "leave as it is" to chown.
            (_, Ok(uid), Ok(gid)) if uid < u32::MAX && gid < u32::MAX => Ok((uid, gid)),
            _ => Err(foreign(entry)),
        }
    }
}

fn set_times(tree: &RootDir, mtime: Mtime) -> Result<(), Failure> {
    Ok(rustix::fs::futimens(tree, &timestamps(mtime)).map_err(io::Error::from)?)
}

/// What a chown comes to: in a namespace of a single id there is nobody to give a file to.
fn owner_result(result: io::Result<()>, owners: Owners, entry: &Entry) -> Result<(), Failure> {
    let Err(error) = result else { return Ok(()) };
    match (owners, Errno::from_io_error(&error)) {
        (Owners::Squash, Some(Errno::PERM | Errno::INVAL)) => Ok(()),
        (Owners::Keep, Some(Errno::INVAL)) => Err(foreign(entry).into()),
        _ => Err(error.into()),
    }
}

fn dangling(entry: &Entry) -> ApplyError {
    let target = match &entry.kind {
        EntryKind::Hardlink { target } => target.clone(),
        _ => LayerPath::root(),
    };
    ApplyError::LinkTarget { path: entry.path.clone(), target }
}

fn foreign(entry: &Entry) -> ApplyError {
    ApplyError::Owner { path: entry.path.clone(), uid: entry.uid, gid: entry.gid }
}

/// Makes a device; false when it was left out.
fn device(parent: &Directory, name: &[u8], kind: FileType, major: u32, minor: u32) -> io::Result<bool> {
    // Character device 0/0 is overlayfs's whiteout; an image cannot mean it as a device, there is none.
    if kind == FileType::CharacterDevice && (major, minor) == (0, 0) {
        return Ok(false);
    }
    match parent.make_node(name, kind, 0o600, major, minor) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        result => result.map(|()| true),
    }
}
