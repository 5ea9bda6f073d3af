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

use super::{link::refused, url::Parameters};
use crate::journal::journal::JournalError;

/// Whether TLS is used, and with whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tls {
    /// As much of it as tokio-postgres knows.
    pub(super) mode: SslMode,
    trust: Trust,
    /// The files with our own certificate, and with its key.
    identity: Option<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Trust {
    /// Whoever answers.
    Anyone,
    /// Whoever has a certificate of these authorities.
    Authorities(Roots),
    /// The same, if it is for the name of the host.
    Host(Roots),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Roots {
    System,
    File(String),
}

/// Looks at the certificate of a server.
#[derive(Debug)]
struct Verifier {
    algorithms: WebPkiSupportedAlgorithms,
    /// None: it may have any.
    authorities: Option<Authorities>,
}

#[derive(Debug)]
struct Authorities {
    store: RootCertStore,
    /// Those that were named one by one.
    certificates: Vec<CertificateDer<'static>>,
    /// The certificate must be for the name of the host.
    is_named: bool,
}

// === impl Tls ===

impl Tls {
    /// # Errors
    /// Parameters that no one knows, or that promise less than they seem to.
    pub(super) fn new(parameters: Parameters) -> Result<Self, JournalError> {
        let Parameters {
            sslmode,
            sslrootcert,
            sslcert,
            sslkey,
        } = parameters;
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
        let (mode, trust) = match (mode, roots) {
            ("disable" | "prefer" | "require" | "verify-ca", Some(Roots::System)) => {
                return Err(JournalError(format!(
                    "sslrootcert=system needs sslmode=verify-full: with sslmode={mode}, anybody who has some \
                     certificate could be the database"
                )));
            }
            ("disable", _) => (SslMode::Disable, Trust::Anyone),
            ("prefer", None) => (SslMode::Prefer, Trust::Anyone),
            ("prefer", Some(_)) => {
                return Err(JournalError(
                    "sslrootcert is of no use with sslmode=prefer, which goes on without TLS; use \
                     sslmode=verify-full, or verify-ca"
                        .to_owned(),
                ));
            }
            ("require", None) => (SslMode::Require, Trust::Anyone),
            ("verify-ca", None) => {
                return Err(JournalError(
                    "sslmode=verify-ca needs sslrootcert=FILE, the certificates of your own authorities; \
                     use sslmode=verify-full with those of the system"
                        .to_owned(),
                ));
            }
            ("require" | "verify-ca", Some(roots)) => (SslMode::Require, Trust::Authorities(roots)),
            ("verify-full", roots) => {
                let roots = roots.unwrap_or(Roots::System);
                (SslMode::Require, Trust::Host(roots))
            }
            (unknown, _) => {
                return Err(JournalError(format!(
                    "sslmode={unknown:?} is unknown; use disable, prefer, require, verify-ca or verify-full"
                )));
            }
        };
        let identity = match (sslcert, sslkey) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                return Err(JournalError(
                    "sslcert and sslkey belong together; one is missing".to_owned(),
                ));
            }
        };
        Ok(Self {
            mode,
            trust,
            identity,
        })
    }

    /// What makes connections. Files are read each time, so that certificates can be
    /// renewed while a server runs.
    pub(super) fn connector(&self, is_direct: bool) -> Result<MakeRustlsConnect, JournalError> {
        let provider = Arc::new(ring::default_provider());
        let verifier = Verifier::new(&provider, &self.trust)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| JournalError(format!("TLS cannot be used: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder
                .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
                .map_err(|error| {
                    JournalError(format!(
                        "{certificate} and {key} are of no use together: {error}"
                    ))
                })?,
        };
        if is_direct {
            config.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        Ok(MakeRustlsConnect::new(config))
    }

    /// Why there is no connection, as a sentence for people.
    pub(super) fn refused(&self, error: tokio_postgres::Error) -> JournalError {
        use CertificateError::{NotValidForName, NotValidForNameContext, UnknownIssuer};
        use rustls::Error::{AlertReceived, InvalidCertificate};

        // What the server says of our certificate may come after the handshake.
        if !is_of_tls(&error) && rustls_of(&error).is_none() {
            return refused(error);
        }
        let words = match rustls_of(&error) {
            Some(InvalidCertificate(UnknownIssuer)) => {
                let whose = match &self.trust {
                    Trust::Authorities(Roots::File(file)) | Trust::Host(Roots::File(file)) => {
                        format!("in {file}")
                    }
                    _ => "that this system trusts".to_owned(),
                };
                format!(
                    "the certificate of the database is not trusted: no authority {whose} has issued it"
                )
            }
            Some(InvalidCertificate(
                words @ (NotValidForName | NotValidForNameContext { .. }),
            )) => format!(
                "the certificate of the database is for another name: {words}; sslmode=verify-ca does not \
                 look at names"
            ),
            Some(InvalidCertificate(words)) => {
                format!("the certificate of the database is not accepted: {words}")
            }
            Some(words @ AlertReceived(_)) => match &self.identity {
                Some((certificate, _)) => {
                    format!("the database does not accept the certificate in {certificate}: {words}")
                }
                None => format!("the database ends TLS: {words}"),
            },
            Some(words) => format!("there is no TLS with the database: {words}"),
            None => match error.source().map(ToString::to_string) {
                Some(words) if words == "server does not support TLS" => {
                    "the server does not support TLS; set ssl = on there, or go without by sslmode=disable"
                        .to_owned()
                }
                Some(words) => format!("there is no TLS with the database: {words}"),
                None => error.to_string(),
            },
        };
        JournalError(words)
    }
}

/// Whether a connection failed at TLS. tokio-postgres says so by words only.
pub(super) fn is_of_tls(error: &tokio_postgres::Error) -> bool {
    error.to_string() == "error performing TLS handshake"
}

fn rustls_of(error: &tokio_postgres::Error) -> Option<&rustls::Error> {
    let cause = error.source()?.downcast_ref::<io::Error>()?;
    cause.get_ref()?.downcast_ref()
}

fn read(file: &str) -> Result<Vec<u8>, JournalError> {
    fs::read(file).map_err(|error| JournalError(format!("{file} cannot be read: {error}")))
}

fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, JournalError> {
    let bytes = read(file)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let all = all.map_err(|error| JournalError(format!("{file} is no PEM file: {error}")))?;
    if all.is_empty() {
        return Err(JournalError(format!(
            "{file} has no certificate in PEM form"
        )));
    }
    Ok(all)
}

fn private_key(file: &str) -> Result<PrivateKeyDer<'static>, JournalError> {
    PrivateKeyDer::from_pem_slice(&read(file)?).map_err(|_| {
        JournalError(format!(
            "{file} has no private key in PEM form that is not encrypted"
        ))
    })
}

