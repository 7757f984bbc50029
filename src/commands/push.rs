//! `rimg push`: an image from the store to a registry.

use rimg_formats::descriptor::Descriptor;
use rimg_formats::digest::Digest;
use rimg_formats::manifest::ManifestOrIndex;
use rimg_formats::platform::Platform;
use rimg_formats::reference::Reference;
use rimg_formats::store::{Repository, Store};
use rimg_formats::transfer::{CopyOptions, Platforms, TransferError, Version, copy_image};
use rimg_registry::client::{Client, RemoteRepository};
use serde_json::json;

use super::remote::{self, Bars, RemoteArgs};
use crate::failure::Failure;
use crate::progress::Display;
use crate::session::Session;
use crate::terminal::{note, print_json, print_line};

/// Names with a blob that are looked through for repositories of the target's registry: base layers are in many.
const NAMES_MAX: usize = 100;

/// Flags of `rimg push`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  rimg push registry.example/team/app:1\n  rimg push app registry.example/team/app:1"
)]
pub(crate) struct PushArgs {
    /// The local image; also where it is pushed to, unless a target follows
    image: String,
    /// Where to push it
    #[arg(value_name = "[REGISTRY/]NAME[:TAG]")]
    target: Option<Reference>,
    /// Push this variant of an image for several platforms, as an image of its own
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(crate) fn run(session: &Session, args: PushArgs) -> Result<(), Failure> {
    let store = session.store()?;
    let resolved = store.resolve_text(&args.image)?;
    let target = match args.target {
        Some(target) => target,
        None => args.image.parse::<Reference>().map_err(|error| {
            Failure::from(error)
                .hint(format!("say where to push it: rimg push {} REGISTRY/NAME[:TAG]", args.image))
        })?,
    };
    let source = store.repository(&resolved.name);
    let digest = match &args.platform {
        Some(_) => resolved.digest,
        None => whole(&source, &resolved.digest)?,
    };
    let display = args.remote.display();
    let pushed = to_registry(&source, &digest, &target, args.platform, &args.remote, &display)
        .map_err(|error| remote::explain(error, &format!("failed to push {} to {target}", args.image)))?;
    match session.json() {
        true => print_json(&json!({"name": target, "digest": pushed.digest, "mediaType": pushed.media_type})),
        false => print_line(&pushed.digest.to_string()),
    }
}

/// Pushes an image of the repository `source`, of an index the variant for `platform` alone if one is given.
pub(crate) fn to_registry(
    source: &Repository,
    digest: &Digest,
    target: &Reference,
    platform: Option<Platform>,
    remote: &RemoteArgs,
    display: &Display,
) -> Result<Descriptor, TransferError> {
    let client = Client::new(remote.client_options());
    let sink = remote_sink(&client, source.store(), target);
    let bars = Bars::new(display);
    let on_event = |event| bars.show(event);
    let options = CopyOptions {
        flatten: platform.is_some(),
        platforms: platform.map_or(Platforms::All, |platform| Platforms::Only(vec![platform])),
        referrers: true,
        parallel: remote.parallel.into(),
        on_event: Some(&on_event),
    };
    copy_image(source, &sink, &Version::Digest(*digest), &options)
}

/// What is pushed of `digest`, when all of it is wanted. Pulling brings one variant of an index; registries refuse an
/// index without its others, so that one is pushed as an image of its own, as docker does.
fn whole(source: &Repository, digest: &Digest) -> Result<Digest, Failure> {
    let ManifestOrIndex::Index(index) = source.manifest(digest)?.parse()? else { return Ok(*digest) };
    let (mut here, mut missing) = (Vec::new(), Vec::new());
    for variant in index.manifests() {
        match source.media_type(&variant.digest)? {
            Some(_) => here.push(variant),
            None => missing.push(variant),
        }
    }
    let named = |variants: &[&Descriptor]| {
        let platforms = variants.iter().filter_map(|variant| variant.platform.as_ref());
        platforms.map(Platform::to_string).collect::<Vec<_>>().join(", ")
    };
    match here.as_slice() {
        _ if missing.is_empty() => Ok(*digest),
        [only] => {
            note(&format!("only {} of the image is here and pushed, as an image of its own", named(&[only])));
            Ok(only.digest)
        }
        _ => Err(Failure::new(format!("of the image's variants, some are not here: {}", named(&missing)))
            .hint("push one of them: --platform OS/ARCH")
            .hint("fetch the rest first: rimg pull --all-platforms NAME")),
    }
}

/// Where the image goes. Repositories of the same registry that have a blob here probably have it there: the registry
/// is asked to take it from them.
fn remote_sink(client: &Client, store: &Store, target: &Reference) -> RemoteRepository {
    let (store, host) = (store.clone(), target.registry_host());
    let neighbours = move |digest: &Digest| {
        // Mounting only saves bytes: without it they are sent.
        let known = store.repositories_with_blob(digest, NAMES_MAX).unwrap_or_default();
        let references = known.iter().filter_map(|name| name.as_str().parse::<Reference>().ok());
        let others = references.filter(|other| other.registry.is_some() && other.registry_host() == host);
        others.map(|other| other.remote_repository()).collect()
    };
    let tags = if target.digest.is_some() { None } else { Some(target.tag_or_latest()) };
    client.repository(target).mounting_from(neighbours).publishing(tags)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rimg_formats::media_type::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
    use rimg_formats::store::PutOptions;

    use super::*;

    /// Puts an index of two platforms, of which `here` are in the store; its digest and theirs.
    fn sparse(source: &Repository, here: usize) -> (Digest, Vec<Digest>) {
        let entries: Vec<(Digest, String)> = ["amd64", "arm64"]
            .into_iter()
            .enumerate()
            .map(|(number, architecture)| {
                let config = Digest::sha256(architecture.as_bytes());
                let raw = format!(
                    r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"{OCI_CONFIG}","digest":"{config}","size":5}},"layers":[]}}"#
                );
                if number < here {
                    let mut ingest = source.store().ingest().unwrap();
                    ingest.append(architecture.as_bytes()).unwrap();
                    ingest.commit(None).unwrap();
                    source.put_manifest(raw.as_bytes(), None, &[], &PutOptions::local()).unwrap();
                }
                let digest = Digest::sha256(raw.as_bytes());
                let platform = format!(r#"{{"os":"linux","architecture":"{architecture}"}}"#);
                (digest, format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":{},"platform":{platform}}}"#, raw.len()))
            })
            .collect();
        let (digests, entries): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
        let index =
            format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{}]}}"#, entries.join(","));
        let put = source.put_manifest(index.as_bytes(), None, &[], &PutOptions::local()).unwrap();
        (put.digest, digests)
    }

    #[test]
    fn of_an_index_that_was_pulled_for_one_platform_that_one_is_pushed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let source = store.repository(&"app".parse().unwrap());
        let (index, variants) = sparse(&source, 1);
        assert_eq!(whole(&source, &index).unwrap(), variants[0]);
        assert_eq!(whole(&source, &variants[0]).unwrap(), variants[0]);
        let (_, text) = whole(&store.repository(&"other".parse().unwrap()), &index).unwrap_err().report();
        assert!(!text.unwrap().is_empty());
        assert_eq!(sparse(&source, 2).0, index);
        assert_eq!(whole(&source, &index).unwrap(), index);
    }

    #[test]
    fn an_index_without_any_of_its_variants_is_not_pushed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let source = store.repository(&"app".parse().unwrap());
        let (index, _) = sparse(&source, 0);
        let (code, text) = whole(&source, &index).unwrap_err().report();
        let text = text.unwrap();
        assert!(
            code == 1 && text.contains("linux/amd64, linux/arm64") && text.contains("--platform"),
            "{text}"
        );
    }
}
