//! Images in one tar: `save` and `load`.
//!
//! ```text
//! blobs/<alg>/<hex>      as in an OCI layout
//! oci-layout, index.json what OCI tools read
//! manifest.json          what Docker, Podman and older tools read: paths of configurations and layers
//! ```
//!
//! [`write`](self) makes archives that are both kinds at once, so `docker load`, `podman load` and
//! `skopeo … oci-archive:` take the same file, and the same images give the same bytes. [`load`] takes either
//! kind, and what `docker save` wrote before it knew the OCI (layers under names of their own), compressed or
//! not, from a pipe: blobs go into the store as they come by, names are given at the end.

mod directory;
mod docker;
mod load;
mod write;

pub use load::{LoadOptions, Loaded, load, load_directory};
pub use write::{ArchiveImage, ArchiveWriter, save};

/// The file in which Docker keeps what an archive holds.
const DOCKER_MANIFEST_FILE: &str = "manifest.json";

/// An image in `manifest.json`.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    /// Path of the configuration.
    config: String,
    /// Names, each with a tag. `null` for none.
    #[serde(default, deserialize_with = "crate::descriptor::null_is_empty")]
    repo_tags: Vec<String>,
    /// Paths of the layers, lowest first.
    #[serde(default, deserialize_with = "crate::descriptor::null_is_empty")]
    layers: Vec<String>,
}
