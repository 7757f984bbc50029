//! [`Disk`]: what a folder holds for running processes, and what of it is certainly on the disk.
//!
//! POSIX promises little. A file's bytes are on the disk once a later fsync of *the file* has returned; a name, given or
//! taken away, once a later fsync of *its folder* has. Everything else may be there after a power cut or not, in any
//! mixture, and where a file's length is newer than its bytes, zeros show. File systems commonly keep the order of
//! changes of names among themselves, and [`Loss::Mixed`] does; [`Loss::Everything`] and [`Loss::Bytes`] are the two
//! ends between which all of them lie.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::trace::Call;

/// What a power cut takes of that which is not certain.
#[derive(Clone, Copy, Debug)]
pub(super) enum Loss {
    /// All of it.
    Everything,
    /// All bytes, while all names are there: the journal was quicker than the data.
    Bytes,
    /// Some bytes, and the latest of the names: a mixture for each seed.
    Mixed(u64),
}

type Id = usize;

/// A change that is not certain yet, with its place in the order of all changes.
#[derive(Clone, Debug)]
enum Pending {
    Write { offset: usize, bytes: Vec<u8> },
    Truncate(usize),
    Name { order: u64, name: OsString, id: Option<Id> },
}

#[derive(Clone, Debug, Default)]
struct Node {
    is_folder: bool,
    /// A file's bytes, for processes and for certain.
    bytes: Vec<u8>,
    synced_bytes: Vec<u8>,
    /// A folder's names, likewise.
    names: BTreeMap<OsString, Id>,
    synced_names: BTreeMap<OsString, Id>,
    pending: Vec<Pending>,
    /// How many changes were pending once and are certain now.
    certain: usize,
}

/// An fsync that is under way: of what, its state when it began, and how many changes it covers.
#[derive(Debug)]
pub(super) struct Sync(Id, Node, usize);

/// A folder and everything below it.
pub(super) struct Disk {
    root: PathBuf,
    nodes: Vec<Node>,
    /// Folders whose content is of no interest.
    ignored: Vec<PathBuf>,
    order: u64,
}

impl Disk {
    /// The folder `root`, with all that is in it now taken for certain.
    pub(super) fn new(root: &Path, ignored: &[PathBuf]) -> Disk {
        let folder = Node { is_folder: true, ..Node::default() };
        let mut disk =
            Disk { root: root.to_owned(), nodes: vec![folder], ignored: ignored.to_vec(), order: 0 };
        disk.take_in(root);
        for node in &mut disk.nodes {
            node.pending.clear();
            (node.synced_bytes, node.synced_names) = (node.bytes.clone(), node.names.clone());
        }
        disk
    }

