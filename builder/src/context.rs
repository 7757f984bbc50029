//! [`DiskTree`]: a directory on disk as a source of files, read in place. It serves as build context (with the rules
//! of `.dockerignore`, owners dropped) and as base directory (everything, with owners).
//!
//! The directory is opened once; below it every path goes through `openat2` with `RESOLVE_BENEATH` and
//! `RESOLVE_NO_SYMLINKS`, so that a link planted while the build runs leads nowhere. Links are followed by
//! [`crate::source_tree::land`], which knows the tree's root.

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rimg_formats::layer::{EntryKind, LayerPath, Mtime};
use rimg_formats::store::cache::FileStamp;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};

use crate::ignore::{IgnorePatterns, Inherited};
use crate::source_tree::{Content, FileIdentity, SourceNode, SourceTree};
use crate::stat_cache::stamp_of;

/// A thread costs as much as looking at some dozens of files; below this many it gains little.
const NODES_PER_THREAD_MIN: usize = 512;

/// What owners on disk mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owners {
    /// Nothing, as in a build context: they depend on who checked it out.
    Dropped,
    /// They are the image's. One user and one group may stand for root, because root's files cannot be had: those of
    /// an ordinary user who runs the build, and in a user namespace those that unknown owners are shown as.
    Kept {
        /// The user and group that stand for root.
        as_root: Option<(u32, u32)>,
    },
}

/// A directory on disk as a source tree.
#[derive(Clone, Debug)]
pub(crate) struct DiskTree(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: OwnedFd,
    path: PathBuf,
    name: String,
    owners: Owners,
    ignore: Option<IgnorePatterns>,
}

/// A regular file or directory of a [`DiskTree`], as it was when it was looked at.
#[derive(Clone, Debug)]
pub(crate) struct DiskFile {
    tree: DiskTree,
    path: LayerPath,
    /// Identity and times then.
    pub(crate) stamp: FileStamp,
}

