//! TLS to the database, with the modes of libpq: which certificates are taken, and
//! what is said when one is not.

use std::{error::Error, fs, io, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature,
        verify_tls13_signature,
    },
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{connection::database_error, tls_params::TlsParams};
use crate::storage::error::{StorageError, StorageErrorKind};

/// Whether TLS is used, and with whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TlsConfig {
    /// As much of it as tokio-postgres knows.
    pub(super) mode: SslMode,
    verification: Verification,
    /// The files with our own certificate, and with its key.
    client_cert: Option<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Verification {
    /// Whoever answers.
    None,
    /// Whoever has a certificate of these authorities.
    Ca(Roots),
    /// The same, if it is for the name of the host.
    Full(Roots),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Roots {
    System,
    File(String),
}

/// Looks at the certificate of a server.
#[derive(Debug)]
struct CertVerifier {
    algorithms: WebPkiSupportedAlgorithms,
    /// None: it may have any.
    trust_anchors: Option<TrustAnchors>,
}

#[derive(Debug)]
struct TrustAnchors {
    root_store: RootCertStore,
    /// Those that were named one by one.
    configured_certs: Vec<CertificateDer<'static>>,
    /// The certificate must be for the name of the host.
    is_host_name_checked: bool,
}

// === impl Tls ===

impl TlsConfig {
    /// # Errors
    /// Parameters that no one knows, or that promise less than they seem to.
    pub(super) fn new(params: TlsParams) -> Result<Self, StorageError> {
        let TlsParams {
            sslmode,
            sslrootcert,
            sslcert,
            sslkey,
        } = params;
        let is_system = sslrootcert.as_deref() == Some("system");
        let mode = match &sslmode {
            Some(mode) => mode.as_str(),
            None if is_system => "verify-full",
            None => "prefer",
        };
        let roots = match sslrootcert {
            Some(_) if is_system => Some(Roots::System),
            file => file.map(Roots::File),
        };
        let (mode, verification) = match (mode, roots) {
            ("disable" | "prefer" | "require" | "verify-ca", Some(Roots::System)) => {
                return Err(StorageError::new(
                    StorageErrorKind::InvalidConfig,
                    format!(
                        "sslrootcert=system needs sslmode=verify-full: with sslmode={mode}, anybody who has some \
                     certificate could be the database"
                    ),
                ));
            }
            ("disable", _) => (SslMode::Disable, Verification::None),
            ("prefer", None) => (SslMode::Prefer, Verification::None),
            ("prefer", Some(_)) => {
                return Err(StorageError::new(
                    StorageErrorKind::InvalidConfig,
                    "sslrootcert is of no use with sslmode=prefer, which goes on without TLS; use \
                     sslmode=verify-full, or verify-ca"
                        .to_owned(),
                ));
            }
            ("require", None) => (SslMode::Require, Verification::None),
            ("verify-ca", None) => {
                return Err(StorageError::new(StorageErrorKind::InvalidConfig,
                    "sslmode=verify-ca needs sslrootcert=FILE, the certificates of your own authorities; \
                     use sslmode=verify-full with those of the system"
                        .to_owned(),
                ));
            }
            ("require" | "verify-ca", Some(roots)) => (SslMode::Require, Verification::Ca(roots)),
            ("verify-full", roots) => {
                let roots = roots.unwrap_or(Roots::System);
                (SslMode::Require, Verification::Full(roots))
            }
            (unknown, _) => {
                return Err(StorageError::new(
                    StorageErrorKind::InvalidConfig,
                    format!(
                        "sslmode={unknown:?} is unknown; use disable, prefer, require, verify-ca or verify-full"
                    ),
                ));
            }
        };
        let client_cert = match (sslcert, sslkey) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                return Err(StorageError::new(
                    StorageErrorKind::InvalidConfig,
                    "sslcert and sslkey belong together; one is missing".to_owned(),
                ));
            }
        };
        Ok(Self {
            mode,
            verification,
            client_cert,
        })
    }

    /// What makes connections. Files are read each time, so that certificates can be
    /// renewed while a server runs.
    pub(super) fn connector(&self, is_direct: bool) -> Result<MakeRustlsConnect, StorageError> {
        let provider = Arc::new(ring::default_provider());
        let verifier = CertVerifier::new(&provider, &self.verification)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| {
                StorageError::new(
                    StorageErrorKind::InvalidConfig,
                    format!("TLS cannot be used: {error}"),
                )
            })?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.client_cert {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder
                .with_client_auth_cert(load_certificates(certificate)?, load_private_key(key)?)
                .map_err(|error| {
                    StorageError::new(
                        StorageErrorKind::InvalidConfig,
                        format!("{certificate} and {key} are of no use together: {error}"),
                    )
                })?,
        };
        if is_direct {
            config.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        Ok(MakeRustlsConnect::new(config))
    }

    /// Why there is no connection, as a sentence for people.
    pub(super) fn connect_error(&self, error: tokio_postgres::Error) -> StorageError {
        use CertificateError::{NotValidForName, NotValidForNameContext, UnknownIssuer};
        use rustls::Error::{AlertReceived, InvalidCertificate};

        // What the server says of our certificate may come after the handshake.
        if !is_tls_error(&error) && rustls_error(&error).is_none() {
            return database_error(error);
        }
        let message = match rustls_error(&error) {
            Some(InvalidCertificate(UnknownIssuer)) => {
                let whose = match &self.verification {
                    Verification::Ca(Roots::File(file)) | Verification::Full(Roots::File(file)) => {
                        format!("in {file}")
                    }
                    _ => "that this system trusts".to_owned(),
                };
                format!(
                    "the certificate of the database is not trusted: no authority {whose} has issued it"
                )
            }
            Some(InvalidCertificate(
                reason @ (NotValidForName | NotValidForNameContext { .. }),
            )) => format!(
                "the certificate of the database is for another name: {reason}; sslmode=verify-ca does not \
                 look at names"
            ),
            Some(InvalidCertificate(reason)) => {
                format!("the certificate of the database is not accepted: {reason}")
            }
            Some(reason @ AlertReceived(_)) => match &self.client_cert {
                Some((certificate, _)) => {
                    format!("the database does not accept the certificate in {certificate}: {reason}")
                }
                None => format!("the database ends TLS: {reason}"),
            },
            Some(reason) => format!("there is no TLS with the database: {reason}"),
            None => match error.source().map(ToString::to_string) {
                Some(reason) if reason == "server does not support TLS" => {
                    "the server does not support TLS; set ssl = on there, or go without by sslmode=disable"
                        .to_owned()
                }
                Some(reason) => format!("there is no TLS with the database: {reason}"),
                None => error.to_string(),
            },
        };
        StorageError::new(StorageErrorKind::InvalidConfig, message)
    }
}