// === impl Verifier ===

impl Verifier {
    fn new(provider: &CryptoProvider, trust: &Trust) -> Result<Self, JournalError> {
        let authorities = match trust {
            Trust::Anyone => None,
            Trust::Authorities(roots) => Some(Authorities::new(roots, false)?),
            Trust::Host(roots) => Some(Authorities::new(roots, true)?),
        };
        Ok(Self {
            algorithms: provider.signature_verification_algorithms,
            authorities,
        })
    }
}

impl Authorities {
    fn new(roots: &Roots, is_named: bool) -> Result<Self, JournalError> {
        let mut store = RootCertStore::empty();
        let certificates = match roots {
            Roots::System => {
                store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                Vec::new()
            }
            Roots::File(file) => {
                let certificates = certificates(file)?;
                store.add_parsable_certificates(certificates.iter().cloned());
                certificates
            }
        };
        if store.is_empty() {
            return Err(JournalError(match roots {
                Roots::System => {
                    "this system has no certificates of authorities; install them, or name a file \
                     with sslrootcert"
                        .to_owned()
                }
                Roots::File(file) => format!("{file} has no certificate that can be used"),
            }));
        }
        Ok(Self {
            store,
            certificates,
            is_named,
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(authorities) = &self.authorities else {
            return Ok(ServerCertVerified::assertion());
        };
        let parsed = ParsedCertificate::try_from(certificate)?;
        let issued = verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &authorities.store,
            intermediates,
            now,
            self.algorithms.all,
        );
        match issued {
            // A server with the certificate of an authority is no good, unless it is the very
            // one that was named: openssl makes such, signed by themselves, and libpq takes
            // them. Whether it has expired was looked at before.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_)))
                if authorities.certificates.contains(certificate) => {}
            issued => issued?,
        }
        if authorities.is_named {
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
