//! [`Resuming`]: a blob's stream that survives broken connections.
//!
//! Where a source breaks off, it is opened again at that offset; the sink sees one stream. Enough progress resets the
//! patience. The digest decides at the end, so a source that resumes wrongly is found out.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::{CopyOptions, Event, ImageSource, TransferError};
use crate::descriptor::Descriptor;

/// How often a broken stream is taken up again without having advanced by [`PROGRESS_BYTES_MIN`].
const READ_ATTEMPTS_MAX: u32 = 4;
/// So much has to come before a break is the first one again: a source that gives a byte at a time is not worth it.
const PROGRESS_BYTES_MIN: u64 = 1 << 20;
/// The first wait before that; it doubles each time.
const READ_RETRY_WAIT: Duration = Duration::from_millis(200);

/// A blob's bytes, taken up again where they broke off.
pub(super) struct Resuming<'a> {
    source: &'a dyn ImageSource,
    blob: &'a Descriptor,
    options: &'a CopyOptions<'a>,
    failed: &'a AtomicBool,
    inner: Option<Box<dyn Read + Send + 'a>>,
    offset: u64,
    attempts: u32,
    /// Where it was opened last.
    opened_at: u64,
    /// How far progress was told: what is read again is no progress.
    told_bytes: &'a AtomicU64,
}

impl<'a> Resuming<'a> {
    /// Opens `blob` at `offset`. Reading fails once `failed` is set: the rest of the image has.
    pub(super) fn open(
        source: &'a dyn ImageSource,
        blob: &'a Descriptor,
        options: &'a CopyOptions<'a>,
        failed: &'a AtomicBool,
        offset: u64,
        told_bytes: &'a AtomicU64,
    ) -> Result<Resuming<'a>, TransferError> {
        let inner = Some(source.open(blob, offset)?);
        Ok(Resuming {
            source,
            blob,
            options,
            failed,
            inner,
            offset,
            attempts: 0,
            opened_at: offset,
            told_bytes,
        })
    }
}

impl Resuming<'_> {
    fn advance(&mut self, count: usize) {
        self.offset += count as u64;
        if self.offset - self.opened_at >= PROGRESS_BYTES_MIN {
            self.attempts = 0;
        }
        let told = self.told_bytes.fetch_max(self.offset, Ordering::Relaxed);
        if self.offset > told {
            let bytes = self.offset - told;
            self.options.tell(Event::BlobAdvanced { digest: self.blob.digest, bytes });
        }
    }

    /// Waits and opens the source again; the given error when that has been tried often enough.
    fn reopen(&mut self, error: io::Error) -> io::Result<()> {
        // A second copy of wrong bytes would be wrong too.
        if self.attempts + 1 >= READ_ATTEMPTS_MAX || error.kind() == io::ErrorKind::InvalidData {
            return Err(error);
        }
        std::thread::sleep(READ_RETRY_WAIT * (1 << self.attempts));
        self.attempts += 1;
        self.opened_at = self.offset;
        self.inner = Some(self.source.open(self.blob, self.offset).map_err(io::Error::other)?);
        Ok(())
    }
}

impl Read for Resuming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.failed.load(Ordering::Relaxed) {
                return Err(io::Error::other("stopped, because another part of the image failed"));
            }
            let result = self.inner.as_mut().map_or(Ok(0), |inner| inner.read(buffer));
            match result {
                Ok(0) if self.offset < self.blob.size => {
                    let message = format!(
                        "{} ended after {} of {} bytes",
                        self.blob.digest, self.offset, self.blob.size
                    );
                    self.reopen(io::Error::new(io::ErrorKind::UnexpectedEof, message))?;
                }
                Ok(count) => {
                    if count > 0 {
                        self.advance(count);
                    }
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.reopen(error)?,
            }
        }
    }
}
