//! TLS to the database with the modes of libpq: verifies certificates, and explains why a connection failed.

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

use super::{
    error::{config_error, query_error},
    tls_params::TlsParams,
};
use crate::storage::error::{StorageError, StorageErrorKind};

/// Whether TLS is used, and how certificates are verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TlsConfig {
    /// The mode as far as tokio-postgres distinguishes it.
    pub(super) mode: SslMode,
    verification: Verification,
    client_cert: Option<ClientCertFiles>,
}

/// The PEM files of the client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ClientCertFiles {
    certificate: String,
    key: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Verification {
    /// Any certificate is accepted.
    None,
    /// The certificate must be issued by these authorities.
    Ca(Roots),
    /// The certificate must also be for the name of the host.
    Full(Roots),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Roots {
    System,
    File(String),
}

/// Verifies the certificate of a server.
#[derive(Debug)]
struct CertVerifier {
    algorithms: WebPkiSupportedAlgorithms,
    /// `None` accepts any certificate.
    trust_anchors: Option<TrustAnchors>,
}

#[derive(Debug)]
struct TrustAnchors {
    root_store: RootCertStore,
    /// The certificates of the configured file.
    configured_certs: Vec<CertificateDer<'static>>,
    is_host_name_checked: bool,
}

// === impl TlsConfig ===

impl TlsConfig {
    /// Returns the configuration for the parameters of a URL.
    ///
    /// # Errors
    /// `InvalidConfig` for unknown parameters, and for those that verify less than they appear to.
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
                return Err(config_error(format!(
                    "sslrootcert=system needs sslmode=verify-full: with sslmode={mode}, a certificate for any host \
                     would be accepted"
                )));
            }
            ("disable", _) => (SslMode::Disable, Verification::None),
            ("prefer", None) => (SslMode::Prefer, Verification::None),
            ("prefer", Some(_)) => {
                return Err(config_error(
                    "sslrootcert has no effect with sslmode=prefer, which falls back to a connection without TLS; \
                     use sslmode=verify-full or verify-ca",
                ));
            }
            ("require", None) => (SslMode::Require, Verification::None),
            ("verify-ca", None) => {
                return Err(config_error(
                    "sslmode=verify-ca needs sslrootcert=FILE with the certificates of your own authorities; use \
                     sslmode=verify-full with those of the system",
                ));
            }
            ("require" | "verify-ca", Some(roots)) => (SslMode::Require, Verification::Ca(roots)),
            ("verify-full", roots) => {
                let roots = roots.unwrap_or(Roots::System);
                (SslMode::Require, Verification::Full(roots))
            }
            (unknown, _) => {
                return Err(config_error(format!(
                    "sslmode={unknown:?} is unknown; use disable, prefer, require, verify-ca or verify-full"
                )));
            }
        };
        let client_cert = match (sslcert, sslkey) {
            (Some(certificate), Some(key)) => Some(ClientCertFiles { certificate, key }),
            (None, None) => None,
            _ => {
                return Err(config_error(
                    "sslcert and sslkey need each other; one is missing",
                ));
            }
        };
        Ok(Self {
            mode,
            verification,
            client_cert,
        })
    }

    /// Returns a connector. Reads the files at each call, so that certificates can be renewed while a server runs.
    pub(super) fn connector(&self, is_direct: bool) -> Result<MakeRustlsConnect, StorageError> {
        let provider = Arc::new(ring::default_provider());
        let verifier = CertVerifier::new(&provider, &self.verification)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| {
                config_error(format!("cannot configure TLS: {error}")).with_source(error)
            })?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.client_cert {
            None => builder.with_no_client_auth(),
            Some(ClientCertFiles { certificate, key }) => builder
                .with_client_auth_cert(load_certificates(certificate)?, load_private_key(key)?)
                .map_err(|error| {
                    let message = format!("{certificate} and {key} do not match: {error}");
                    config_error(message).with_source(error)
                })?,
        };
        if is_direct {
            config.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        Ok(MakeRustlsConnect::new(config))
    }

    /// Returns why connecting failed, with the parameter or the file that is wrong.
    pub(super) fn connect_error(&self, error: tokio_postgres::Error) -> StorageError {
        use CertificateError::{NotValidForName, NotValidForNameContext, UnknownIssuer};
        use StorageErrorKind::{InvalidConfig, Unavailable};
        use rustls::Error::{AlertReceived, InvalidCertificate};

        // The server may reject the client certificate after the handshake.
        if !is_tls_error(&error) && rustls_error(&error).is_none() {
            return query_error(error);
        }
        let (kind, message) = match rustls_error(&error) {
            Some(InvalidCertificate(UnknownIssuer)) => {
                let authorities = match &self.verification {
                    Verification::Ca(Roots::File(file)) | Verification::Full(Roots::File(file)) => {
                        format!("in {file}")
                    }
                    _ => "that this system trusts".to_owned(),
                };
                let message = format!(
                    "the certificate of the database is not trusted: no authority {authorities} has issued it"
                );
                (InvalidConfig, message)
            }
            Some(InvalidCertificate(
                reason @ (NotValidForName | NotValidForNameContext { .. }),
            )) => {
                let message = format!(
                    "the certificate of the database is for another name: {reason}; sslmode=verify-ca does not verify \
                     names"
                );
                (InvalidConfig, message)
            }
            Some(InvalidCertificate(reason)) => {
                let message = format!("the certificate of the database is not valid: {reason}");
                (InvalidConfig, message)
            }
            Some(alert @ AlertReceived(_)) => match &self.client_cert {
                Some(ClientCertFiles { certificate, .. }) => {
                    let message =
                        format!("the database rejected the certificate in {certificate}: {alert}");
                    (InvalidConfig, message)
                }
                None => (Unavailable, format!("the database closed TLS: {alert}")),
            },
            Some(reason) => (
                Unavailable,
                format!("TLS with the database failed: {reason}"),
            ),
            None => match error.source().map(ToString::to_string) {
                Some(reason) if reason == "server does not support TLS" => {
                    let message = "the server does not support TLS; set ssl = on there, or sslmode=disable here";
                    (InvalidConfig, message.to_owned())
                }
                Some(reason) => (
                    Unavailable,
                    format!("TLS with the database failed: {reason}"),
                ),
                None => (Unavailable, error.to_string()),
            },
        };
        StorageError::new(kind, message).with_source(error)
    }
}

