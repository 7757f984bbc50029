//! A registry to talk to, and a client that does just what it is told.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use rimg_formats::digest::{Algorithm, Digest};
use rimg_formats::store::Store;
use rimg_registry::server::{Server, ServerOptions};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

/// A running server over a store in a temporary directory.
pub(crate) struct Registry {
    directory: TempDir,
    options: ServerOptions,
    running: Option<Running>,
}

struct Running {
    address: SocketAddr,
    runtime: Runtime,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Registry {
    pub(crate) fn start() -> Registry {
        Registry::start_with(|_| {})
    }

    pub(crate) fn start_with(change: impl FnOnce(&mut ServerOptions)) -> Registry {
        let mut options = ServerOptions { listen: ([127, 0, 0, 1], 0).into(), ..ServerOptions::default() };
        // What the requests of these tests call it.
        options.names = ["registry.example", "x.example"].map(|name| name.parse().unwrap()).to_vec();
        change(&mut options);
        let mut registry = Registry { directory: tempfile::tempdir().unwrap(), options, running: None };
        registry.run();
        registry
    }

    fn run(&mut self) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let server = runtime.block_on(Server::bind(self.store(), self.options.clone())).unwrap();
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = runtime.spawn(server.serve(async move {
            let _ = stopped.await;
        }));
        self.running = Some(Running { address, runtime, stop, task });
    }

    /// Ends the server in order and starts another one on the same store.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.run();
    }

    /// Ends the server in order.
    pub(crate) fn stop(&mut self) {
        let Running { runtime, stop, task, .. } = self.running.take().unwrap();
        let _ = stop.send(());
        runtime.block_on(task).unwrap();
    }

    /// The store that the server serves.
    pub(crate) fn store(&self) -> Store {
        Store::open(self.directory.path()).unwrap()
    }

    /// The file of a blob.
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.directory.path().join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.running.as_ref().unwrap().address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends a request with headers and a body of known length.
    pub(crate) fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let mut head =
            format!("{method} {target} HTTP/1.1\r\nHost: registry.example\r\nConnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        stream.write_all(head.as_bytes()).unwrap();
        // A server that has refused may have stopped reading.
        let _ = stream.write_all(body);
        read_answer(&mut stream, method)
    }

    pub(crate) fn get(&self, target: &str) -> Answer {
        self.send("GET", target, &[], b"")
    }

    pub(crate) fn head(&self, target: &str) -> Answer {
        self.send("HEAD", target, &[], b"")
    }

    pub(crate) fn delete(&self, target: &str) -> Answer {
        self.send("DELETE", target, &[], b"")
    }

    /// Sends a body without a known length.
    pub(crate) fn send_chunked(&self, method: &str, target: &str, chunks: &[&[u8]]) -> Answer {
        let mut stream = self.connect();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: registry.example\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        for chunk in chunks {
            stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).unwrap();
            stream.write_all(chunk).unwrap();
            stream.write_all(b"\r\n").unwrap();
        }
        stream.write_all(b"0\r\n\r\n").unwrap();
        read_answer(&mut stream, method)
    }

    /// Sends bytes as they are and reads what comes back.
    pub(crate) fn send_raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        read_answer(&mut stream, "GET")
    }

    /// Opens an upload session; its location.
    pub(crate) fn open_upload(&self, name: &str) -> String {
        let answer = self.send("POST", &format!("/v2/{name}/blobs/uploads/"), &[], b"");
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.header("location").unwrap().to_owned()
    }

    /// Pushes a blob in two requests.
    pub(crate) fn push(&self, name: &str, content: &[u8]) -> Digest {
        self.push_with(name, content, Algorithm::Sha256)
    }

    pub(crate) fn push_with(&self, name: &str, content: &[u8], algorithm: Algorithm) -> Digest {
        let digest = Digest::of(algorithm, content);
        let location = self.open_upload(name);
        let answer = self.send("PUT", &format!("{location}?digest={digest}"), &[], content);
        assert_eq!(answer.status, 201, "{answer:?}");
        digest
    }

    /// Puts a manifest.
    pub(crate) fn put_manifest(&self, name: &str, version: &str, media_type: &str, raw: &[u8]) -> Answer {
        self.send("PUT", &format!("/v2/{name}/manifests/{version}"), &[("Content-Type", media_type)], raw)
    }

    /// Pushes a small image under `tag`; its manifest.
    pub(crate) fn push_image(&self, name: &str, tag: &str) -> Vec<u8> {
        let raw = self.image(name, tag);
        let answer = self.put_manifest(name, tag, OCI_MANIFEST, &raw);
        assert_eq!(answer.status, 201, "{answer:?}");
        raw
    }

    /// Pushes the blobs of a small image that `seed` makes unlike others; its manifest, not yet put.
    pub(crate) fn image(&self, name: &str, seed: &str) -> Vec<u8> {
        let config = format!(
            r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":[]}},"seed":"{seed}"}}"#
        );
        let config_digest = self.push(name, config.as_bytes());
        let layer_digest = self.push(name, seed.as_bytes());
        manifest(&config_digest, config.len(), &layer_digest, seed.len(), "")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if self.running.is_some() && !std::thread::panicking() {
            self.stop();
        }
    }
}

/// An OCI image manifest; `extra` is put among its fields, with a comma in front.
pub(crate) fn manifest(
    config: &Digest,
    config_size: usize,
    layer: &Digest,
    layer_size: usize,
    extra: &str,
) -> Vec<u8> {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":{config_size}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{layer}","size":{layer_size}}}]{extra}}}"#
    )
    .into_bytes()
}

/// Bytes that compress to nothing and repeat nowhere near.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..length.div_ceil(8)).flat_map(|_| step().to_le_bytes()).take(length).collect()
}

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The code of the first error.
    pub(crate) fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap().to_owned()
    }

    /// Status and error code, for tables.
    pub(crate) fn refusal(&self) -> (u16, String) {
        (self.status, self.code())
    }
}

pub(crate) fn read_answer(stream: &mut TcpStream, method: &str) -> Answer {
    let mut bytes = Vec::new();
    let mut block = [0; 65536];
    let head_end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        match stream.read(&mut block) {
            Ok(0) => panic!("no answer: {:?}", String::from_utf8_lossy(&bytes)),
            Ok(count) => bytes.extend_from_slice(&block[..count]),
            Err(error) => panic!("no answer: {error}"),
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
    let mut body = bytes.split_off(head_end + 4);
    let mut lines = head.lines();
    let status: u16 = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    if status == 100 {
        return read_answer(stream, method);
    }
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(':').unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length =
        headers.iter().find(|(name, _)| name == "content-length").map(|(_, value)| value.parse().unwrap());
    let length: usize = if method == "HEAD" || status == 304 { 0 } else { length.unwrap_or(0) };
    while body.len() < length {
        match stream.read(&mut block) {
            Ok(0) | Err(_) => break,
            Ok(count) => body.extend_from_slice(&block[..count]),
        }
    }
    assert_eq!(body.len(), length, "the answer was cut off");
    Answer { status, headers, body }
}
