//! What every command starts from: the store it works on and the flags it was given.

use std::path::{Path, PathBuf};

use rimg_formats::store::Store;

use crate::cli::{Format, Globals};
use crate::failure::{Context, Failure};

/// Where root keeps its store.
const SYSTEM_ROOT: &str = "/var/lib/rimg";

/// The setting of one invocation.
pub(crate) struct Session {
    globals: Globals,
}

impl Session {
    pub(crate) fn new(globals: Globals) -> Session {
        Session { globals }
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
        if rustix::process::geteuid().is_root() {
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
        open(&root)
    }
}

fn open(root: &Path) -> Result<Store, Failure> {
    Store::open(root).context(format!("failed to open the store {}", root.display()))
}