impl DiskTree {
    /// Opens `directory`; `name` is what messages call it.
    pub(crate) fn open(directory: &Path, name: &str, owners: Owners) -> io::Result<DiskTree> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(directory, flags, Mode::empty())?;
        let inner = Inner { root, path: directory.to_owned(), name: name.to_owned(), owners, ignore: None };
        Ok(DiskTree(Arc::new(inner)))
    }

    /// The same tree without what `ignore` excludes.
    pub(crate) fn with_ignore(self, ignore: IgnorePatterns) -> DiskTree {
        let inner = Arc::into_inner(self.0).expect("a tree gets its rules before it is shared");
        DiskTree(Arc::new(Inner { ignore: Some(ignore), ..inner }))
    }

    /// The directory, as it was named.
    pub(crate) fn directory(&self) -> &Path {
        &self.0.path
    }

    /// Whether everything at `path` and below it belongs to root.
    pub(crate) fn is_roots(&self, path: &LayerPath) -> io::Result<bool> {
        let of_root = |stat: &Stat| (stat.st_uid, stat.st_gid) == (0, 0);
        let is_directory = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let top = rustix::fs::fstat(self.open_beneath(path, OFlags::PATH)?)?;
        let mut waiting = Vec::from_iter(is_directory(&top).then(|| path.clone()));
        let mut all = of_root(&top);
        while let Some(path) = waiting.pop().filter(|_| all) {
            let directory = self.open_beneath(&path, OFlags::RDONLY | OFlags::DIRECTORY)?;
            for entry in Dir::read_from(&directory)? {
                let entry = entry?;
                let name = entry.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                all &= of_root(&stat);
                if is_directory(&stat) {
                    waiting.push(path.join(name.to_bytes()).map_err(io::Error::other)?);
                }
            }
        }
        Ok(all)
    }

    /// Opens what lies at `path`, never following a link and never leaving the tree.
    pub(crate) fn open_beneath(&self, path: &LayerPath, flags: OFlags) -> io::Result<OwnedFd> {
        let relative = if path.is_root() { Path::new(".") } else { path.as_path() };
        // RESOLVE_NO_SYMLINKS makes every component a real directory at the moment of opening, so what was looked at
        // and what is read cannot be told apart by a link planted in between.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let opened = rustix::fs::openat2(&self.0.root, relative, flags, Mode::empty(), resolve);
        opened.map_err(|errno| self.at(path, errno.into()))
    }

    /// Adds the place to an error.
    fn at(&self, path: &LayerPath, error: io::Error) -> io::Error {
        io::Error::new(
            error.kind(),
            format!("failed to read {}: {}", self.place(path), without_number(&error)),
        )
    }

    /// Where `path` is on this machine, for messages: the ends of it, if it is very long.
    fn place(&self, path: &LayerPath) -> String {
        let shown = self.0.path.join(path.as_path()).display().to_string();
        let count = shown.chars().count();
        if count <= PLACE_CHARS_MAX {
            return format!("`{shown}`");
        }
        let start: String = shown.chars().take(PLACE_CHARS_MAX / 2).collect();
        let end: String = shown.chars().skip(count - PLACE_CHARS_MAX / 2).collect();
        format!("`{start}…{end}` ({} bytes)", shown.len())
    }

    /// What the directory at `path` hands down to what is in it.
    fn inherited_from(&self, path: &LayerPath) -> Inherited {
        let ignore = self.0.ignore.as_ref();
        ignore
            .map(|ignore| ignore.inherited_from(&String::from_utf8_lossy(path.as_bytes())))
            .unwrap_or_default()
    }

    /// Whether `path`, whose directory hands `above` down, is shown.
    fn shown(&self, path: &LayerPath, is_directory: bool, above: &Inherited) -> Shown {
        let Some(ignore) = self.0.ignore.as_ref().filter(|_| !path.is_root()) else { return Shown::Yes };
        let text = String::from_utf8_lossy(path.as_bytes());
        match ignore.matches(&text, above) {
            false => Shown::Yes,
            true if is_directory && ignore.may_match_below(&text, true) => Shown::OnTheWay,
            true => Shown::No,
        }
    }

    /// Whether something in the excluded directory at `path` is included again.
    fn holds_something(&self, path: &LayerPath) -> io::Result<bool> {
        let mut waiting = vec![path.clone()];
        while let Some(directory) = waiting.pop() {
            for (name, node) in self.children(&directory)? {
                if !node.excluded {
                    return Ok(true);
                }
                waiting.push(directory.join(&name).map_err(io::Error::other)?);
            }
        }
        Ok(false)
    }

    /// The node of the name `name` in the open directory `parent`; `None` when there is none.
    fn node(&self, parent: &OwnedFd, name: &OsStr, path: &LayerPath) -> io::Result<Option<SourceNode>> {
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(self.at(path, errno.into())),
        };
        let Some(kind) = entry_kind(parent, name, &stat).map_err(|error| self.at(path, error))? else {
            return Ok(None);
        };
        let file = || DiskFile { tree: self.clone(), path: path.clone(), stamp: stamp_of(&stat) };
        let (content, unread) = match kind {
            EntryKind::Regular { .. } => (Content::Disk(file()), Some(file())),
            EntryKind::Directory => (Content::None, Some(file())),
            _ => (Content::None, None),
        };
        let identity = FileIdentity::Disk { device: stat.st_dev, inode: stat.st_ino };
        let shared = stat.st_nlink > 1 && kind != EntryKind::Directory;
        Ok(Some(SourceNode {
            mode: stat.st_mode & 0o7777,
            owner: self.owner(&stat),
            mtime: Mtime { secs: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) },
            xattrs: BTreeMap::new(),
            unread,
            content,
            excluded: false,
            identity: shared.then_some(identity),
            kind,
        }))
    }

    /// The nodes of names in an open directory, on all threads where there are many. A file that vanished since the
    /// directory was read was not there.
    fn nodes(&self, parent: &OwnedFd, names: &[Name]) -> io::Result<Vec<(Vec<u8>, SourceNode)>> {
        let look = |part: &[Name]| -> io::Result<Vec<(Vec<u8>, SourceNode)>> {
            let node = |Name { name, path, excluded }: &Name| {
                let node = self.node(parent, OsStr::from_bytes(name), path);
                let excluded = *excluded;
                node.map(|node| node.map(|node| (name.clone(), SourceNode { excluded, ..node }))).transpose()
            };
            part.iter().filter_map(node).collect()
        };
        let share = names.len().div_ceil(processors()).max(NODES_PER_THREAD_MIN);
        let (own, others) = names.split_at(share.min(names.len()));
        std::thread::scope(|scope| {
            let workers: Vec<_> = others.chunks(share).map(|part| scope.spawn(move || look(part))).collect();
            let mut nodes = look(own)?;
            for worker in workers {
                nodes.extend(worker.join().expect("looking at files does not panic")?);
            }
            Ok(nodes)
        })
    }

    fn owner(&self, stat: &Stat) -> Option<(u64, u64)> {
        let Owners::Kept { as_root } = self.0.owners else { return None };
        let mapped = |id: u32, own: Option<u32>| if Some(id) == own { 0 } else { u64::from(id) };
        let (uid, gid) = (as_root.map(|(uid, _)| uid), as_root.map(|(_, gid)| gid));
        Some((mapped(stat.st_uid, uid), mapped(stat.st_gid, gid)))
    }
}

