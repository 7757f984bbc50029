//! Files with holes: [`SparseFile`] reads one without reading its holes, [`write_sparse`] makes holes of zeros.
//!
//! A `lastlog` or a disk image of many gigabytes takes a few blocks on disk. The kernel says where these are
//! (`SEEK_DATA`, `SEEK_HOLE`); a file system that does not know says that all of it is data.

use std::borrow::Borrow;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Bytes written at once, and the size of zeros that become holes.
const PIECE_BYTES: usize = 128 << 10;

/// Bytes in a block, as `st_blocks` counts them.
const BLOCK_BYTES: u64 = 512;

/// A regular file read from its beginning; holes are zeros that cost no reading.
#[derive(Debug)]
pub struct SparseFile<F = File> {
    file: F,
    position: u64,
    /// The end of the run that `position` is in, and whether that is a hole.
    run: (u64, bool),
    /// Where looking for holes ends: the file's size when it was opened, 0 for one without holes.
    size: u64,
}

impl<F: Borrow<File>> SparseFile<F> {
    /// Reads `file`.
    ///
    /// # Errors
    /// When nothing can be learned about it.
    pub fn new(file: F) -> io::Result<SparseFile<F>> {
        let metadata = file.borrow().metadata()?;
        let has_holes = metadata.is_file() && metadata.blocks().saturating_mul(BLOCK_BYTES) < metadata.len();
        let size = if has_holes { metadata.len() } else { 0 };
        Ok(SparseFile { file, position: 0, run: (0, false), size })
    }

    /// The run that begins at `position`.
    fn next_run(&self) -> (u64, bool) {
        // The size is behind all that the kernel says, and a growing file is read on as data.
        if self.position >= self.size {
            return (u64::MAX, false);
        }
        match rustix::fs::seek(self.file.borrow(), SeekFrom::Data(self.position)) {
            Ok(data) if data > self.position => (data.min(self.size), true),
            Ok(_) => match rustix::fs::seek(self.file.borrow(), SeekFrom::Hole(self.position)) {
                Ok(hole) if hole > self.position => (hole, false),
                _ => (u64::MAX, false),
            },
            Err(Errno::NXIO) => (self.size, true),
            Err(_) => (u64::MAX, false),
        }
    }
}

impl<F: Borrow<File>> Read for SparseFile<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.run.0 {
            self.run = self.next_run();
        }
        let (end, is_hole) = self.run;
        let room = usize::try_from(end - self.position).unwrap_or(usize::MAX).min(buffer.len());
        let count = match is_hole {
            true => {
                buffer[..room].fill(0);
                room
            }
            false => self.file.borrow().read_at(&mut buffer[..room], self.position)?,
        };
        self.position += count as u64;
        Ok(count)
    }
}

/// Writes `size` bytes of `content` to `file`, which is empty; long runs of zeros become holes.
///
/// # Errors
/// Those of reading and writing; `UnexpectedEof` where the content ends early.
pub fn write_sparse(file: &File, content: &mut dyn Read, size: u64) -> io::Result<()> {
    let mut buffer = vec![0; PIECE_BYTES.min(usize::try_from(size).unwrap_or(PIECE_BYTES)).max(1)];
    let mut position = 0;
    let mut ends_in_hole = false;
    while position < size {
        let mut filled = 0;
        while filled < buffer.len() && position + (filled as u64) < size {
            match content.read(&mut buffer[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        ends_in_hole = filled == PIECE_BYTES && buffer[..filled].iter().all(|byte| *byte == 0);
        if !ends_in_hole {
            file.write_all_at(&buffer[..filled], position)?;
        }
        position += filled as u64;
    }
    if ends_in_hole { file.set_len(size) } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_zeros_and_stay_holes() {
        let file = tempfile::tempfile().unwrap();
        for (at, content) in [(0, "head"), (5 << 20, "middle"), ((9 << 20) - 1, "!")] {
            file.write_all_at(content.as_bytes(), at).unwrap();
        }
        file.set_len(12 << 20).unwrap();
        let mut plain = Vec::new();
        file.try_clone().unwrap().read_to_end(&mut plain).unwrap();
        let mut read = Vec::new();
        SparseFile::new(file).unwrap().read_to_end(&mut read).unwrap();
        assert!(read == plain);
        let copy = tempfile::tempfile().unwrap();
        write_sparse(&copy, &mut read.as_slice(), read.len() as u64).unwrap();
        assert_eq!(copy.metadata().unwrap().len(), 12 << 20);
        assert!(copy.metadata().unwrap().blocks() * BLOCK_BYTES < 1 << 20);
        let mut again = Vec::new();
        SparseFile::new(copy).unwrap().read_to_end(&mut again).unwrap();
        assert!(again == plain);
        let empty = tempfile::tempfile().unwrap();
        assert_eq!(SparseFile::new(empty).unwrap().read(&mut [0; 8]).unwrap(), 0);
    }
}
