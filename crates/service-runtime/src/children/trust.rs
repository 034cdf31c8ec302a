//! By which certificate a child recognises its parent, or the proxy before it, on `wss://`.

use std::{fmt, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio_tungstenite::Connector;

/// Which authorities a child believes. By default those that the operating system trusts.
#[derive(Clone, Default)]
pub struct Trust(Option<Arc<ClientConfig>>);

/// A text that holds no certificate of an authority.
#[derive(Debug, thiserror::Error)]
pub enum NoAuthority {
    /// It is no PEM.
    #[error("The certificates of the authority cannot be read")]
    Unreadable(#[source] rustls::pki_types::pem::Error),
    /// There is none in it.
    #[error("There is no certificate between BEGIN CERTIFICATE and END CERTIFICATE")]
    Empty,
    /// One of them is no certificate that could vouch for others.
    #[error("A certificate of the authority cannot be used")]
    Unusable(#[source] rustls::Error),
}

impl Trust {
    /// Believes the private authorities of these certificates (PEM, one or several), and nobody else.
    ///
    /// # Errors
    /// When there is no certificate in it, or one that cannot be used.
    pub fn authorities(pem: &[u8]) -> Result<Self, NoAuthority> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.add(certificate.map_err(NoAuthority::Unreadable)?).map_err(NoAuthority::Unusable)?;
        }
        if roots.is_empty() {
            return Err(NoAuthority::Empty);
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(NoAuthority::Unusable)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Some(Arc::new(config))))
    }

    /// None: the authorities of the system, which are read anew for each connection.
    pub(super) fn connector(&self) -> Option<Connector> {
        match &self.0 {
            Some(config) => Some(Connector::Rustls(Arc::clone(config))),
            None => {
                // the one provider of this build; it may have been chosen before
                let _already_installed = ring::default_provider().install_default();
                None
            }
        }
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.is_some() { "Trust(private authorities)" } else { "Trust(system)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_without_a_certificate_are_refused() {
        for text in [
            "",
            "no certificate",
            "-----BEGIN CERTIFICATE-----\nMIIB",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ] {
            assert!(Trust::authorities(text.as_bytes()).is_err(), "{text}");
        }
        let rubbish = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(Trust::authorities(rubbish.as_bytes()), Err(NoAuthority::Unusable(_))));
    }
}
