//! A build's result outside of the store: the root file system as a tar or a directory. Archives of images are
//! [`rimg_formats::archive`]'s.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rimg_formats::digest::DiffId;
use rimg_formats::layer::{LayerCompression, LayerOptions, LayerWriter, MtimePolicy, WriteError};
use rimg_formats::store::{Store, StoreError};

use crate::cache::LayerRecord;
use crate::engine::BuildResult;
use crate::layer_plan::{LayerPlan, PlannedEntry};
use crate::layer_tree::{LayerTree, prepare_sources};
use crate::materialise::materialise_over;
use crate::source_tree::Content;

/// Why a result could not be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The tar could not be written.
    #[error(transparent)]
    Tar(#[from] WriteError),
    /// The directory cannot be made.
    #[error("failed to write to the folder `{}`: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The files in the directory could not be written.
    #[error("failed to write the files: {0}")]
    Files(#[from] io::Error),
}

/// Writes the merged files of an image as an uncompressed tar, the same bytes for the same image.
///
/// # Errors
/// See [`OutputError`].
pub fn write_tar(store: &Store, result: &BuildResult, out: impl Write + Send) -> Result<(), OutputError> {
    let entries = entries(store, result)?;
    prepare_sources(entries.iter().map(|planned| &planned.content))?;
    let options =
        LayerOptions { compression: LayerCompression::None, threads: 1, mtime: MtimePolicy::Preserve };
    let mut writer = LayerWriter::new(out, options)?;
    for planned in &entries {
        let failed = |source| WriteError::Content { path: planned.entry.path.clone(), source };
        match &planned.content {
            Content::Layer(file) => writer.append(&planned.entry, file.open().map_err(failed)?)?,
            _ => writer.append_empty(&planned.entry)?,
        }
    }
    writer.finish()?;
    Ok(())
}

/// What becomes of other files in a directory that a result is written to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Others {
    /// They stay.
    #[default]
    Kept,
    /// They are removed.
    Removed,
}

/// Writes the merged files of an image into `directory`, which is made when it is missing. Files that are there are
/// replaced, and links among them never followed. Owners are kept as far as the caller may give files away; devices
/// are left out by those who may not make them. After a failure a part may be written; another try writes it all.
///
/// # Errors
/// See [`OutputError`].
pub fn write_directory(
    store: &Store,
    result: &BuildResult,
    directory: &Path,
    others: Others,
) -> Result<(), OutputError> {
    let entries = entries(store, result)?;
    std::fs::create_dir_all(directory).map_err(|error| OutputError::Directory {
        path: directory.to_owned(),
        source: match error.kind() {
            io::ErrorKind::AlreadyExists => io::ErrorKind::NotADirectory.into(),
            _ => error,
        },
    })?;
    Ok(materialise_over(&entries, directory, MtimePolicy::Preserve, others)?)
}

fn entries(store: &Store, result: &BuildResult) -> Result<Vec<PlannedEntry>, OutputError> {
    let record = |(descriptor, diff_id): &(_, DiffId)| LayerRecord {
        diff_id: *diff_id,
        descriptor: Clone::clone(descriptor),
    };
    let layers: Vec<LayerRecord> = result.layers.iter().map(record).collect();
    let tree = LayerTree::new("the image", store, &layers)?;
    Ok(LayerPlan::of_tree(&tree)?.into_entries())
}
