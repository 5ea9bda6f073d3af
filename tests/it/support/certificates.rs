//! Issues TLS certificates from a certificate authority created by the test.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// A certificate authority with a self-signed root certificate.
pub(crate) struct CertificateAuthority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its private key in PEM format.
pub(crate) struct IssuedCertificate {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

// === impl CertificateAuthority ===

impl CertificateAuthority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Returns the root certificate in PEM format.
    pub(crate) fn certificate(&self) -> String {
        self.0.pem()
    }

    /// Issues a certificate for a subject, valid for `hosts`.
    pub(crate) fn issue(&self, subject: &str, hosts: &[&str]) -> IssuedCertificate {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, subject);
        let key = KeyPair::generate().unwrap();
        IssuedCertificate {
            certificate: params.signed_by(&key, &self.0).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}