/// Returns `true` if a connection failed at TLS, for which tokio-postgres has nothing but this text.
pub(super) fn is_tls_error(error: &tokio_postgres::Error) -> bool {
    error.to_string() == "error performing TLS handshake"
}

fn rustls_error(error: &tokio_postgres::Error) -> Option<&rustls::Error> {
    let cause = error.source()?.downcast_ref::<io::Error>()?;
    cause.get_ref()?.downcast_ref()
}

fn read_file(file: &str) -> Result<Vec<u8>, StorageError> {
    fs::read(file)
        .map_err(|error| config_error(format!("{file} cannot be read: {error}")).with_source(error))
}

fn load_certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, StorageError> {
    let bytes = read_file(file)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = certificates.map_err(|error| {
        config_error(format!("{file} is not a PEM file: {error}")).with_source(error)
    })?;
    if certificates.is_empty() {
        return Err(config_error(format!(
            "{file} has no certificate in PEM form"
        )));
    }
    Ok(certificates)
}

fn load_private_key(file: &str) -> Result<PrivateKeyDer<'static>, StorageError> {
    PrivateKeyDer::from_pem_slice(&read_file(file)?).map_err(|error| {
        config_error(format!(
            "{file} has no private key in PEM form without encryption"
        ))
        .with_source(error)
    })
}

// === impl CertVerifier ===

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
            return Err(config_error(match roots {
                Roots::System => "this system has no certificates of authorities; install them, or set sslrootcert to \
                                  a file"
                    .to_owned(),
                Roots::File(file) => format!("{file} has no usable certificate"),
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
            // webpki rejects a server certificate that is one of an authority. libpq accepts it if it is configured:
            // openssl creates such self-signed certificates by default. Its expiry is verified before.
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