    fn take_in(&mut self, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if self.is_ignored(&path) {
                continue;
            }
            let is_folder = path.is_dir();
            let bytes = if is_folder { Vec::new() } else { fs::read(&path).unwrap() };
            self.add(&path, Node { is_folder, bytes, ..Node::default() });
            if is_folder {
                self.take_in(&path);
            }
        }
    }

    /// A file that was written from outside, long ago.
    pub(super) fn write_file(&mut self, path: &Path, bytes: &[u8]) {
        let id = self.find(path).unwrap_or_else(|| {
            self.add(path, Node::default());
            let parent = self.find(path.parent().unwrap()).unwrap();
            self.nodes[parent].pending.pop();
            let (id, name) = (self.nodes.len() - 1, path.file_name().unwrap().to_owned());
            self.nodes[parent].synced_names.insert(name, id);
            id
        });
        self.nodes[id] = Node { bytes: bytes.to_vec(), synced_bytes: bytes.to_vec(), ..Node::default() };
    }

    fn is_ignored(&self, path: &Path) -> bool {
        // SQLite's shared memory is made anew by whoever opens the database first.
        let shared = path.as_os_str().as_encoded_bytes().ends_with(b"-shm");
        shared || !path.starts_with(&self.root) || self.ignored.iter().any(|folder| path.starts_with(folder))
    }

    fn find(&self, path: &Path) -> Option<Id> {
        let below = path.strip_prefix(&self.root).ok()?;
        below.components().try_fold(0, |id, component| match component {
            Component::Normal(name) => self.nodes[id].names.get(name).copied(),
            other => panic!("{} has {other:?}", path.display()),
        })
    }

    fn set(&mut self, path: &Path, id: Option<Id>) {
        let parent = self.find(path.parent().unwrap());
        let parent = parent.unwrap_or_else(|| panic!("nobody has made the folder of {}", path.display()));
        let name = path.file_name().unwrap().to_owned();
        self.order += 1;
        let node = &mut self.nodes[parent];
        match id {
            Some(id) => _ = node.names.insert(name.clone(), id),
            None => assert!(node.names.remove(&name).is_some(), "{} was never made", path.display()),
        }
        node.pending.push(Pending::Name { order: self.order, name, id });
    }

    fn add(&mut self, path: &Path, node: Node) {
        self.nodes.push(node);
        self.set(path, Some(self.nodes.len() - 1));
    }

    /// An fsync begins: what it covers when it is finished.
    pub(super) fn begin_sync(&self, call: &Call) -> Option<Sync> {
        let path = call.fd_path(0).filter(|path| !self.is_ignored(path))?;
        let id = self.find(path)?;
        let node = self.nodes[id].clone();
        let covered = node.certain + node.pending.len();
        Some(Sync(id, node, covered))
    }

    /// An fsync has succeeded.
    pub(super) fn finish_sync(&mut self, sync: Sync) {
        let Sync(id, then, covered) = sync;
        let node = &mut self.nodes[id];
        // Another one that began later may have been quicker.
        if let Some(more) = covered.checked_sub(node.certain) {
            node.pending.drain(..more);
            node.certain = covered;
            (node.synced_bytes, node.synced_names) = (then.bytes, then.names);
        }
    }

    /// Takes a finished call into account.
    pub(super) fn apply(&mut self, call: &Call) {
        let Some(result) = call.result else { return };
        match call.name.as_str() {
            "openat" | "openat2" => self.open(call.path_at(1).unwrap(), call),
            "write" | "writev" => self.write(call, None, result),
            "pwrite64" => self.write(call, Some(call.number(3)), result),
            "ftruncate" => self.truncate(call, call.number(1)),
            "fallocate" => self.truncate(call, call.number(2) + call.number(3)),
            "rename" => self.rename(&call.path(0).unwrap(), &call.path(1).unwrap()),
            "renameat" | "renameat2" => self.rename(&call.path_at(1).unwrap(), &call.path_at(3).unwrap()),
            "unlink" | "rmdir" => self.unlink(&call.path(0).unwrap()),
            "unlinkat" => self.unlink(&call.path_at(1).unwrap()),
            "mkdir" => self.make_folder(&call.path(0).unwrap()),
            "mkdirat" => self.make_folder(&call.path_at(1).unwrap()),
            "fsync" | "fdatasync" | "sendto" | "sendmsg" | "exit_group" => {}
            name => {
                let paths = call.arguments.iter().filter_map(|argument| argument.path.as_deref());
                let known = paths.filter(|path| !self.is_ignored(path)).collect::<Vec<_>>();
                assert!(known.is_empty(), "nobody has taught the disk what {name} does, to {known:?}");
            }
        }
    }

    fn open(&mut self, path: PathBuf, call: &Call) {
        if self.is_ignored(&path) {
            return;
        }
        match self.find(&path) {
            Some(id) if call.has_flag("O_TRUNC") && !self.nodes[id].bytes.is_empty() => {
                self.nodes[id].bytes.clear();
                self.nodes[id].pending.push(Pending::Truncate(0));
            }
            None if call.has_flag("O_CREAT") => self.add(&path, Node::default()),
            _ => {}
        }
    }

    /// A write at `offset`; without one, behind what was written before, as all of rimg's are.
    fn write(&mut self, call: &Call, offset: Option<u64>, length: u64) {
        let Some(path) = call.fd_path(0).filter(|path| !self.is_ignored(path)) else { return };
        // The file of a name that was taken away is nobody's concern.
        let Some(id) = self.find(path) else { return };
        let node = &mut self.nodes[id];
        let mut bytes = call.bytes();
        bytes.truncate(usize::try_from(length).unwrap());
        let offset = offset.map_or(node.bytes.len(), |offset| usize::try_from(offset).unwrap());
        put(&mut node.bytes, offset, &bytes);
        node.pending.push(Pending::Write { offset, bytes });
    }

    fn truncate(&mut self, call: &Call, length: u64) {
        let Some(path) = call.fd_path(0).filter(|path| !self.is_ignored(path)) else { return };
        let Some(id) = self.find(path) else { return };
        let length = usize::try_from(length).unwrap();
        self.nodes[id].bytes.resize(length, 0);
        self.nodes[id].pending.push(Pending::Truncate(length));
    }

    fn rename(&mut self, from: &Path, to: &Path) {
        let id = if self.is_ignored(from) { None } else { self.find(from) };
        if !self.is_ignored(to) {
            let id = id.unwrap_or_else(|| panic!("{} came from nowhere", to.display()));
            self.set(to, Some(id));
        }
        if id.is_some() {
            self.set(from, None);
        }
    }

    fn unlink(&mut self, path: &Path) {
        if !self.is_ignored(path) {
            self.set(path, None);
        }
    }

    fn make_folder(&mut self, path: &Path) {
        if !self.is_ignored(path) {
            self.add(path, Node { is_folder: true, ..Node::default() });
        }
    }

    /// Writes what is there after a power cut into the folder `target`.
    pub(super) fn cut(&self, loss: Loss, target: &Path) {
        let kept = match loss {
            Loss::Everything => 0,
            Loss::Bytes => self.order,
            Loss::Mixed(seed) => {
                let orders =
                    self.nodes.iter().flat_map(|node| &node.pending).filter_map(|pending| match pending {
                        Pending::Name { order, .. } => Some(*order),
                        _ => None,
                    });
                let mut orders: Vec<u64> = orders.collect();
                orders.sort_unstable();
                orders.get(random(seed, 0) as usize % (orders.len() + 1)).copied().unwrap_or(self.order)
            }
        };
        self.cut_folder(0, loss, kept, target);
    }

    fn cut_folder(&self, id: Id, loss: Loss, kept: u64, target: &Path) {
        fs::create_dir_all(target).unwrap();
        let mut names = self.nodes[id].synced_names.clone();
        for pending in &self.nodes[id].pending {
            match pending {
                Pending::Name { order, name, id: Some(id) } if *order <= kept => {
                    _ = names.insert(name.clone(), *id)
                }
                Pending::Name { order, name, id: None } if *order <= kept => _ = names.remove(name),
                _ => {}
            }
        }
        for (name, id) in names {
            let path = target.join(name);
            match self.nodes[id].is_folder {
                true => self.cut_folder(id, loss, kept, &path),
                false => fs::write(path, self.nodes[id].cut_bytes(id, loss)).unwrap(),
            }
        }
    }

    /// Fails unless the folder is what the calls have made of it: else the log lacks something.
    #[track_caller]
    pub(super) fn assert_is_real(&self) {
        self.compare(0, &self.root);
    }

    #[track_caller]
    fn compare(&self, id: Id, folder: &Path) {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut real: Vec<PathBuf> = entries.filter(|path| !self.is_ignored(path)).collect();
        real.sort();
        let known: Vec<PathBuf> =
            self.nodes[id].names.keys().map(|name: &OsString| folder.join(OsStr::new(name))).collect();
        assert_eq!(real, known, "the log does not explain what is in {}", folder.display());
        for (name, id) in &self.nodes[id].names {
            let path = folder.join(name);
            match self.nodes[*id].is_folder {
                true => self.compare(*id, &path),
                false => {
                    let same = fs::read(&path).unwrap() == self.nodes[*id].bytes;
                    assert!(same, "the log does not explain what is in {}", path.display());
                }
            }
        }
    }
}

