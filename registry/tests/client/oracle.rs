//! Another client as the judge: what it pushes to our server our client pulls, and the other way round.

use std::future::pending;
use std::io::Read;
use std::net::SocketAddr;

use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::manifest::{IMAGE_LAYER_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE};
use oci_client::secrets::RegistryAuth::Anonymous;
use rimg_formats::descriptor::Descriptor;
use rimg_formats::digest::Digest;
use rimg_formats::manifest::ManifestOrIndex;
use rimg_formats::store::Store;
use rimg_registry::client::{Client, RemoteRepository};
use rimg_registry::server::{Server, ServerOptions};
use tokio::runtime::Runtime;

use crate::download::content;
use crate::fake::options;

const CONFIG: &[u8] = br#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}"#;

/// A server of our own, which ends with the test.
struct Served {
    runtime: Runtime,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Served {
    fn start() -> Served {
        let folder = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let options = ServerOptions { listen: ([127, 0, 0, 1], 0).into(), ..ServerOptions::default() };
        let store = Store::open(folder.path()).unwrap();
        let server = runtime.block_on(Server::bind(store, options)).unwrap();
        let address = server.local_addr();
        runtime.spawn(server.serve(pending()));
        Served { runtime, address, _folder: folder }
    }

    fn ours(&self) -> RemoteRepository {
        Client::new(options()).repository(&self.name("v1").parse().unwrap())
    }

    fn name(&self, tag: &str) -> String {
        format!("{}/team/app:{tag}", self.address)
    }

    fn theirs(&self, tag: &str) -> oci_client::Reference {
        self.name(tag).parse().unwrap()
    }
}

fn judge(monolithic: bool) -> oci_client::Client {
    let protocol = ClientProtocol::Http;
    oci_client::Client::new(ClientConfig {
        protocol,
        use_monolithic_push: monolithic,
        ..ClientConfig::default()
    })
}

/// Larger than a chunk of the other client, and small ones.
fn layers() -> Vec<Vec<u8>> {
    vec![content().repeat(2), b"small".to_vec(), b"smaller".to_vec()]
}

#[test]
fn what_another_client_pushes_is_pulled() {
    let served = Served::start();
    for monolithic in [false, true] {
        let layers = layers();
        let pushed: Vec<ImageLayer> =
            layers.iter().map(|layer| ImageLayer::oci_v1(layer.clone(), None)).collect();
        let config = Config::oci_v1(CONFIG.to_vec(), None);
        let (image, client) = (served.theirs("v1"), judge(monolithic));
        served.runtime.block_on(client.push(&image, &pushed, config, &Anonymous, None)).unwrap();
        let ours = served.ours();
        let manifest = ours.manifest_by_tag(&"v1".parse().unwrap()).unwrap();
        let parsed = ManifestOrIndex::parse(&manifest.raw, Some(&manifest.media_type)).unwrap();
        let ManifestOrIndex::Manifest(parsed) = parsed else { panic!("an index") };
        let mut pulled = Vec::new();
        for blob in std::iter::once(parsed.config()).chain(parsed.layers()) {
            let mut bytes = Vec::new();
            ours.open_blob(blob, 0).unwrap().read_to_end(&mut bytes).unwrap();
            pulled.push(bytes);
        }
        assert_eq!(pulled[0], CONFIG);
        assert!(pulled[1..] == layers, "monolithic: {monolithic}");
    }
}

#[test]
fn what_we_push_another_client_pulls() {
    let served = Served::start();
    let ours = served.ours();
    let push = |content: &[u8], media_type: &str| {
        let blob = Descriptor::new(media_type, Digest::sha256(content), content.len() as u64);
        let mut open = |offset: u64| -> std::io::Result<Box<dyn Read + Send>> {
            Ok(Box::new(std::io::Cursor::new(content[usize::try_from(offset).unwrap()..].to_vec())))
        };
        ours.push_blob(&blob, &mut open).unwrap();
        serde_json::to_value(&blob).unwrap()
    };
    let config = push(CONFIG, "application/vnd.oci.image.config.v1+json");
    let blobs: Vec<_> = layers().iter().map(|layer| push(layer, IMAGE_LAYER_MEDIA_TYPE)).collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": IMAGE_MANIFEST_MEDIA_TYPE, "config": config, "layers": blobs,
    });
    let raw = manifest.to_string();
    let digest =
        ours.put_manifest(raw.as_bytes(), IMAGE_MANIFEST_MEDIA_TYPE, Some(&"v1".parse().unwrap())).unwrap();
    let empty = push(b"{}", "application/vnd.oci.empty.v1+json");
    let subject = serde_json::json!({
        "mediaType": IMAGE_MANIFEST_MEDIA_TYPE, "digest": digest.to_string(), "size": raw.len(),
    });
    let signature = serde_json::json!({
        "schemaVersion": 2, "mediaType": IMAGE_MANIFEST_MEDIA_TYPE, "artifactType": "application/x.signature",
        "config": empty, "layers": [empty], "subject": subject,
    });
    let signed =
        ours.put_manifest(signature.to_string().as_bytes(), IMAGE_MANIFEST_MEDIA_TYPE, None).unwrap();

    let (image, client) = (served.theirs("v1"), judge(false));
    served.runtime.block_on(async {
        let pulled = client.pull(&image, &Anonymous, vec![IMAGE_LAYER_MEDIA_TYPE]).await.unwrap();
        assert_eq!(pulled.digest, Some(digest.to_string()));
        // It gives layers in the order in which they arrived.
        let sorted = |mut layers: Vec<Vec<u8>>| {
            layers.sort();
            layers
        };
        let bytes = pulled.layers.iter().map(|layer| layer.data.to_vec()).collect();
        assert!(sorted(bytes) == sorted(layers()));
        assert_eq!(client.list_tags(&image, &Anonymous, None, None).await.unwrap().tags, ["v1"]);
        let subject = image.clone_with_digest(digest.to_string());
        let referrers = client.pull_referrers(&subject, Some("application/x.signature")).await.unwrap();
        let listed: Vec<_> = referrers.manifests.iter().map(|entry| entry.digest.clone()).collect();
        assert_eq!(listed, [signed.to_string()]);
    });
}
