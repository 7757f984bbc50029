//! `rimg history`: how an image was made, newest step first.

use rimg_formats::config::History;
use rimg_formats::descriptor::Descriptor;
use rimg_formats::epoch::Epoch;
use rimg_formats::platform::Platform;
use serde_json::json;

use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::{harmless, print, print_json, shortened, table};
use crate::units;

/// How much of an instruction a table shows without `--no-trunc`, as docker does.
const CREATED_BY_CHARS_MAX: usize = 60;

/// Flags of `rimg history`.
#[derive(Debug, clap::Args)]
pub(crate) struct HistoryArgs {
    /// A name, a digest, or the beginning of one
    image: String,
    /// Show instructions whole
    #[arg(long)]
    no_trunc: bool,
    /// Which variant of an index to show [default: the host's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
}

pub(crate) fn run(session: &Session, args: HistoryArgs) -> Result<(), Failure> {
    let store = session.store()?;
    let resolved = store.resolve_text(&args.image)?;
    let image = store.image(&resolved.digest, args.platform.as_ref())?;
    let mut layers = image.manifest.layers().iter();
    // Every line that is not an empty layer stands for the next layer; a history may also be missing altogether.
    let mut steps: Vec<(Option<&History>, Option<&Descriptor>)> = Vec::new();
    for line in &image.config.history {
        let layer = if line.empty_layer { None } else { layers.next() };
        steps.push((Some(line), layer));
    }
    steps.extend(layers.map(|layer| (None, Some(layer))));
    steps.reverse();
    if session.json() {
        let values = steps.iter().map(|(line, layer)| json!({"step": line, "layer": layer}));
        return print_json(&values.collect::<Vec<_>>());
    }
    let now = Epoch::now();
    let rows: Vec<Vec<String>> =
        steps.iter().map(|(line, layer)| row(*line, *layer, now, args.no_trunc)).collect();
    print(&table(&["LAYER", "CREATED", "CREATED BY", "SIZE", "COMMENT"], &rows))
}

fn row(line: Option<&History>, layer: Option<&Descriptor>, now: Epoch, whole: bool) -> Vec<String> {
    let text = |field: Option<&String>| harmless(field.map_or("", String::as_str));
    let created = line.and_then(|line| line.created.as_deref()).and_then(Epoch::parse_rfc3339);
    let mut created_by = text(line.and_then(|line| line.created_by.as_ref()));
    if !whole {
        created_by = shortened(&created_by, CREATED_BY_CHARS_MAX);
    }
    vec![
        layer.map_or_else(|| "-".to_owned(), |layer| layer.digest.short_hex()),
        created.map_or_else(|| "-".to_owned(), |created| units::age(created, now)),
        created_by,
        layer.map_or_else(|| "0B".to_owned(), |layer| units::size(layer.size)),
        text(line.and_then(|line| line.comment.as_ref())),
    ]
}
