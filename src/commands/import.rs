//! `rimg import`: the tar of a root file system becomes an image of one layer, as `FROM ./rootfs.tar` makes it.

use std::path::PathBuf;

use rimg_builder::base::StoredImages;
use rimg_builder::engine::{BuildOptions, Builder};
use rimg_builder::source::SourceFile;
use rimg_formats::epoch::Epoch;
use rimg_formats::platform::Platform;
use rimg_formats::reference::Reference;

use crate::failure::{Context, Failure};
use crate::session::Session;
use crate::terminal::print_line;

/// What the source is called in the image's history.
const CONTEXT: &str = "rootfs";

/// Flags of `rimg import`.
#[derive(Debug, clap::Args)]
#[command(after_help = "For more than a name, write a Buildfile with `FROM ./rootfs.tar`.")]
pub(crate) struct ImportArgs {
    /// The tar, compressed or not, or a folder
    #[arg(value_name = "FILE")]
    source: PathBuf,
    /// The image's name
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<Reference>,
    /// What the image runs on [default: the host's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
}

pub(crate) fn run(session: &Session, args: ImportArgs) -> Result<(), Failure> {
    let shown = args.source.display().to_string();
    let source = args.source.canonicalize().context(format!("failed to open {shown}"))?;
    let path =
        source.to_str().ok_or_else(|| Failure::new(format!("the path {shown} is not UTF-8: rename it")))?;
    let buildfile = SourceFile::from_bytes("import".to_owned(), format!("FROM {CONTEXT}\n").into_bytes())?;
    let store = session.store()?;
    let mut options = BuildOptions::new(buildfile);
    // The image's history has the name, and so its digest does not depend on where the source lies.
    options.named_contexts.insert(CONTEXT.to_owned(), path.to_owned());
    options.tags = args.name.into_iter().collect();
    options.platform = args.platform.unwrap_or_else(Platform::host);
    options.epoch = Epoch::from_environment()?;
    let images = StoredImages(store.clone());
    let result =
        Builder::new(store, &images, options).build(&|_| {}).context(format!("failed to import {shown}"))?;
    print_line(&result.manifest.digest.to_string())
}
