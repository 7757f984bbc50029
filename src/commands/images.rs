//! `rimg images`: what is in the store.

use std::collections::BTreeSet;

use rimg_formats::digest::Digest;
use rimg_formats::epoch::Epoch;
use rimg_formats::reference::Reference;
use rimg_formats::store::ImageRecord;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::{harmless, print, print_json, print_line, table};
use crate::units;

/// Flags of `rimg images`.
#[derive(Debug, clap::Args)]
pub(crate) struct ImagesArgs {
    /// Only images of this name
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<Reference>,
    /// Print digests alone
    #[arg(short, long)]
    quiet: bool,
    /// Print digests whole
    #[arg(long, alias = "digests")]
    no_trunc: bool,
    /// Also list images without a name
    #[arg(short, long)]
    all: bool,
}

pub(crate) fn run(session: &Session, args: ImagesArgs) -> Result<(), Failure> {
    let wanted = |record: &ImageRecord| match &args.name {
        None => args.all || record.tag.is_some(),
        Some(name) => record.name == name.name() && (name.tag.is_none() || name.tag == record.tag),
    };
    let mut records = session.store()?.images()?;
    if args.name.is_none() {
        let named: BTreeSet<Digest> =
            records.iter().filter(|record| record.tag.is_some()).map(|record| record.digest).collect();
        records.retain(|record| record.tag.is_some() || !named.contains(&record.digest));
    }
    records.retain(wanted);
    if session.json() {
        return print_json(&records.iter().map(as_json).collect::<Vec<Value>>());
    }
    if args.quiet {
        let mut digests: Vec<String> = records.iter().map(|record| record.digest.to_string()).collect();
        digests.dedup();
        return digests.iter().try_for_each(|digest| print_line(digest));
    }
    let now = Epoch::now();
    let rows: Vec<Vec<String>> = records.iter().map(|record| row(record, now, args.no_trunc)).collect();
    print(&table(&["REPOSITORY", "TAG", "DIGEST", "PLATFORM", "CREATED", "SIZE"], &rows))
}

fn row(record: &ImageRecord, now: Epoch, whole: bool) -> Vec<String> {
    let created = record.created.as_deref().and_then(Epoch::parse_rfc3339);
    let platforms: Vec<String> = record.platforms.iter().map(ToString::to_string).collect();
    let size = match record.damaged {
        Some(_) => "damaged".to_owned(),
        None => units::size(record.size),
    };
    vec![
        record.name.to_string(),
        record.tag.as_ref().map_or_else(|| "<none>".to_owned(), ToString::to_string),
        if whole { record.digest.to_string() } else { record.digest.short_hex() },
        harmless(&platforms.join(",")),
        created.map_or_else(|| "-".to_owned(), |created| units::age(created, now)),
        size,
    ]
}

fn as_json(record: &ImageRecord) -> Value {
    json!({
        "name": record.name,
        "tag": record.tag,
        "digest": record.digest,
        "mediaType": record.media_type,
        "configDigest": record.config,
        "platforms": record.platforms.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "created": record.created,
        "size": record.size,
        "uniqueSize": record.unique_size,
        "damaged": record.damaged,
    })
}
