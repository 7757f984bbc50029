//! Base images of a build: from the store, else pulled. The builder knows no registry; this is its port.

use rimg_builder::base::{BaseImageError, BaseImages};
use rimg_formats::digest::Digest;
use rimg_formats::platform::Platform;
use rimg_formats::reference::Reference;
use rimg_formats::store::{Image, Store, StoreError};
use rimg_formats::transfer::Platforms;

use crate::commands::remote::{self, RemoteArgs};
use crate::failure::Failure;
use crate::progress::{Change, Display};

/// The store's images first, a registry's next.
pub(super) struct StoreThenRegistry<'a> {
    pub(super) store: Store,
    pub(super) remote: RemoteArgs,
    /// Ask the registry even for what is here.
    pub(super) always_pull: bool,
    pub(super) display: &'a Display,
}

/// What the store has of an image.
enum Stored {
    /// All of it.
    Whole(Box<Image>),
    /// The name, and neither the variant wanted nor all of its layers. `others` are the platforms it is there for.
    Named { others: Option<String> },
    /// Nothing.
    Absent,
}

impl StoreThenRegistry<'_> {
    fn stored(&self, reference: &Reference, platform: &Platform) -> Result<Stored, BaseImageError> {
        match self.store.resolve(reference) {
            Ok(found) => self.variant(&found.digest, platform),
            Err(error) if error.is_not_found() => Ok(Stored::Absent),
            Err(error) => Err(error.into()),
        }
    }

    /// The variant for `platform` of a manifest or index.
    fn variant(&self, digest: &Digest, platform: &Platform) -> Result<Stored, BaseImageError> {
        let image = match self.store.image(digest, Some(platform)) {
            Ok(image) => image,
            Err(StoreError::PlatformUnavailable { available, .. }) => {
                return Ok(Stored::Named { others: Some(available).filter(|names| !names.is_empty()) });
            }
            // An index names variants that were never fetched.
            Err(error) if error.is_not_found() => return Ok(Stored::Named { others: None }),
            Err(error) => return Err(error.into()),
        };
        for (layer, _) in &image.layers {
            if self.store.blob_size(&layer.digest)?.is_none() {
                return Ok(Stored::Named { others: None });
            }
        }
        Ok(Stored::Whole(Box::new(image)))
    }

    /// Fetches the image. A name that the store has goes on naming what it names: somebody may have built that.
    fn pull(&self, reference: &Reference, platform: &Platform, is_named: bool) -> Result<Digest, Failure> {
        self.display.apply(Change::Note { line: format!("pulling {reference} for {platform}") });
        let tags = match reference.digest.is_some() || is_named {
            true => Vec::new(),
            false => vec![reference.tag_or_latest()],
        };
        let platforms = Platforms::Only(vec![platform.clone()]);
        let pulled = remote::pull_as(&self.store, reference, tags, platforms, &self.remote, self.display)?;
        Ok(pulled.digest)
    }
}

impl BaseImages for StoreThenRegistry<'_> {
    fn resolve(&self, reference: &Reference, platform: &Platform) -> Result<Image, BaseImageError> {
        let stored = if self.always_pull { Stored::Absent } else { self.stored(reference, platform)? };
        let (is_named, others) = match stored {
            Stored::Whole(image) => return Ok(*image),
            Stored::Named { others } => (true, others),
            Stored::Absent => (false, None),
        };
        let digest = self.pull(reference, platform, is_named).map_err(|failure| match &others {
            Some(others) => BaseImageError::Other {
                message: format!("the store has it for {others}, not for {platform}; {}", failure.message()),
                help: Some(platform_help(others)),
            },
            None => {
                let help = Some(failure.hints().join("; ")).filter(|help| !help.is_empty());
                BaseImageError::Other { message: failure.message().to_owned(), help }
            }
        })?;
        match self.variant(&digest, platform)? {
            Stored::Whole(image) => Ok(*image),
            Stored::Named { others: Some(others) } => Err(BaseImageError::Other {
                message: format!("it is for {others}, not for {platform}"),
                help: Some(platform_help(&others)),
            }),
            Stored::Named { others: None } | Stored::Absent => {
                Err(BaseImageError::Unknown(reference.to_string()))
            }
        }
    }
}

fn platform_help(others: &str) -> String {
    let first = others.split(", ").next().unwrap_or(others);
    format!("to build on that, say `FROM --platform={first}`, or build with `--platform {first}`")
}
