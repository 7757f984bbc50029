//! Layers: the tar archives that images are made of, and the index rimg keeps of each.
//!
//! | file | owns |
//! |---|---|
//! | [`path`], [`entry`] | what a layer speaks about: cleaned paths, entries, their order |
//! | [`writer`] | the one way layers are made: entries in, blob and index out |
//! | `header` | ustar and PAX headers, as the writer encodes them |
//! | `members` | compression by independent members in parallel, and the hashes |
//! | [`reader`] | entries out of any tar, from anybody |
//! | `block`, `pax`, `sparse`, `names`, `content`, `stream` | the pieces of such a tar, parsed with suspicion |
//! | `error` | what can be wrong with one |
//! | [`own_tree`] | what one layer makes by itself: the rules of unpacking |
//! | `prefixes` | paths and what lies above them as numbers, for millions of them |
//! | `scan` | an index out of anybody's blob |
//! | [`index`] | what a layer contains and where, without unpacking it |
//! | `index_format` | the index as a file |
//! | [`merged`] | several layers seen as one tree |
//!
//! Nothing here touches a file system; unpacking is the runner's, on [`crate::root_dir`].

mod block;
mod content;
pub mod entry;
mod error;
mod header;
pub mod index;
mod index_format;
mod limits;
mod members;
pub mod merged;
mod names;
pub mod own_tree;
pub mod path;
mod pax;
mod prefixes;
pub mod reader;
mod scan;
mod sparse;
mod stream;
pub mod writer;

pub use content::Content;
pub use entry::{Entry, EntryKind, Mtime, is_image_xattr, is_machine_xattr, layer_order};
pub use error::LayerError;
pub use index::{FileContent, IndexEntry, LayerIndex, OtherOwner};
pub use index_format::IndexError;
pub use limits::Limits;
pub use merged::{MergedTree, Node, ResolveError, Resolved, Walk};
pub use own_tree::{Action, Implied, OwnTree, Placed};
pub use path::{LayerPath, LayerPathError};
pub use reader::{LayerReader, ReadMode};
pub use scan::Expected;
pub use sparse::Segment;
pub use writer::{FinishedLayer, LayerCompression, LayerOptions, LayerWriter, MtimePolicy, WriteError};

pub use crate::compression::Member;

/// Symbolic links followed on the way to one path, as in the kernel.
const LINKS_MAX: usize = 40;