impl SourceTree for DiskTree {
    fn lookup(&self, path: &LayerPath) -> io::Result<Option<SourceNode>> {
        let (parent, name) = match path.parent() {
            Some(parent) => (parent, path.file_name().unwrap_or(b".")),
            None => (LayerPath::root(), &b"."[..]),
        };
        let opened = match self.open_beneath(&parent, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(opened) => opened,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let Some(node) = self.node(&opened, OsStr::from_bytes(name), path)? else { return Ok(None) };
        Ok(match self.shown(path, node.is_directory(), &self.inherited_from(&parent)) {
            Shown::Yes => Some(node),
            Shown::OnTheWay if self.holds_something(path)? => Some(SourceNode { excluded: true, ..node }),
            Shown::OnTheWay | Shown::No => None,
        })
    }

    fn children(&self, path: &LayerPath) -> io::Result<Vec<(Vec<u8>, SourceNode)>> {
        let directory = self.open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let above = self.inherited_from(path);
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory).map_err(|errno| self.at(path, errno.into()))? {
            let entry = entry.map_err(|errno| self.at(path, errno.into()))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let child = path.join(name.to_bytes()).map_err(|error| self.at(path, io::Error::other(error)))?;
            let is_directory = match entry.file_type() {
                // Some file systems do not tell (readdir(3)).
                FileType::Unknown => is_directory_at(&directory, name),
                known => known == FileType::Directory,
            };
            let excluded = match self.shown(&child, is_directory, &above) {
                Shown::No => continue,
                shown => shown == Shown::OnTheWay,
            };
            names.push(Name { name: name.to_bytes().to_vec(), path: child, excluded });
        }
        let mut children = self.nodes(&directory, &names)?;
        children.sort_unstable_by(|left, right| left.0.cmp(&right.0));
        Ok(children)
    }

    fn describe(&self) -> String {
        self.0.name.clone()
    }

    fn explain_missing(&self, path: &LayerPath) -> Option<String> {
        let found = rustix::fs::fstat(self.open_beneath(path, OFlags::PATH).ok()?).ok()?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Socket {
            return Some(format!("`{path}` is a socket, which images cannot hold"));
        }
        let excluded = self.0.ignore.as_ref()?.matches_from_root(&String::from_utf8_lossy(path.as_bytes()));
        excluded.then(|| format!("`{path}` exists, but .dockerignore excludes it"))
    }

    fn is_cut_out(&self) -> bool {
        true
    }
}

/// Whether the rules of `.dockerignore` let a path be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Yes,
    /// A directory that is excluded, but may hold something that is not.
    OnTheWay,
    No,
}

/// A name in a directory that is to be looked at.
struct Name {
    name: Vec<u8>,
    path: LayerPath,
    excluded: bool,
}

