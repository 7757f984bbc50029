//! [`Limits`]: how much a layer that somebody else made may cost whoever reads it.

/// What one layer may cost. The defaults pass the largest layers in use (machine learning images with layers of tens
/// of gigabytes, package trees of a million files) and stop bombs while they are still small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the uncompressed tar.
    pub max_uncompressed: u64,
    /// Uncompressed bytes for each compressed one, of what nobody has proven yet. gzip reaches 1030 on zeros, zstd
    /// 30,000; most layers stay below 20, but one with a large sparse file goes beyond: see
    /// [`Limits::without_ratio`].
    pub max_ratio: u64,
    /// Uncompressed bytes that are free of `max_ratio`: small blobs of zeros compress a thousandfold honestly.
    pub ratio_free: u64,
    /// Entries, and as many directories that entries lie in, whether the layer names these or not. Each costs 300 to
    /// 500 bytes of memory while a layer is indexed, and an inode when it is unpacked.
    pub max_entries: u64,
    /// Length of one file, holes included: they cost nothing on disk, but reading them takes time.
    pub max_file: u64,
    /// Bytes of names, link targets and extended attributes of all entries together; an index holds them in memory.
    pub max_metadata: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_uncompressed: 256 << 30,
            max_ratio: 500,
            ratio_free: 2 << 30,
            max_entries: 2_000_000,
            max_file: 16 << 40,
            max_metadata: 512 << 20,
        }
    }
}

impl Limits {
    /// The same for bytes that are proven: rimg wrote them, they are the caller's own, or they have been hashed and
    /// are the tar that an image names. The ratio says nothing about those: a disk image, a swap file or a `lastlog`
    /// compresses a thousandfold honestly.
    #[must_use]
    pub fn without_ratio(self) -> Limits {
        Limits { max_ratio: u64::MAX, ..self }
    }
}
