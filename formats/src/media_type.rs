//! Media types of the OCI image specification and their Docker twins, and what each says about its bytes.

use crate::compression::Compression;

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer, plain tar. `+gzip` and `+zstd` follow it.
pub const OCI_LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";
/// OCI layer, gzip.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI layer, zstd.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// The empty JSON object, `{}`, as a blob.
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Docker image manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_MANIFEST_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker layer, gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker layer, plain tar.
pub const DOCKER_LAYER_TAR: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker layer that registries do not carry.
pub const DOCKER_FOREIGN_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

/// The `Accept` header of a client that understands all manifests rimg does.
pub const MANIFEST_ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// What a media type says about its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaKind {
    /// An image manifest, OCI or Docker schema 2.
    Manifest,
    /// An image index or manifest list.
    Index,
    /// An image configuration.
    Config,
    /// A layer tar.
    Layer {
        /// How the tar is compressed.
        compression: Compression,
        /// Whether registries may lack it (OCI *non-distributable*, Docker *foreign*).
        foreign: bool,
    },
    /// Anything else.
    Other,
}

/// Classifies `media_type`.
pub fn kind(media_type: &str) -> MediaKind {
    let layer = |compression, foreign| MediaKind::Layer { compression, foreign };
    match media_type {
        OCI_MANIFEST | DOCKER_MANIFEST => MediaKind::Manifest,
        OCI_INDEX | DOCKER_MANIFEST_LIST => MediaKind::Index,
        OCI_CONFIG | DOCKER_CONFIG => MediaKind::Config,
        OCI_LAYER_TAR | DOCKER_LAYER_TAR => layer(Compression::None, false),
        OCI_LAYER_GZIP | DOCKER_LAYER_GZIP => layer(Compression::Gzip, false),
        OCI_LAYER_ZSTD | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            layer(Compression::Zstd, false)
        }
        DOCKER_FOREIGN_LAYER_GZIP => layer(Compression::Gzip, true),
        "application/vnd.oci.image.layer.nondistributable.v1.tar" => layer(Compression::None, true),
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip" => layer(Compression::Gzip, true),
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd" => layer(Compression::Zstd, true),
        _ => MediaKind::Other,
    }
}

/// Whether `media_type` belongs to Docker's family; the families are never mixed within one manifest.
pub fn is_docker(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.docker.")
}

/// The OCI media type of a layer compressed so; `None` for compressions that images do not use.
pub fn oci_layer(compression: Compression) -> Option<&'static str> {
    match compression {
        Compression::None => Some(OCI_LAYER_TAR),
        Compression::Gzip => Some(OCI_LAYER_GZIP),
        Compression::Zstd => Some(OCI_LAYER_ZSTD),
        Compression::Bzip2 | Compression::Xz => None,
    }
}