/// Whether a connection failed at TLS. tokio-postgres says so by words only.
pub(super) fn is_tls_error(error: &tokio_postgres::Error) -> bool {
    error.to_string() == "error performing TLS handshake"
}

fn rustls_error(error: &tokio_postgres::Error) -> Option<&rustls::Error> {
    let cause = error.source()?.downcast_ref::<io::Error>()?;
    cause.get_ref()?.downcast_ref()
}

fn read_file(file: &str) -> Result<Vec<u8>, StorageError> {
    fs::read(file).map_err(|error| {
        StorageError::new(
            StorageErrorKind::InvalidConfig,
            format!("{file} cannot be read: {error}"),
        )
    })
}

fn load_certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, StorageError> {
    let bytes = read_file(file)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = certificates.map_err(|error| {
        StorageError::new(
            StorageErrorKind::InvalidConfig,
            format!("{file} is no PEM file: {error}"),
        )
    })?;
    if certificates.is_empty() {
        return Err(StorageError::new(
            StorageErrorKind::InvalidConfig,
            format!("{file} has no certificate in PEM form"),
        ));
    }
    Ok(certificates)
}

fn load_private_key(file: &str) -> Result<PrivateKeyDer<'static>, StorageError> {
    PrivateKeyDer::from_pem_slice(&read_file(file)?).map_err(|_| {
        StorageError::new(
            StorageErrorKind::InvalidConfig,
            format!("{file} has no private key in PEM form that is not encrypted"),
        )
    })
}

// === impl Verifier ===

impl CertVerifier {
    fn new(provider: &CryptoProvider, verification: &Verification) -> Result<Self, StorageError> {
        let trust_anchors = match verification {
            Verification::None => None,
            Verification::Ca(roots) => Some(TrustAnchors::new(roots, false)?),
            Verification::Full(roots) => Some(TrustAnchors::new(roots, true)?),
        };
        Ok(Self {
            algorithms: provider.signature_verification_algorithms,
            trust_anchors,
        })
    }
}

impl TrustAnchors {
    fn new(roots: &Roots, is_host_name_checked: bool) -> Result<Self, StorageError> {
        let mut root_store = RootCertStore::empty();
        let certificates = match roots {
            Roots::System => {
                root_store
                    .add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                Vec::new()
            }
            Roots::File(file) => {
                let configured_certs = load_certificates(file)?;
                root_store.add_parsable_certificates(configured_certs.iter().cloned());
                configured_certs
            }
        };
        if root_store.is_empty() {
            return Err(StorageError::new(StorageErrorKind::InvalidConfig, match roots {
                Roots::System => {
                    "this system has no certificates of authorities; install them, or name a file \
                     with sslrootcert"
                        .to_owned()
                }
                Roots::File(file) => format!("{file} has no certificate that can be used"),
            }));
        }
        Ok(Self {
            root_store,
            configured_certs: certificates,
            is_host_name_checked,
        })
    }
}

impl ServerCertVerifier for CertVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trust_anchors) = &self.trust_anchors else {
            return Ok(ServerCertVerified::assertion());
        };
        let parsed = ParsedCertificate::try_from(certificate)?;
        let verified = verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &trust_anchors.root_store,
            intermediates,
            now,
            self.algorithms.all,
        );
        match verified {
            // A server with the certificate of an authority is no good, unless it is the very
            // one that was named: openssl makes such, signed by themselves, and libpq takes
            // them. Whether it has expired was looked at before.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_)))
                if trust_anchors.configured_certs.contains(certificate) => {}
            verified => verified?,
        }
        if trust_anchors.is_host_name_checked {
            verify_server_name(&parsed, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
