//! What every command starts from: the store it works on and the flags it was given.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rimg_formats::store::{Store, StoreError};

use crate::cli::{Format, Globals};
use crate::failure::{Context, Failure};

/// Where root keeps its store.
const SYSTEM_ROOT: &str = "/var/lib/rimg";
/// Names the store where `--root` does not. It is read here and not by the parser, whose usage lines would then show
/// `--root` as if it had been typed.
const ROOT_VARIABLE: &str = "RIMG_ROOT";

/// What to do where a store cannot be.
const ELSEWHERE: &str = "name another folder with --root DIR or RIMG_ROOT";
/// What the kernel calls users that a user namespace does not know (`/proc/sys/kernel/overflowuid`).
const UNMAPPED_USER: u32 = 65534;

/// The setting of one invocation.
pub(crate) struct Session {
    globals: Globals,
    /// Whether root began this. Asked at the beginning: in a user namespace everybody is root.
    is_root: bool,
}

impl Session {
    pub(crate) fn new(globals: Globals) -> Session {
        Session { globals, is_root: rustix::process::geteuid().is_root() }
    }

    /// Whether lists are wanted as JSON.
    pub(crate) fn json(&self) -> bool {
        self.globals.format == Format::Json
    }

    /// The store's folder: the flag, the environment, else the place for this user.
    pub(crate) fn root(&self) -> Result<PathBuf, Failure> {
        if let Some(root) = &self.globals.root {
            return Ok(root.clone());
        }
        if let Some(root) = std::env::var_os(ROOT_VARIABLE).filter(|root| !root.is_empty()) {
            return Ok(PathBuf::from(root));
        }
        if self.is_root {
            return Ok(PathBuf::from(SYSTEM_ROOT));
        }
        let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        variable("XDG_DATA_HOME")
            .or_else(|| variable("HOME").map(|home| home.join(".local/share")))
            .map(|data| data.join("rimg"))
            .ok_or_else(|| {
                Failure::new("no place to keep images: neither HOME nor XDG_DATA_HOME is set")
                    .hint("name a folder with --root DIR or RIMG_ROOT")
            })
    }

    /// Opens the store, making it on first use.
    pub(crate) fn store(&self) -> Result<Store, Failure> {
        let root = self.root()?;
        opened(Store::open(&root), &root)
    }

    /// As [`Session::store`], to remove something from it, for which there is room when the disk is full.
    pub(crate) fn store_to_remove(&self) -> Result<Store, Failure> {
        let root = self.root()?;
        opened(Store::open_to_remove(&root), &root)
    }
}

fn opened(store: Result<Store, StoreError>, root: &Path) -> Result<Store, Failure> {
    let opened = store.context(format!("failed to open the store {}", root.display()));
    opened.map_err(|failure| match unusable(root) {
        Some(why) => failure.hint(why),
        None => failure,
    })
}

/// What to say of a folder that another user has.
fn foreign(folder: &Path, owner: u32, me: u32) -> String {
    let shown = folder.display();
    match owner {
        UNMAPPED_USER => format!("{shown} belongs to another user; {ELSEWHERE}"),
        _ => format!("{shown} belongs to user {owner}, you are user {me}; {ELSEWHERE}"),
    }
}

/// Why this user cannot keep a store in `root`, where looking at the folder tells, and what to do.
fn unusable(root: &Path) -> Option<String> {
    let shown = root.display();
    let existing = root.ancestors().find(|folder| !folder.as_os_str().is_empty() && folder.exists());
    let existing = existing.unwrap_or(Path::new("."));
    let metadata = match fs::metadata(existing) {
        Ok(metadata) if metadata.is_dir() => metadata,
        Ok(_) => return Some(format!("{} is not a folder; {ELSEWHERE}", existing.display())),
        Err(_) => return Some(ELSEWHERE.to_owned()),
    };
    let me = rustix::process::geteuid().as_raw();
    match rustix::fs::access(existing, rustix::fs::Access::WRITE_OK).map_err(io::Error::from) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            Some(format!("{shown} is on a read-only file system; {ELSEWHERE}"))
        }
        Err(_) if existing == root => Some(foreign(root, metadata.uid(), me)),
        Err(_) => Some(format!("you may not create folders in {}; {ELSEWHERE}", existing.display())),
        // In a user namespace everybody is root, and of its own files alone.
        Ok(()) if metadata.uid() != me && (me != 0 || metadata.uid() == UNMAPPED_USER) => {
            Some(foreign(existing, metadata.uid(), me))
        }
        Ok(()) => None,
    }
}
