//! [`Compression`]: how a layer's tar is packed.

/// A compression that rimg reads; images themselves use the first three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Plain.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// bzip2, in archives for ADD.
    Bzip2,
    /// xz, in archives for ADD.
    Xz,
}
