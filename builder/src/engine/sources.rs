//! Where COPY, ADD and mounts take files from: the context, another stage, an image, a directory, a layout.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rimg_formats::platform::Platform;
use rimg_formats::store::Image;

use super::Build;
use super::error::BuildError;
use super::options::ignore_file;
use super::stage::StageRun;
use crate::assemble::ImageState;
use crate::base;
use crate::cache::LayerRecord;
use crate::context::{DiskTree, Owners, without_number};
use crate::diagnostic::Diagnostic;
use crate::layer_tree::LayerTree;
use crate::plan::CopySource;
use crate::source::Span;
use crate::source_tree::SourceTree;

/// The tree behind a source; `span` is the instruction that asks for it.
pub(crate) fn source_tree(
    run: &StageRun<'_>,
    source: &CopySource,
    span: Span,
) -> Result<Arc<dyn SourceTree>, BuildError> {
    let build = run.build;
    match source {
        CopySource::Context => Ok(Arc::new(build.context(span)?)),
        CopySource::Stage(stage) => {
            let name = build.graph.stages[*stage].name.clone();
            let name = name.unwrap_or_else(|| build.graph.stages[*stage].number.to_string());
            Ok(Arc::new(run.results.get(*stage).tree.called(&format!("stage `{name}`"))))
        }
        CopySource::Image(name) => {
            let layers = layers_of(build.image(name, build.platform_of_sources()));
            Ok(Arc::new(LayerTree::new(&format!("image `{name}`"), build.store, &layers)?))
        }
        CopySource::Path(path) => {
            let directory = build.local_path(&path.path);
            let name = format!("the build context `{}`", path.name);
            let tree = DiskTree::open(&directory, &name, Owners::Dropped);
            let tree = tree.map_err(|error| unreadable(span, &directory, &error))?;
            let ignore = ignore_file(&directory).map_err(|error| BuildError::at(span, error.to_string()))?;
            Ok(Arc::new(tree.with_ignore(ignore.unwrap_or_default())))
        }
        CopySource::OciLayout(layout) => {
            let image = base::layout::import(build, layout, build.platform_of_sources(), span)?;
            let name = format!("`oci:{}`", layout.path);
            Ok(Arc::new(LayerTree::new(&name, build.store, &layers_of(&image))?))
        }
    }
}

fn layers_of(image: &Image) -> Vec<LayerRecord> {
    let record = |(descriptor, diff_id): &(_, _)| LayerRecord {
        diff_id: *diff_id,
        descriptor: Clone::clone(descriptor),
    };
    image.layers.iter().map(record).collect()
}

/// What helps when files change under the build.
pub(super) const QUIET_FOLDER: &str = "something writes to it: build from a folder that is left alone meanwhile, or leave \
                                       it out with .dockerignore";

/// What helps with files that are empty and yet are not.
pub(super) const NO_SIZES: &str =
    "files of /proc and /sys tell no size, so they cannot be copied: leave them out";

/// A file that cannot be read; the error names it.
pub(crate) fn read_error(span: Span, error: &std::io::Error) -> Diagnostic {
    let diagnostic = Diagnostic::error(span, error.to_string());
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => diagnostic
            .help("make it readable for whoever builds, or leave it out (of COPY with .dockerignore)"),
        // It was there a moment ago, or nobody would read it.
        std::io::ErrorKind::NotFound => diagnostic.help(QUIET_FOLDER),
        _ => diagnostic,
    }
}

/// A directory that cannot be opened.
pub(crate) fn unreadable(span: Span, path: &Path, error: &std::io::Error) -> BuildError {
    BuildError::at(span, format!("failed to open `{}`: {}", path.display(), without_number(error)))
}

impl Build<'_> {
    /// The build context, opened at its first use.
    pub(crate) fn context(&self, span: Span) -> Result<DiskTree, BuildError> {
        if let Some(tree) = self.context.get() {
            return Ok(tree.clone());
        }
        let Some(directory) = &self.options.context else {
            return Err(Diagnostic::error(span, "this build has no context to copy from")
                .help("name the directory: `rimg build DIRECTORY`")
                .into());
        };
        let tree = DiskTree::open(directory, "the build context", Owners::Dropped);
        let tree = tree.map_err(|error| unreadable(span, directory, &error))?;
        let tree = tree.with_ignore(self.options.ignore.clone());
        // Another stage may have been first; both have opened the same directory.
        Ok(self.context.get_or_init(|| tree).clone())
    }

    /// Where a path on this machine lies: relative ones start at the context.
    pub(crate) fn local_path(&self, path: &str) -> PathBuf {
        let start = self.options.base_directory.as_ref().or(self.options.context.as_ref());
        start.map_or_else(|| PathBuf::from(path), |start| start.join(path))
    }

    /// `FROM scratch`, and what directories and tars start from.
    pub(crate) fn scratch(&self, platform: &Platform) -> ImageState {
        ImageState::scratch(platform.clone(), self.options.epoch)
    }
}
