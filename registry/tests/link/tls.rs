//! A registry behind TLS whose certificate an authority of its own has signed, as companies run them.
//!
//! The certificates are fixtures, good for a hundred years and for nothing else: `ca.pem` is an authority whose key
//! nobody has kept, `server.pem` is for `localhost` and 127.0.0.1, `other.pem` for other.example.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rimg_registry::client::{
    Client, ClientError, ClientOptions, CredentialSource, Distrust, PlainHttp, RemoteRepository,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};

use crate::transfers::{Registry, content, descriptor, pull_from, push_to};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/link/certificates").join(name)
}

/// Ends TLS in front of `server`, with the certificate of that name.
fn front(server: SocketAddr, certificate: &str) -> SocketAddr {
    let chain = vec![CertificateDer::from_pem_file(fixture(&format!("{certificate}.pem"))).unwrap()];
    let key = PrivateKeyDer::from_pem_file(fixture(&format!("{certificate}.key"))).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let tls = Arc::new(Mutex::new(ServerConnection::new(Arc::clone(&config)).unwrap()));
            let server = TcpStream::connect(server).unwrap();
            let up = (client.try_clone().unwrap(), server.try_clone().unwrap(), Arc::clone(&tls));
            std::thread::spawn(move || drop(decrypt(up.0, up.1, &up.2)));
            std::thread::spawn(move || drop(encrypt(server, client, &tls)));
        }
    });
    address
}

/// What the client sends, decrypted.
fn decrypt(
    mut client: TcpStream,
    mut server: TcpStream,
    tls: &Mutex<ServerConnection>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = client.read(&mut buffer)?;
        let (mut arrived, mut plain) = (&buffer[..count], Vec::new());
        let mut tls = tls.lock().unwrap();
        while !arrived.is_empty() {
            tls.read_tls(&mut arrived)?;
            let processed = tls.process_new_packets();
            let _ = tls.reader().read_to_end(&mut plain);
            while tls.wants_write() {
                tls.write_tls(&mut client)?;
            }
            if processed.is_err() {
                client.shutdown(Shutdown::Write)?;
                return server.shutdown(Shutdown::Both);
            }
        }
        drop(tls);
        server.write_all(&plain)?;
        if count == 0 {
            return server.shutdown(Shutdown::Write);
        }
    }
}

/// What the server answers, encrypted.
fn encrypt(
    mut server: TcpStream,
    mut client: TcpStream,
    tls: &Mutex<ServerConnection>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = server.read(&mut buffer)?;
        let mut tls = tls.lock().unwrap();
        tls.writer().write_all(&buffer[..count])?;
        if count == 0 {
            tls.send_close_notify();
        }
        while tls.wants_write() {
            tls.write_tls(&mut client)?;
        }
        if count == 0 {
            return client.shutdown(Shutdown::Write);
        }
    }
}

fn repository(address: &str, ca_files: Vec<PathBuf>, certificate_folders: Vec<PathBuf>) -> RemoteRepository {
    let options = ClientOptions {
        plain_http: PlainHttp::Loopback,
        credentials: CredentialSource::Anonymous,
        ca_files,
        certificate_folders,
        ..ClientOptions::default()
    };
    Client::new(options).repository(&format!("{address}/app:1").parse().unwrap())
}

#[test]
fn blobs_travel_to_a_registry_whose_authority_is_named() {
    let content = content();
    let registry = Registry::start();
    let address = format!("localhost:{}", front(registry.address, "server").port());
    // As docker and podman keep it: a folder for each registry.
    let folders = tempfile::tempdir().unwrap();
    let own = folders.path().join(&address);
    std::fs::create_dir(&own).unwrap();
    std::fs::copy(fixture("ca.pem"), own.join("ca.crt")).unwrap();
    let by_folder = repository(&address, Vec::new(), vec![folders.path().to_owned()]);
    push_to(&by_folder, &content).unwrap();
    assert!(registry.has(&content));
    // Without a folder a registry on this machine is asked in the clear first, which this one does not understand.
    let by_file = repository(&address, vec![fixture("ca.pem")], Vec::new());
    assert!(pull_from(&by_file, &content).unwrap() == content);
}

#[test]
fn a_registry_that_nobody_vouches_for_gets_nothing() {
    let registry = Registry::start();
    let unknown = format!("localhost:{}", front(registry.address, "server").port());
    let other = format!("127.0.0.1:{}", front(registry.address, "other").port());
    let table = [
        (unknown, Vec::new(), Distrust::UnknownAuthority, "ca.crt"),
        (other, vec![fixture("ca.pem")], Distrust::WrongName(vec!["other.example".to_owned()]), "use a name"),
    ];
    for (address, ca_files, expected, hint) in table {
        let blob = descriptor(b"layer");
        let error = repository(&address, ca_files, Vec::new()).has_blob(&blob).unwrap_err();
        let ClientError::Tls { reason, .. } = &error else { panic!("{error}") };
        assert_eq!(reason, &expected);
        assert!(error.hint().unwrap().contains(hint), "{error}");
    }
}
