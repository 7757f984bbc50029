//! Logging in and out: proving a name and password to a registry before they are kept.

use std::path::PathBuf;

use reqwest::Method;
use rimg_formats::reference::{DOCKER_HUB, DOCKER_HUB_HOST, RegistryHost};

use super::credentials::{AuthFiles, Credential, SavedIn};
use super::error::ClientError;
use super::session::Access;
use super::wire::{Request, refuse_page};
use super::{Client, ClientOptions, CredentialSource};

/// What `login` did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Where the credential is kept now.
    pub saved_in: SavedIn,
}

/// The host that is asked when a person says `host`.
pub(super) fn asked_host(host: &RegistryHost) -> RegistryHost {
    let hub = [DOCKER_HUB, "index.docker.io"].contains(&host.as_str());
    let asked = hub.then(|| DOCKER_HUB_HOST.parse().ok()).flatten();
    asked.unwrap_or_else(|| host.clone())
}

impl Client {
    /// Asks the registry at `host` whether it accepts `credential`, then keeps it in `files`. Nothing is kept
    /// when it does not. A registry that asks nobody for a name accepts anything.
    pub fn login(
        options: ClientOptions,
        host: &RegistryHost,
        credential: Credential,
        files: &AuthFiles,
    ) -> Result<Login, ClientError> {
        let host = asked_host(host);
        let credentials = CredentialSource::Fixed { host: host.clone(), credential: credential.clone() };
        Client::new(ClientOptions { credentials, ..options }).verify(&host)?;
        Ok(Login { saved_in: files.save(&host, &credential)? })
    }

    /// Asks the registry at `host` whether it knows who is asking (distribution-spec, end-1).
    pub fn verify(&self, host: &RegistryHost) -> Result<(), ClientError> {
        let host = asked_host(host);
        self.run(async {
            let session = self.session(&host).await?;
            let request = Request::new(Method::GET, session.endpoint.root(), "the registry");
            refuse_page(&session.send(&Access::identity(), &request).await?, &request.what)
        })
    }

    /// Forgets the credential for `host` in `files`. Returns whether there was one, and the files of other
    /// programs that still hold one.
    pub fn logout(host: &RegistryHost, files: &AuthFiles) -> Result<(bool, Vec<PathBuf>), ClientError> {
        Ok(files.erase(&asked_host(host))?)
    }
}