impl Node {
    /// A file's bytes after a power cut.
    fn cut_bytes(&self, id: Id, loss: Loss) -> Vec<u8> {
        let mut bytes = self.synced_bytes.clone();
        match loss {
            Loss::Everything => {}
            Loss::Bytes => bytes.resize(self.bytes.len(), 0),
            Loss::Mixed(seed) => {
                for (number, pending) in self.pending.iter().enumerate() {
                    match (pending, random(seed, (id * 1_000_003 + number) as u64 + 1) % 4) {
                        (_, 0) => {}
                        (Pending::Write { offset, bytes: written }, 1) => {
                            put(&mut bytes, *offset, &vec![0; written.len()]);
                        }
                        (Pending::Write { offset, bytes: written }, 2) => {
                            put(&mut bytes, *offset, &written[..written.len() / 2]);
                        }
                        (Pending::Write { offset, bytes: written }, _) => put(&mut bytes, *offset, written),
                        (Pending::Truncate(length), _) => bytes.resize(*length, 0),
                        (Pending::Name { .. }, _) => {}
                    }
                }
            }
        }
        bytes
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, written: &[u8]) {
    if bytes.len() < offset + written.len() {
        bytes.resize(offset + written.len(), 0);
    }
    bytes[offset..offset + written.len()].copy_from_slice(written);
}

/// A number that only seed and place decide.
fn random(seed: u64, place: u64) -> u64 {
    let mut state =
        (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ place.wrapping_mul(0xd1b5_4a32_d192_ed03);
    for _ in 0..3 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
    }
    state >> 16
}
