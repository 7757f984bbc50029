//! [`LayerError`]: what can be wrong with a layer.

use std::io;

use super::path::printable;
use crate::digest::Digest;

/// Why a layer cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The input failed; trying again may help.
    #[error("failed to read the layer: {0}")]
    Read(#[source] io::Error),
    /// The stream ends too early; fetching it again may help.
    #[error("layer ends in the middle of {what}, at byte {offset} of its tar")]
    Truncated {
        /// What is incomplete.
        what: &'static str,
        /// Offset in the uncompressed tar.
        offset: u64,
    },
    /// The stream is not what it claims to be.
    #[error("layer is damaged at byte {offset} of its tar: {reason}")]
    Malformed {
        /// Offset in the uncompressed tar.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// An entry that rimg does not let in.
    #[error("layer entry `{name}` is refused: {reason}")]
    Refused {
        /// Its name as the archive has it, made printable.
        name: String,
        /// Why.
        reason: String,
    },
    /// One of the [`Limits`] is exceeded.
    #[error("layer exceeds the limit of {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// The content is not the one asked for.
    #[error("{what} of the layer is {actual}, expected {expected}")]
    Mismatch {
        /// `digest` or `diff_id`.
        what: &'static str,
        /// What was asked for.
        expected: Box<Digest>,
        /// What was found.
        actual: Box<Digest>,
    },
}

/// What [`Limits::max_ratio`](super::Limits) bounds.
pub(super) const RATIO: &str = "uncompressed bytes for each compressed one";

impl LayerError {
    /// Whether the layer only compresses too well to be taken on trust: see [`Limits::without_ratio`](super::Limits).
    pub fn is_ratio(&self) -> bool {
        match self {
            LayerError::Limit { what, .. } => *what == RATIO,
            // The content of a file is read as `io::Read`.
            LayerError::Read(error) => error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<LayerError>())
                .is_some_and(LayerError::is_ratio),
            _ => false,
        }
    }
}

/// An error of the stream below, told apart by what it means for the layer.
pub(super) fn failure(error: io::Error, what: &'static str, offset: u64) -> LayerError {
    let error = match error.downcast::<LayerError>() {
        Ok(layer) => return layer,
        Err(error) => error,
    };
    match error.kind() {
        io::ErrorKind::UnexpectedEof => LayerError::Truncated { what, offset },
        io::ErrorKind::InvalidData => LayerError::Malformed { offset, reason: error.to_string() },
        _ => LayerError::Read(error),
    }
}

/// An error on the way to an entry, before its name and place are attached.
pub(super) enum Trouble {
    Damaged(String),
    Refused(String),
    Layer(LayerError),
}

impl Trouble {
    pub(super) fn or_refuse(self, name: &[u8], offset: u64) -> LayerError {
        match self {
            Trouble::Damaged(reason) => LayerError::Malformed { offset, reason },
            Trouble::Refused(reason) => LayerError::Refused { name: printable(name), reason },
            Trouble::Layer(error) => error,
        }
    }
}

impl From<LayerError> for Trouble {
    fn from(error: LayerError) -> Trouble {
        Trouble::Layer(error)
    }
}

impl From<String> for Trouble {
    fn from(reason: String) -> Trouble {
        Trouble::Damaged(reason)
    }
}
