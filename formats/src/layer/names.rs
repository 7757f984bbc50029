//! Names with the prefix `.wh.`, which say that something is gone (image-spec, *Whiteouts*).

use super::entry::EntryKind;
use super::header::{OPAQUE_NAME, WHITEOUT_PREFIX};
use super::path::LayerPath;
use super::reader::ReadMode;

/// Translates `.wh.` names; `None` for entries to skip.
pub(super) fn markers(
    path: LayerPath,
    kind: EntryKind,
    mode: ReadMode,
) -> Result<Option<(LayerPath, EntryKind)>, String> {
    if !path.components().any(|name| name.starts_with(WHITEOUT_PREFIX)) {
        return Ok(Some((path, kind)));
    }
    if mode == ReadMode::Archive {
        return Err("names that begin with `.wh.` cannot be files in a layer".to_owned());
    }
    let (parent, name) = path.split_name();
    let parent = LayerPath::parse(parent).map_err(|error| error.to_string())?;
    let aufs = |name: &[u8]| name.starts_with(b".wh..wh.");
    if parent.components().any(aufs) || (aufs(name) && name != OPAQUE_NAME) {
        return Ok(None);
    }
    if parent.components().any(|name| name.starts_with(WHITEOUT_PREFIX)) {
        return Err("it lies below a whiteout".to_owned());
    }
    if !matches!(kind, EntryKind::Regular { .. }) {
        return Err("it is a whiteout but not a regular file".to_owned());
    }
    if name == OPAQUE_NAME {
        return Ok(Some((parent, EntryKind::OpaqueMarker)));
    }
    match &name[WHITEOUT_PREFIX.len()..] {
        b"" | b"." | b".." => {
            Err("it is a whiteout of nothing, of its directory or of the parent".to_owned())
        }
        removed => {
            let path = parent.join(removed).map_err(|error| error.to_string())?;
            Ok(Some((path, EntryKind::Whiteout)))
        }
    }
}
