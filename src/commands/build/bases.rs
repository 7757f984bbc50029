//! Base images of a build: from the store, else pulled. The builder knows no registry; this is its port.

use rimg_builder::base::{BaseImageError, BaseImages};
use rimg_formats::platform::Platform;
use rimg_formats::reference::Reference;
use rimg_formats::store::{Image, Store, StoreError};
use rimg_formats::transfer::Platforms;

use crate::commands::remote::{self, RemoteArgs};
use crate::progress::{Change, Display};

/// The store's images first, a registry's next.
pub(super) struct StoreThenRegistry<'a> {
    pub(super) store: Store,
    pub(super) remote: RemoteArgs,
    /// Ask the registry even for what is here.
    pub(super) always_pull: bool,
    pub(super) display: &'a Display,
}

impl StoreThenRegistry<'_> {
    fn stored(&self, reference: &Reference, platform: &Platform) -> Result<Option<Image>, BaseImageError> {
        match self.store.resolve(reference) {
            Ok(found) => Ok(Some(self.store.image(&found.digest, Some(platform))?)),
            Err(StoreError::ImageUnknown(_) | StoreError::ManifestUnknown { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl BaseImages for StoreThenRegistry<'_> {
    fn resolve(&self, reference: &Reference, platform: &Platform) -> Result<Image, BaseImageError> {
        if !self.always_pull
            && let Some(image) = self.stored(reference, platform)?
        {
            return Ok(image);
        }
        self.display.apply(Change::Note { line: format!("pulling {reference}") });
        let platforms = Platforms::Only(vec![platform.clone()]);
        remote::pull(&self.store, reference, platforms, &self.remote, self.display).map_err(|failure| {
            let help = Some(failure.hints().join("; ")).filter(|help| !help.is_empty());
            BaseImageError::Other { message: failure.message().to_owned(), help }
        })?;
        self.stored(reference, platform)?.ok_or_else(|| BaseImageError::Unknown(reference.to_string()))
    }
}
