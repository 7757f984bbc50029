//! The uncompressed stream under a reader: decoded, counted against the limits, hashed when somebody wants to know.

use std::io::{self, Read};

use super::error::{LayerError, RATIO};
use super::limits::Limits;
use crate::compression::{Compression, Decoder, Member, Padding};
use crate::digest::{Algorithm, DiffId, Hasher};

pub(super) struct LayerStream<'a> {
    decoder: Decoder<'a>,
    limits: Limits,
    hasher: Option<Hasher>,
}

/// What the stream was, known at its end.
pub(super) struct StreamEnd {
    pub(super) diff_id: Option<DiffId>,
    pub(super) compression: Compression,
    pub(super) uncompressed_size: u64,
    pub(super) members: Vec<Member>,
}

impl<'a> LayerStream<'a> {
    pub(super) fn new(
        input: Box<dyn Read + Send + 'a>,
        limits: Limits,
        hash: Option<Algorithm>,
    ) -> io::Result<LayerStream<'a>> {
        let hasher = hash.map(Hasher::new);
        Ok(LayerStream { decoder: Decoder::detect(input)?, limits, hasher })
    }

    /// What becomes of zeros behind the compressed stream.
    pub(super) fn with_padding(self, padding: Padding) -> LayerStream<'a> {
        LayerStream { decoder: self.decoder.with_padding(padding), ..self }
    }

    /// The result; meaningful once a read has returned 0.
    pub(super) fn finish(self) -> StreamEnd {
        StreamEnd {
            diff_id: self.hasher.map(|hasher| DiffId::new(hasher.finish())),
            compression: self.decoder.compression(),
            uncompressed_size: self.decoder.produced(),
            members: self.decoder.into_members(),
        }
    }

    fn check_limits(&self) -> Result<(), LayerError> {
        let (produced, consumed) = (self.decoder.produced(), self.decoder.consumed());
        let Limits { max_uncompressed, max_ratio, ratio_free, .. } = self.limits;
        if produced > max_uncompressed {
            return Err(LayerError::Limit { what: "uncompressed bytes", limit: max_uncompressed });
        }
        if produced > ratio_free && produced / consumed.max(1) > max_ratio {
            return Err(LayerError::Limit { what: RATIO, limit: max_ratio });
        }
        Ok(())
    }
}

impl Read for LayerStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
        }
        self.check_limits().map_err(io::Error::other)?;
        Ok(count)
    }
}
