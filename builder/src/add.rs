//! ADD of local archives, and archives as bases: a tar by its content, seen as a tree of files.
//!
//! An archive is scanned once; its index is kept in the cache under the archive's digest, so that an unchanged
//! archive is not even opened. Contents are read out of the archive when the layer is written.

use std::io::{self, Read};
use std::sync::Arc;

use rimg_formats::compression::{Compression, decoder};
use rimg_formats::digest::Digest;
use rimg_formats::layer::{Expected, LayerError, LayerIndex, Limits};

use crate::context::DiskFile;
use crate::copy::{CopyError, Match};
use crate::layer_step::LayerMaker;
use crate::layer_tree::LayerTree;
use crate::source_tree::{Content, SourceNode};

/// Length of a tar's header block; what does not begin with one is no tar.
const BLOCK_BYTES: usize = 512;

/// The archive that a source matched, if it is one.
pub(crate) fn archive(maker: &LayerMaker, found: &Match) -> Result<Option<LayerTree>, CopyError> {
    archive_of(maker, &found.name.to_string(), &found.node)
}

/// The archive that a file is, if it is one; `name` is for messages.
pub(crate) fn archive_of(
    maker: &LayerMaker,
    name: &str,
    node: &SourceNode,
) -> Result<Option<LayerTree>, CopyError> {
    // Archives inside of images are copied as they are: ADD has no --from.
    let Content::Disk(file) = &node.content else { return Ok(None) };
    if !begins_like_a_tar(file)? {
        return Ok(None);
    }
    let digest = maker.file_digest(file)?;
    let failed = |error: &dyn std::fmt::Display| CopyError::Archive {
        name: name.to_owned(),
        reason: error.to_string(),
    };
    let key = format!("archive {digest}");
    let known = maker.store.cache_get(&key).map_err(|error| failed(&error))?;
    let index = match known.and_then(|bytes| LayerIndex::from_bytes(&bytes).ok()) {
        Some(index) => index,
        None => {
            let index = scan(file, digest).map_err(|error| failed(&error))?;
            let kept = maker.store.cache_put(&key, "archives", &index.to_bytes(), &[]);
            kept.map_err(|error| failed(&error))?;
            index
        }
    };
    if let Some(marker) = index.entries.iter().find(|entry| entry.entry.is_marker()) {
        let path = marker.path();
        let reason =
            format!("it holds a name that begins with `.wh.` (for `{path}`), which no layer can hold");
        return Err(CopyError::Archive { name: name.to_owned(), reason });
    }
    Ok(Some(LayerTree::of_archive(name, &maker.store, Arc::new(index), file.clone())))
}

fn scan(file: &DiskFile, digest: Digest) -> Result<LayerIndex, LayerError> {
    let opened = file.open().map_err(LayerError::Read)?;
    // The digest is of what was hashed a moment ago: an archive that changed meanwhile is refused here.
    LayerIndex::scan_archive(opened, Limits::default(), Expected { blob: Some(digest), diff_id: None })
}

/// Whether the file, decompressed, begins with a valid tar header.
fn begins_like_a_tar(file: &DiskFile) -> io::Result<bool> {
    let mut prefix = [0; Compression::PREFIX_BYTES];
    let mut opened = file.open()?;
    let length = read_up_to(&mut opened, &mut prefix)?;
    let compression = Compression::detect(&prefix[..length]);
    let input = io::Cursor::new(prefix[..length].to_vec()).chain(opened);
    let mut block = [0; BLOCK_BYTES];
    // What claims to be compressed and is not is an ordinary file.
    match read_up_to(&mut decoder(compression, Box::new(input)), &mut block) {
        Ok(BLOCK_BYTES) => Ok(is_header(&block)),
        Ok(_) | Err(_) => Ok(false),
    }
}

fn read_up_to(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match input.read(&mut buffer[length..])? {
            0 => break,
            count => length += count,
        }
    }
    Ok(length)
}

/// Whether a block's checksum is right (POSIX.1-2001, ustar: the sum of all bytes, the checksum's own taken as
/// blanks; old tars summed signed bytes).
fn is_header(block: &[u8; BLOCK_BYTES]) -> bool {
    let digits: Vec<u8> = block[148..156].iter().copied().filter(|byte| byte.is_ascii_digit()).collect();
    let Some(stated) = std::str::from_utf8(&digits).ok().and_then(|text| i64::from_str_radix(text, 8).ok())
    else {
        return false;
    };
    let bytes =
        || block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    stated == unsigned || stated == signed
}
