//! What arrives, how much of it travels twice, and when it is given up.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::Duration;

use rimg_formats::descriptor::Descriptor;
use rimg_formats::digest::{Algorithm, Digest};
use rimg_formats::media_type::OCI_LAYER_GZIP;
use rimg_formats::reference::ImageName;
use rimg_formats::store::Store;
use rimg_formats::transfer::ImageSink;
use rimg_registry::client::{
    Client, ClientOptions, CredentialSource, PlainHttp, RemoteRepository, RetryPolicy,
};
use rimg_registry::server::{Server, ServerOptions};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::relay::{Link, Quality};

const SIZE: usize = 6_000_000;

/// A server that ends with the test.
pub(crate) struct Registry {
    _folder: TempDir,
    _runtime: Runtime,
    store: Store,
    pub(crate) address: SocketAddr,
}

impl Registry {
    pub(crate) fn start() -> Registry {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let options = ServerOptions { listen: ([127, 0, 0, 1], 0).into(), ..ServerOptions::default() };
        let server = runtime.block_on(Server::bind(store.clone(), options)).unwrap();
        let address = server.local_addr();
        runtime.spawn(server.serve(std::future::pending()));
        Registry { _folder: folder, _runtime: runtime, store, address }
    }

    /// Puts `content` into its repository `app`, past the network.
    fn hold(&self, content: &[u8]) {
        let repository = self.store.repository(&"app".parse::<ImageName>().unwrap());
        let mut ingest = repository.ingest_with(Algorithm::Sha256).unwrap();
        ingest.append(content).unwrap();
        ingest.commit(None).unwrap();
    }

    pub(crate) fn has(&self, content: &[u8]) -> bool {
        let repository = self.store.repository(&"app".parse::<ImageName>().unwrap());
        repository.blob(&Digest::sha256(content)).unwrap().is_some()
    }
}

fn repository(link: &Link) -> RemoteRepository {
    waiting(link, Duration::from_millis(2))
}

/// A repository whose client waits so long at most before it tries again.
fn waiting(link: &Link, wait_max: Duration) -> RemoteRepository {
    let options = ClientOptions {
        plain_http: PlainHttp::Always,
        credentials: CredentialSource::Anonymous,
        retry: RetryPolicy {
            tries_max: 4,
            first_wait: wait_max,
            wait_max,
            retry_after_max: Duration::from_secs(5),
        },
        certificate_folders: Vec::new(),
        ..ClientOptions::default()
    };
    Client::new(options).repository(&format!("{}/app:1", link.address).parse().unwrap())
}

/// Bytes that repeat nowhere near.
pub(crate) fn content() -> Vec<u8> {
    let numbers = (0..SIZE as u64 / 8).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    numbers.flat_map(u64::to_le_bytes).collect()
}

pub(crate) fn descriptor(content: &[u8]) -> Descriptor {
    Descriptor::new(OCI_LAYER_GZIP, Digest::sha256(content), content.len() as u64)
}

pub(crate) fn push_to(repository: &RemoteRepository, content: &[u8]) -> Result<(), String> {
    let mut open = |offset: u64| -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(io::Cursor::new(content[usize::try_from(offset).unwrap()..].to_vec())))
    };
    repository.push_blob(&descriptor(content), &mut open).map_err(|error| error.to_string())
}

pub(crate) fn pull_from(repository: &RemoteRepository, content: &[u8]) -> Result<Vec<u8>, String> {
    let mut pulled = Vec::new();
    let mut reader = repository.open_blob(&descriptor(content), 0).map_err(|error| error.to_string())?;
    reader.read_to_end(&mut pulled).map_err(|error| error.to_string())?;
    Ok(pulled)
}

fn push(link: &Link, content: &[u8]) -> Result<(), String> {
    push_to(&repository(link), content)
}

fn pull(link: &Link, content: &[u8]) -> Result<Vec<u8>, String> {
    pull_from(&repository(link), content)
}

#[test]
fn over_a_link_that_keeps_breaking_bytes_travel_about_once() {
    let content = content();
    let registry = Registry::start();
    let link = Link::to(registry.address, Quality::CutAfter(1_500_000));
    // What has arrived counts once the server has written it; it gets as long for it as in real life.
    push_to(&waiting(&link, Duration::from_millis(300)), &content).unwrap();
    assert!(registry.has(&content));
    let (bytes, connections) = (link.bytes(), link.connections());
    assert!(bytes < SIZE as u64 * 2, "{bytes} bytes over {connections} connections");
    let link = Link::to(registry.address, Quality::CutAfter(1_500_000));
    assert!(pull(&link, &content).unwrap() == content);
    let (bytes, connections) = (link.bytes(), link.connections());
    assert!(bytes < SIZE as u64 * 3 / 2, "{bytes} bytes over {connections} connections");
}

/// Each connection brings something, but so little that the transfer would take for ever.
#[test]
fn a_link_that_gives_crumbs_is_given_up() {
    let content = content();
    let registry = Registry::start();
    registry.hold(&content);
    let link = Link::to(registry.address, Quality::CutAfter(3_000));
    let error = pull(&link, &content).unwrap_err();
    assert!(error.contains("connection to 127.0.0.1"), "{error}");
    assert!(link.connections() < 100, "{}", link.connections());
    let other = content.iter().rev().copied().collect::<Vec<u8>>();
    let link = Link::to(registry.address, Quality::CutAfter(10_000));
    push(&link, &other).unwrap_err();
    assert!(link.connections() < 300, "{}", link.connections());
    assert!(!registry.has(&other));
}

#[test]
fn a_link_that_passes_nothing_is_given_up() {
    let content = content();
    let registry = Registry::start();
    registry.hold(&content);
    let link = Link::to(registry.address, Quality::CutAfter(0));
    pull(&link, &content).unwrap_err();
    push(&link, &content).unwrap_err();
    assert!(link.connections() <= 20, "{}", link.connections());
}

/// What is slow is not silent: neither end may give up while bytes come.
#[test]
fn a_slow_link_is_borne() {
    let content = &content()[..200_000];
    let registry = Registry::start();
    let link = Link::to(registry.address, Quality::Slow(2_000, Duration::from_millis(5)));
    push(&link, content).unwrap();
    assert!(registry.has(content));
    assert!(pull(&link, content).unwrap() == content);
    assert!(link.bytes() < 2 * 200_000 + 20_000, "nothing travels twice: {}", link.bytes());
}

/// A mirror between two registries reads from one network and writes to the other; both break.
#[test]
fn copies_between_registries_survive_both_links() {
    let content = content();
    let (here, there) = (Registry::start(), Registry::start());
    here.hold(&content);
    let from = Link::to(here.address, Quality::CutAfter(1_500_000));
    let to = Link::to(there.address, Quality::CutAfter(1_300_000));
    let (source, sink) = (repository(&from), repository(&to));
    let blob = descriptor(&content);
    let open = |offset| Ok(source.open_blob(&blob, offset).map(|reader| reader as _)?);
    sink.write_from(&blob, &open).unwrap();
    assert!(there.has(&content));
}
