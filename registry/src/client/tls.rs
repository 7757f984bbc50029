//! Whom to trust: the TLS configuration of the client.
//!
//! Roots are the system's (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured), and the Mozilla roots built into
//! the binary when the system has none, so that an empty container or a static binary on a bare machine still
//! works. The caller's files and docker's `certs.d/<host>/*.crt` add to them, and `*.cert` with `*.key` of the
//! same name there identify the client. One provider, aws-lc, is named explicitly; nothing process-wide is
//! installed, and nothing here can panic for want of a certificate store.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// Most files looked at in one folder of `certs.d`.
const CERTIFICATE_FILES_MAX: usize = 100;

/// The configuration for plain HTTP: it trusts nobody, and costs nothing to make.
pub(super) fn trust_nobody() -> Result<ClientConfig, String> {
    configure(RootCertStore::empty(), None)
}

/// The configuration for HTTPS: system or built-in roots, `files` besides, and what `folder` (docker's
/// `certs.d/<host>`) holds, if it exists.
pub(super) fn trust(files: &[PathBuf], folder: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if usable == 0 {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    for file in files {
        add_file(&mut roots, file)?;
    }
    let mut identity = None;
    for file in folder.map(listed).transpose()?.into_iter().flatten() {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => add_file(&mut roots, &file)?,
            Some("cert") => identity = Some(client_identity(&file)?),
            _ => {}
        }
    }
    configure(roots, identity)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn configure(roots: RootCertStore, identity: Option<Identity>) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|error| error.to_string())?,
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn listed(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).take(CERTIFICATE_FILES_MAX).collect();
    files.sort();
    Ok(files)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let refuse = |error: &dyn std::fmt::Display| format!("certificates in {}: {error}", file.display());
    let read = CertificateDer::pem_file_iter(file).map_err(|error| refuse(&error))?;
    let found: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| refuse(&error))?;
    if found.is_empty() { Err(refuse(&"there are none")) } else { Ok(found) }
}

fn add_file(roots: &mut RootCertStore, file: &Path) -> Result<(), String> {
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| format!("certificate in {}: {error}", file.display()))?;
    }
    Ok(())
}

fn client_identity(certificate: &Path) -> Result<Identity, String> {
    let key_file = certificate.with_extension("key");
    let key = PrivateKeyDer::from_pem_file(&key_file)
        .map_err(|error| format!("private key in {}: {error}", key_file.display()))?;
    Ok((certificates(certificate)?, key))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn trust_needs_no_certificate_store() {
        assert!(trust_nobody().is_ok());
        assert_eq!(trust(&[], None).unwrap().alpn_protocols.len(), 2);
    }

    #[test]
    fn unreadable_certificates_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.crt");
        assert!(trust(std::slice::from_ref(&file), None).unwrap_err().contains("ca.crt"));
        std::fs::write(&file, "nonsense").unwrap();
        assert!(trust(&[], Some(folder.path())).unwrap_err().contains("there are none"));
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(trust(&[], Some(folder.path())).unwrap_err().contains("ca.crt"));
        assert!(trust(&[], Some(&folder.path().join("absent"))).is_err());
    }
}