fn is_directory_at(parent: &OwnedFd, name: &CStr) -> bool {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// A directory that is held open while the attributes of what is in it are read.
#[derive(Default)]
pub(crate) struct OpenParent(Option<(DiskTree, LayerPath, OwnedFd)>);

impl OpenParent {
    fn of(&mut self, file: &DiskFile) -> io::Result<&OwnedFd> {
        let parent = file.path.parent().unwrap_or_default();
        let held =
            self.0.take().filter(|(tree, path, _)| Arc::ptr_eq(&tree.0, &file.tree.0) && *path == parent);
        let held = match held {
            Some(held) => held,
            None => {
                let opened = file.tree.open_beneath(&parent, OFlags::PATH | OFlags::DIRECTORY)?;
                (file.tree.clone(), parent, opened)
            }
        };
        Ok(&self.0.insert(held).2)
    }
}

impl DiskFile {
    /// Where it is, for messages.
    pub(crate) fn place(&self) -> String {
        self.tree.place(&self.path)
    }

    /// The extended attributes that images keep. `parent` is handed from file to file: neighbours share it.
    pub(crate) fn xattrs(&self, parent: &mut OpenParent) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let name = self.path.file_name().unwrap_or(b".");
        let read = parent.of(self).and_then(|parent| read_xattrs(parent, OsStr::from_bytes(name)));
        match read {
            // What has vanished since has none; a file's content is missed where it is read.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(BTreeMap::new())
            }
            other => other.map_err(|error| self.tree.at(&self.path, error)),
        }
    }

    /// Opens the file for reading. What is read may differ from what was looked at: compare [`DiskFile::stamp`]s.
    pub(crate) fn open(&self) -> io::Result<File> {
        // O_NONBLOCK keeps a FIFO that took the file's place from blocking; on regular files it means nothing.
        let opened =
            self.tree.open_beneath(&self.path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let stat = rustix::fs::fstat(&opened)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            let changed = io::Error::other("it is no regular file any more");
            return Err(self.tree.at(&self.path, changed));
        }
        Ok(File::from(opened))
    }
}

/// Longest path that messages show whole: the longest name of a file, and some folders.
const PLACE_CHARS_MAX: usize = 300;

/// The system's words for an error, without its number.
pub(crate) fn without_number(error: &io::Error) -> String {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(number) => text.trim_end_matches(&format!(" (os error {number})")).to_owned(),
        None => text,
    }
}

/// How many threads work at once. Asked for once: the answer is in files of cgroups, and folders are many.
pub(crate) fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// What a stat result is in a layer's words; `None` for sockets, which images cannot hold.
fn entry_kind(parent: &OwnedFd, name: &OsStr, stat: &Stat) -> io::Result<Option<EntryKind>> {
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => EntryKind::Directory,
        FileType::RegularFile => EntryKind::Regular { size: u64::try_from(stat.st_size).unwrap_or(0) },
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
            EntryKind::Symlink { target: target.into_bytes() }
        }
        FileType::CharacterDevice => EntryKind::CharDevice { major, minor },
        FileType::BlockDevice => EntryKind::BlockDevice { major, minor },
        FileType::Fifo => EntryKind::Fifo,
        _ => return Ok(None),
    }))
}

/// Whether an extended attribute belongs into an image. Labels of the host's security modules and overlayfs's own
/// marks describe the host; ACLs do too, in a directory somebody checked out.
pub(crate) fn is_image_xattr(name: &[u8]) -> bool {
    let overlay = name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.overlay.");
    name == b"security.capability" || (name.starts_with(b"user.") && !overlay)
}

/// Reads the extended attributes that images keep. The name is reached through the open directory's entry in
/// `/proc/self/fd`, there being no `listxattrat` before Linux 6.13.
fn read_xattrs(parent: &OwnedFd, name: &OsStr) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let place = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
    let mut names = [0; XATTR_NAMES_BYTES_MAX];
    let length = match rustix::fs::llistxattr(&place, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOENT | rustix::io::Errno::ACCESS) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let mut xattrs = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| is_image_xattr(name)) {
        let mut value = vec![0; XATTR_BYTES_MAX];
        match rustix::fs::lgetxattr(&place, name, &mut value) {
            Ok(length) => value.truncate(length),
            Err(rustix::io::Errno::NODATA) => continue,
            Err(errno) => return Err(errno.into()),
        }
        xattrs.insert(name.to_vec(), value);
    }
    Ok(xattrs)
}

/// The kernel's `XATTR_LIST_MAX` is 65536; a list this long already is no build context's.
const XATTR_NAMES_BYTES_MAX: usize = 4096;
/// The kernel's `XATTR_SIZE_MAX`.
const XATTR_BYTES_MAX: usize = 65536;

/// Reads a whole small file, such as a `.dockerignore`.
pub(crate) fn read_limited(file: &File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::other(format!("it has more than {bytes_max} bytes")));
    }
    Ok(bytes)
}
