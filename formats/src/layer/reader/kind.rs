//! What an entry is, and how its content is stored: types, link targets, and the maps of sparse files.

use super::{LayerReader, or_else};
use crate::layer::block::{self, HeaderBlock};
use crate::layer::content::Stored;
use crate::layer::entry::EntryKind;
use crate::layer::error::{LayerError, Trouble};
use crate::layer::header::{BLOCK_BYTES, WHITEOUT_PREFIX, padding_of};
use crate::layer::path::{LayerPath, PATH_BYTES_MAX};
use crate::layer::pax::Extensions;
use crate::layer::sparse::{self, MapParser, SEGMENTS_MAX, Segment};

impl LayerReader<'_> {
    /// What the entry is; also sets up its content.
    pub(super) fn kind(
        &mut self,
        header: &HeaderBlock,
        pax: &Extensions,
        name: &[u8],
        link: Vec<u8>,
    ) -> Result<EntryKind, Trouble> {
        let size = or_else(pax.size, || header.size())?;
        let device = || header.device();
        self.current = Stored { offset: self.position, ..Stored::default() };
        if pax.sparse.name.is_some()
            && !(pax.sparse.is_map() && matches!(header.type_flag(), 0 | b'0' | b'7'))
        {
            // Some readers give any entry that name, others only such files.
            return Err(Trouble::Refused("it has the name of a sparse file but is none".to_owned()));
        }
        match header.type_flag() {
            // v7 knew directories by the slash alone.
            0 if name.ends_with(b"/") => Ok(EntryKind::Directory),
            0 | b'0' | b'7' | b'S' => self.regular(header, pax, size),
            // POSIX wants 0 here; some readers skip that much content, others take it for the next header.
            b'1' | b'2' | b'3' | b'4' | b'6' if size != 0 => {
                Err(Trouble::Refused("it is a link or device with content of its own".to_owned()))
            }
            b'1' => {
                let target = LayerPath::parse(&link)
                    .map_err(|error| Trouble::Refused(format!("its target: {error}")))?;
                if target.components().any(|name| name.starts_with(WHITEOUT_PREFIX)) {
                    return Err(Trouble::Refused("it is a hard link to a whiteout".to_owned()));
                }
                Ok(EntryKind::Hardlink { target })
            }
            b'2' if link.is_empty() || link.contains(&0) || link.len() >= PATH_BYTES_MAX => {
                Err(Trouble::Refused(
                    "the target of the symbolic link is empty, too long or holds a NUL byte".to_owned(),
                ))
            }
            b'2' => Ok(EntryKind::Symlink { target: link }),
            b'3' => device()
                .map(|(major, minor)| EntryKind::CharDevice { major, minor })
                .map_err(Trouble::Damaged),
            b'4' => device()
                .map(|(major, minor)| EntryKind::BlockDevice { major, minor })
                .map_err(Trouble::Damaged),
            b'5' => Ok(EntryKind::Directory),
            b'6' => Ok(EntryKind::Fifo),
            other => Err(Trouble::Refused(format!("its type `{}` is not supported", other.escape_ascii()))),
        }
    }

    fn regular(&mut self, header: &HeaderBlock, pax: &Extensions, stored: u64) -> Result<EntryKind, Trouble> {
        let records = &pax.sparse;
        let padding = padding_of(stored) as u64;
        let in_content = records.map_in_content();
        let (segments, size) = if header.type_flag() == b'S' {
            (Some(self.gnu_map(header)?), header.gnu_real_size()?)
        } else if records.is_map() {
            let size = records.real_size.ok_or("the sparse file has no real size".to_owned())?;
            (Some(if in_content { Vec::new() } else { records.segments.clone() }), size)
        } else if records.major.is_some() || records.minor.is_some() {
            return Err(Trouble::Refused("its sparse format is not supported".to_owned()));
        } else {
            (None, stored)
        };
        if size > self.limits.max_file {
            return Err(LayerError::Limit { what: "bytes in one file", limit: self.limits.max_file }.into());
        }
        let (segments, left) = match segments {
            Some(_) if in_content => self.map_in_content(stored)?,
            other => (other, stored),
        };
        if let Some(segments) = &segments {
            sparse::check(segments, size, left)?;
        }
        let sparse = segments.is_some();
        let segments = segments.unwrap_or_default();
        self.current =
            Stored { left, padding, size, offset: self.position, segments, sparse, ..Stored::default() };
        Ok(EntryKind::Regular { size })
    }

    /// The map in the header block and the blocks after it.
    fn gnu_map(&mut self, header: &HeaderBlock) -> Result<Vec<Segment>, Trouble> {
        let (mut segments, mut more) = header.gnu_segments()?;
        while more {
            let block = self.block("a sparse map")?.ok_or_else(|| self.truncated("a sparse map"))?;
            let (further, continues) = block::gnu_continuation(&block)?;
            if segments.len() + further.len() > SEGMENTS_MAX || (further.is_empty() && continues) {
                return Err(Trouble::Damaged(format!(
                    "the sparse map is empty or over {SEGMENTS_MAX} segments"
                )));
            }
            segments.extend(further);
            more = continues;
        }
        Ok(segments)
    }

    /// The map at the head of the content, and how much content is left behind it.
    fn map_in_content(&mut self, stored: u64) -> Result<(Option<Vec<Segment>>, u64), Trouble> {
        let mut parser = MapParser::default();
        let mut left = stored;
        loop {
            left = left
                .checked_sub(BLOCK_BYTES as u64)
                .ok_or("the sparse map is longer than its file".to_owned())?;
            let block = self.block("a sparse map")?.ok_or_else(|| self.truncated("a sparse map"))?;
            if let Some(segments) = parser.block(&block)? {
                return Ok((Some(segments), left));
            }
        }
    }
}
