//! What `FROM` may name, beside `scratch` and earlier stages: images, directories, tars, OCI layouts.
//!
//! Images come through the port [`BaseImages`], which the command line implements: the store first, then a registry.

pub(crate) mod layout;
pub(crate) mod local;

use rimg_formats::platform::Platform;
use rimg_formats::reference::Reference;
use rimg_formats::store::{Image, StoreError};

/// Finds the images that `FROM` and `COPY --from` name. When it returns, manifest, configuration and layers are in
/// the build's store.
pub trait BaseImages: Sync {
    /// The image that `reference` means for `platform`.
    ///
    /// # Errors
    /// [`BaseImageError`]: shown at the line that names the image.
    fn resolve(&self, reference: &Reference, platform: &Platform) -> Result<Image, BaseImageError>;
}

/// Why a base image cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BaseImageError {
    /// Neither the store nor the registry has it.
    #[error("image `{0}` is not known")]
    Unknown(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Anything else, such as a network that is down.
    #[error("{message}")]
    Other {
        /// What went wrong; names the image.
        message: String,
        /// What may help.
        help: Option<String>,
    },
}

/// The images of one store, and no registry.
#[derive(Clone, Debug)]
pub struct StoredImages(pub rimg_formats::store::Store);

impl BaseImages for StoredImages {
    fn resolve(&self, reference: &Reference, platform: &Platform) -> Result<Image, BaseImageError> {
        let found = match self.0.resolve(reference) {
            Ok(found) => found,
            Err(StoreError::ImageUnknown(name)) => return Err(BaseImageError::Unknown(name)),
            Err(error) => return Err(error.into()),
        };
        Ok(self.0.image(&found.digest, Some(platform))?)
    }
}
