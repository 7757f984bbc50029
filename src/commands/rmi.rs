//! `rimg rmi`: takes names off images; what nothing needs then is freed at once.

use serde_json::json;

use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::{note, print_json, print_line};
use crate::units;

/// Flags of `rimg rmi`.
#[derive(Debug, clap::Args)]
pub(crate) struct RmiArgs {
    /// Names, digests, or beginnings of digests
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Remove all names of an image, also of one that a container runs, and ignore images that are not there
    #[arg(short, long)]
    force: bool,
}

pub(crate) fn run(session: &Session, args: RmiArgs) -> Result<(), Failure> {
    let store = session.store_to_remove()?;
    let in_use = super::snapshots::in_use(&store)?;
    let (mut values, mut bytes) = (Vec::new(), 0);
    for name in &args.images {
        let resolved = match store.resolve_text(name) {
            Ok(resolved) => resolved,
            Err(_) if args.force => continue,
            Err(error) => return Err(error.into()),
        };
        // `name@digest` means that repository, an id alone every one.
        let removed = match resolved.tag.is_none() && !name.contains('@') {
            true => store.remove_image_by_id(&resolved, &in_use, args.force)?,
            false => store.remove_image(&resolved, &in_use, args.force)?,
        };
        bytes += removed.bytes;
        let untagged: Vec<String> =
            removed.untagged.iter().map(|(name, tag)| format!("{name}:{tag}")).collect();
        if session.json() {
            values.push(json!({"untagged": untagged, "deleted": removed.deleted, "bytes": removed.bytes}));
            continue;
        }
        untagged.iter().try_for_each(|name| print_line(&format!("Untagged: {name}")))?;
        removed.deleted.iter().try_for_each(|digest| print_line(&format!("Deleted: {digest}")))?;
    }
    match session.json() {
        true => print_json(&values),
        false => {
            if bytes > 0 {
                note(&format!("freed {}", units::size(bytes)));
            }
            Ok(())
        }
    }
}
