//! `FROM oci:./layout[:tag]`: an image in an OCI layout on this machine, brought into the store.
//!
//! The layout may be a directory or a tar. Blobs that the store has are not read again.

use std::fs::File;
use std::path::Path;

use rimg_formats::archive::{LoadOptions, load};
use rimg_formats::digest::Digest;
use rimg_formats::layout::LayoutSource;
use rimg_formats::platform::Platform;
use rimg_formats::reference::{ImageName, RepositoryName, Tag};
use rimg_formats::store::{Image, Store};
use rimg_formats::transfer::{CopyOptions, Platforms, RepositorySink, TransferError, Version, copy_image};

use crate::diagnostic::Diagnostic;
use crate::engine::{Build, BuildError};
use crate::plan::OciLayout;
use crate::source::Span;

/// The repository that images from layouts are kept in, without tags: they are there as long as a build needs them.
const REPOSITORY: &str = "imported";

/// Copies the image for `platform` into the store, unless it is there.
pub(crate) fn import(
    build: &Build<'_>,
    layout: &OciLayout,
    platform: &Platform,
    span: Span,
) -> Result<Image, BuildError> {
    let place = build.local_path(&layout.path);
    let failed = |error: &dyn std::fmt::Display| {
        BuildError::at(span, format!("failed to get the image from `{}`: {error}", layout.path))
    };
    let digest = if place.is_dir() {
        from_directory(build.store, &place, layout).map_err(|error| failed(&error))?
    } else {
        from_archive(build.store, &place, layout).map_err(|error| failed(&error))?
    };
    let image = build.store.image(&digest, Some(platform)).map_err(|error| failed(&error))?;
    if !image.config.config.on_build.is_empty() {
        let error = Diagnostic::not_supported(span, "a base with ONBUILD triggers in an OCI layout");
        return Err(error.help("`rimg load` it and name it as an image").into());
    }
    Ok(image)
}

fn repository() -> ImageName {
    let name: RepositoryName = REPOSITORY.parse().expect("the constant is a repository name");
    ImageName::from(name)
}

fn from_directory(store: &Store, place: &Path, layout: &OciLayout) -> Result<Digest, TransferError> {
    let source = LayoutSource::open(place)?;
    let version = match &layout.reference {
        Some(text) => version(text)?,
        None => match source.index().manifests() {
            [only] => Version::Digest(only.digest),
            several => {
                let what = format!(
                    "a single image (there are {}; name one: `oci:{}:TAG`)",
                    several.len(),
                    layout.path
                );
                return Err(TransferError::NotFound(what));
            }
        },
    };
    let sink = RepositorySink::new(store.repository(&repository()), Vec::new());
    let options = CopyOptions { platforms: Platforms::Present, ..CopyOptions::default() };
    Ok(copy_image(&source, &sink, &version, &options)?.digest)
}

fn from_archive(store: &Store, place: &Path, layout: &OciLayout) -> Result<Digest, TransferError> {
    let file = File::open(place).map_err(TransferError::io(format!("open {}", place.display())))?;
    let loaded = load(store, file, &LoadOptions { name: Some(repository()), ..LoadOptions::default() })?;
    let wanted = layout.reference.as_deref().map(version).transpose()?;
    let found = match (&wanted, loaded.as_slice()) {
        (None, [only]) => Some(only.digest),
        (Some(Version::Digest(digest)), _) => Some(Clone::clone(digest)),
        (Some(Version::Tag(tag)), all) => {
            all.iter().find(|image| image.tag.as_ref() == Some(tag)).map(|image| image.digest)
        }
        (None, _) => None,
    };
    found.ok_or_else(|| TransferError::NotFound(format!("the image in {}", place.display())))
}

fn version(text: &str) -> Result<Version, TransferError> {
    if let Ok(digest) = text.parse::<Digest>() {
        return Ok(Version::Digest(digest));
    }
    let tag = text.parse::<Tag>();
    tag.map(Version::Tag).map_err(|error| TransferError::NotFound(format!("`{text}` ({error})")))
}
