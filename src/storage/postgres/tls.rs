//! TLS to the database with the modes of libpq: verifies certificates, and explains why a connection failed.

use std::{error::Error, fmt::Display, fs, io, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{error::query_error, tls_params::TlsParams};
use crate::storage::error::StorageError;

/// Whether TLS is used, and how certificates are verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TlsConfig {
    /// The mode as far as tokio-postgres distinguishes it.
    pub(super) mode: SslMode,
    /// `None` accepts any certificate.
    verification: Option<Verification>,
    client_cert: Option<ClientCertFiles>,
}

/// The PEM files of the client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ClientCertFiles {
    certificate: String,
    key: String,
}

/// How the certificate of the server is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verification {
    /// The authorities, one of which must have issued the certificate.
    roots: Roots,
    /// `true` if the certificate must also be for the name of the host.
    is_host_name_checked: bool,
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
        let is_system = params.sslrootcert.as_deref() == Some("system");
        let mode = match &params.sslmode {
            Some(mode) => mode.as_str(),
            None if is_system => "verify-full",
            None => "prefer",
        };
        let roots = match params.sslrootcert {
            Some(_) if is_system => Some(Roots::System),
            file => file.map(Roots::File),
        };
        let with_roots = |roots, is_host_name_checked| {
            let verification = Verification {
                roots,
                is_host_name_checked,
            };
            (SslMode::Require, Some(verification))
        };
        let (mode, verification) = match (mode, roots) {
            ("disable" | "prefer" | "require" | "verify-ca", Some(Roots::System)) => {
                return Err(StorageError::invalid_config(format!(
                    "sslrootcert=system needs sslmode=verify-full: with sslmode={mode}, a certificate for any host \
                     would be accepted"
                )));
            }
            ("disable", _) => (SslMode::Disable, None),
            ("prefer", None) => (SslMode::Prefer, None),
            ("prefer", Some(_)) => {
                return Err(StorageError::invalid_config(
                    "sslrootcert has no effect with sslmode=prefer, which falls back to a connection without TLS; \
                     use sslmode=verify-full or verify-ca",
                ));
            }
            ("require", None) => (SslMode::Require, None),
            ("verify-ca", None) => {
                return Err(StorageError::invalid_config(
                    "sslmode=verify-ca needs sslrootcert=FILE with the certificates of your own authorities; use \
                     sslmode=verify-full with those of the system",
                ));
            }
            ("require" | "verify-ca", Some(roots)) => with_roots(roots, false),
            ("verify-full", roots) => with_roots(roots.unwrap_or(Roots::System), true),
            (unknown, _) => {
                return Err(StorageError::invalid_config(format!(
                    "sslmode={unknown:?} is unknown; use disable, prefer, require, verify-ca or verify-full"
                )));
            }
        };
        let client_cert = match (params.sslcert, params.sslkey) {
            (Some(certificate), Some(key)) => Some(ClientCertFiles { certificate, key }),
            (None, None) => None,
            _ => {
                return Err(StorageError::invalid_config(
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
        let trust_anchors = self.verification.as_ref().map(TrustAnchors::new);
        let verifier = CertVerifier {
            algorithms: provider.signature_verification_algorithms,
            trust_anchors: trust_anchors.transpose()?,
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| {
                StorageError::invalid_config(format!("cannot configure TLS: {error}"))
                    .with_source(error)
            })?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.client_cert {
            None => builder.with_no_client_auth(),
            Some(ClientCertFiles { certificate, key }) => builder
                .with_client_auth_cert(load_certificates(certificate)?, load_private_key(key)?)
                .map_err(|error| {
                    let message = format!("{certificate} and {key} do not match: {error}");
                    StorageError::invalid_config(message).with_source(error)
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
        use rustls::Error::{AlertReceived, InvalidCertificate};

        // The server may reject the client certificate after the handshake.
        if !is_tls_error(&error) && rustls_error(&error).is_none() {
            return query_error(error);
        }
        let described = match rustls_error(&error) {
            Some(InvalidCertificate(UnknownIssuer)) => {
                let authorities = match &self.verification {
                    Some(Verification {
                        roots: Roots::File(file),
                        ..
                    }) => format!("in {file}"),
                    _ => "that this system trusts".to_owned(),
                };
                StorageError::invalid_config(format!(
                    "the certificate of the database is not trusted: no authority {authorities} has issued it"
                ))
            }
            Some(InvalidCertificate(
                reason @ (NotValidForName | NotValidForNameContext { .. }),
            )) => StorageError::invalid_config(format!(
                "the certificate of the database is for another name: {reason}; sslmode=verify-ca does not verify \
                 names"
            )),
            Some(InvalidCertificate(reason)) => StorageError::invalid_config(format!(
                "the certificate of the database is not valid: {reason}"
            )),
            Some(alert @ AlertReceived(_)) => match &self.client_cert {
                Some(ClientCertFiles { certificate, .. }) => StorageError::invalid_config(format!(
                    "the database rejected the certificate in {certificate}: {alert}"
                )),
                None => StorageError::unavailable(format!("the database closed TLS: {alert}")),
            },
            Some(reason) => failed_tls_error(reason),
            None => match error.source().map(ToString::to_string) {
                Some(reason) if reason == "server does not support TLS" => {
                    StorageError::invalid_config(
                        "the server does not support TLS; set ssl = on there, or sslmode=disable here",
                    )
                }
                Some(reason) => failed_tls_error(&reason),
                None => StorageError::unavailable(error.to_string()),
            },
        };
        described.with_source(error)
    }
}

fn failed_tls_error(reason: &dyn Display) -> StorageError {
    StorageError::unavailable(format!("TLS with the database failed: {reason}"))
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
    fs::read(file).map_err(|error| {
        StorageError::invalid_config(format!("{file} cannot be read: {error}")).with_source(error)
    })
}

fn load_certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, StorageError> {
    let bytes = read_file(file)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = certificates.map_err(|error| {
        StorageError::invalid_config(format!("{file} is not a PEM file: {error}"))
            .with_source(error)
    })?;
    if certificates.is_empty() {
        return Err(StorageError::invalid_config(format!(
            "{file} has no certificate in PEM form"
        )));
    }
    Ok(certificates)
}

fn load_private_key(file: &str) -> Result<PrivateKeyDer<'static>, StorageError> {
    PrivateKeyDer::from_pem_slice(&read_file(file)?).map_err(|error| {
        StorageError::invalid_config(format!(
            "{file} has no private key in PEM form without encryption"
        ))
        .with_source(error)
    })
}

// === impl TrustAnchors ===

impl TrustAnchors {
    fn new(verification: &Verification) -> Result<Self, StorageError> {
        let roots = &verification.roots;
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
            return Err(StorageError::invalid_config(match roots {
                Roots::System => "this system has no certificates of authorities; install them, or set sslrootcert to \
                                  a file"
                    .to_owned(),
                Roots::File(file) => format!("{file} has no usable certificate"),
            }));
        }
        Ok(Self {
            root_store,
            configured_certs: certificates,
            is_host_name_checked: verification.is_host_name_checked,
        })
    }
}

// === impl CertVerifier ===

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
