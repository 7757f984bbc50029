//! `rimg ls`: files of an image, read from the index of its layers.

use rimg_formats::epoch::Epoch;
use rimg_formats::layer::{EntryKind, LayerPath, Node};
use rimg_formats::platform::Platform;
use serde_json::{Value, json};

use super::tree::OpenImage;
use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::{harmless, print, print_json};
use crate::units;

/// Flags of `rimg ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct LsArgs {
    /// A name, a digest, or the beginning of one
    image: String,
    /// The folder or file
    #[arg(default_value = "/")]
    path: String,
    /// Show mode, owner, size and time
    #[arg(short, long)]
    long: bool,
    /// List everything below
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Sizes as people read them
    #[arg(short = 'H', long)]
    human: bool,
    /// Which variant of an index to look into [default: the host's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
}

pub(crate) fn run(session: &Session, args: LsArgs) -> Result<(), Failure> {
    let image = OpenImage::open(session, &args.image, args.platform.as_ref())?;
    let resolved = image.tree.resolve(&args.path)?;
    let missing = || Failure::new(format!("`{}` is not in {}", args.path, args.image));
    let node = resolved.node.ok_or_else(missing)?;
    let mut listed: Vec<(String, Node<'_>)> = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !node.is_directory() {
        listed.push((args.path.clone(), node));
    } else if args.recursive {
        let below = |path: &LayerPath| path.strip_prefix(&resolved.path).map(|path| text(path.as_bytes()));
        let walk = image.tree.walk(&resolved.path).skip(1);
        listed.extend(walk.filter_map(|(path, node)| below(&path).map(|name| (name, node))));
    } else if let Some(children) = image.tree.read_dir(&resolved.path) {
        listed.extend(children.map(|(name, node)| (text(name), node)));
    }
    if session.json() {
        return print_json(&listed.iter().map(|(name, node)| as_json(name, *node)).collect::<Vec<Value>>());
    }
    let lines: Vec<String> = match args.long {
        false => listed.iter().map(|(name, _)| harmless(name)).collect(),
        true => long_lines(&listed, args.human),
    };
    print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())
}

fn long_lines(listed: &[(String, Node<'_>)], human: bool) -> Vec<String> {
    let size = |node: &Node<'_>| match human {
        true => units::size(node.entry.map_or(0, |entry| entry.entry.size())),
        false => node.entry.map_or(0, |entry| entry.entry.size()).to_string(),
    };
    let width = listed.iter().map(|(_, node)| size(node).len()).max().unwrap_or(0);
    let line = |(name, node): &(String, Node<'_>)| {
        let time = Epoch::from_seconds(node.mtime().secs).unwrap_or(Epoch::DEFAULT);
        let owner = format!("{}:{}", node.uid(), node.gid());
        let size = size(node);
        let arrow = match node.kind() {
            EntryKind::Symlink { target } => format!(" -> {}", harmless(&String::from_utf8_lossy(target))),
            EntryKind::Hardlink { target } => format!(" => {}", harmless(&target.to_string())),
            _ => String::new(),
        };
        format!("{} {owner:<11} {size:>width$} {time} {}{arrow}", mode_text(*node), harmless(name))
    };
    listed.iter().map(line).collect()
}

/// `-rwxr-xr-x`, as `ls -l` writes it.
fn mode_text(node: Node<'_>) -> String {
    let kind = match node.kind() {
        EntryKind::Directory => 'd',
        EntryKind::Symlink { .. } => 'l',
        EntryKind::CharDevice { .. } => 'c',
        EntryKind::BlockDevice { .. } => 'b',
        EntryKind::Fifo => 'p',
        _ => '-',
    };
    let mode = node.mode();
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift & 7;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

fn as_json(name: &str, node: Node<'_>) -> Value {
    let (kind, target) = match node.kind() {
        EntryKind::Directory => ("directory", None),
        EntryKind::Regular { .. } => ("file", None),
        EntryKind::Symlink { target } => ("symlink", Some(String::from_utf8_lossy(target).into_owned())),
        EntryKind::Hardlink { target } => ("hardlink", Some(target.to_string())),
        EntryKind::CharDevice { .. } => ("character device", None),
        EntryKind::BlockDevice { .. } => ("block device", None),
        EntryKind::Fifo => ("fifo", None),
        EntryKind::Whiteout | EntryKind::OpaqueMarker => ("whiteout", None),
    };
    json!({
        "name": name,
        "kind": kind,
        "mode": format!("{:04o}", node.mode()),
        "uid": node.uid(),
        "gid": node.gid(),
        "size": node.entry.map(|entry| entry.entry.size()),
        "mtime": node.mtime().secs,
        "target": target,
        "digest": node.entry.and_then(|entry| entry.content),
        "layer": node.layer,
    })
}
