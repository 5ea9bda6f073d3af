//! Certificate verification, and the TLS parameters.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;

use super::*;

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::new(vec!["db.internal".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn ca(roots: Roots) -> Option<Verification> {
    Some(Verification {
        roots,
        is_host_name_checked: false,
    })
}

fn full(roots: Roots) -> Option<Verification> {
    Some(Verification {
        roots,
        is_host_name_checked: true,
    })
}

/// Verifies a certificate for `db.internal` that the server `host` has sent.
fn verify(
    verification: &Option<Verification>,
    certificate: &CertificateDer<'_>,
    host: &str,
) -> Result<(), String> {
    let trust_anchors = verification.as_ref().map(TrustAnchors::new);
    let verifier = CertVerifier {
        algorithms: ring::default_provider().signature_verification_algorithms,
        trust_anchors: trust_anchors.transpose().unwrap(),
    };
    let name = ServerName::try_from(host).unwrap();
    let result = verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::now());
    result.map(drop).map_err(|error| error.to_string())
}

// Rules: TLS-2
#[test]
fn self_signed_certificate_is_accepted_if_it_is_a_configured_root() {
    let directory = TempDir::new().unwrap();
    let file = |name: &str, pem: &str| {
        let path = directory.path().join(name);
        fs::write(&path, pem).unwrap();
        Roots::File(path.to_str().unwrap().to_owned())
    };
    let key = KeyPair::generate().unwrap();
    let mut expired = ca_params();
    (expired.not_before, expired.not_after) =
        (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    let [configured, other, expired] =
        [&ca_params(), &ca_params(), &expired].map(|params| params.self_signed(&key).unwrap());
    let plain = CertificateParams::new(vec!["db.internal".to_owned()]).unwrap();
    let plain = plain.self_signed(&key).unwrap();
    for certificate in [&configured, &plain] {
        let roots = file("own.pem", &certificate.pem());
        let (ca, full) = (ca(roots.clone()), full(roots));
        let certificate = certificate.der();
        verify(&ca, certificate, "elsewhere").unwrap();
        verify(&full, certificate, "db.internal").unwrap();
        let error = verify(&full, certificate, "elsewhere").unwrap_err();
        assert!(error.contains("not valid for name"), "{error}");
    }
    let verification = ca(file("own.pem", &configured.pem()));
    verify(&verification, other.der(), "db.internal").unwrap_err();
    let verification = ca(file("expired.pem", &expired.pem()));
    let error = verify(&verification, expired.der(), "db.internal").unwrap_err();
    assert!(error.contains("expired"), "{error}");
    verify(&None, expired.der(), "elsewhere").unwrap();
}

// Rules: TLS-2
#[test]
fn certificate_chain_to_trusted_ca_is_accepted() {
    let directory = TempDir::new().unwrap();
    let mut params = ca_params();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "CA");
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let leaf =
        CertificateParams::new(vec!["db.internal".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf
        .signed_by(&KeyPair::generate().unwrap(), &issuer)
        .unwrap();
    let path = directory.path().join("ca.pem");
    fs::write(&path, issuer.pem()).unwrap();
    let roots = Roots::File(path.to_str().unwrap().to_owned());
    for host in ["db.internal", "127.0.0.1"] {
        verify(&full(roots.clone()), leaf.der(), host).unwrap();
    }
    for host in ["db", "127.0.0.2"] {
        verify(&full(roots.clone()), leaf.der(), host).unwrap_err();
        verify(&ca(roots.clone()), leaf.der(), host).unwrap();
    }
}

fn tls_params(sslmode: &str, sslrootcert: &str) -> TlsParams {
    let non_empty = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    TlsParams {
        sslmode: non_empty(sslmode),
        sslrootcert: non_empty(sslrootcert),
        ..Default::default()
    }
}

// Rules: TLS-1
#[test]
fn sslmode_verification_matches_libpq() {
    let file = || Roots::File("/x".to_owned());
    let cases = [
        ("", "", SslMode::Prefer, None),
        ("disable", "/x", SslMode::Disable, None),
        ("require", "", SslMode::Require, None),
        ("require", "/x", SslMode::Require, ca(file())),
        ("verify-ca", "/x", SslMode::Require, ca(file())),
        ("verify-full", "/x", SslMode::Require, full(file())),
        ("verify-full", "", SslMode::Require, full(Roots::System)),
        (
            "verify-full",
            "system",
            SslMode::Require,
            full(Roots::System),
        ),
        ("", "system", SslMode::Require, full(Roots::System)),
    ];
    for (sslmode, sslrootcert, expected_mode, verification) in cases {
        let tls = TlsConfig::new(tls_params(sslmode, sslrootcert)).unwrap();
        assert_eq!(
            (tls.mode, tls.verification),
            (expected_mode, verification),
            "{sslmode} {sslrootcert}"
        );
    }
}

// Rules: TLS-4
#[test]
fn contradictory_tls_params_are_rejected() {
    let cases = [
        (
            "allow",
            "",
            "sslmode=\"allow\" is unknown; use disable, prefer",
        ),
        ("Require", "", "sslmode=\"Require\" is unknown"),
        ("", "/x", "no effect with sslmode=prefer"),
        ("verify-ca", "", "needs sslrootcert=FILE"),
        ("verify-ca", "system", "needs sslmode=verify-full"),
        ("require", "system", "needs sslmode=verify-full"),
    ];
    for (sslmode, sslrootcert, message) in cases {
        let error = TlsConfig::new(tls_params(sslmode, sslrootcert))
            .unwrap_err()
            .to_string();
        assert!(error.contains(message), "{error}");
    }
    let incomplete = TlsParams {
        sslcert: Some("/x".to_owned()),
        ..Default::default()
    };
    let error = TlsConfig::new(incomplete).unwrap_err().to_string();
    assert!(error.contains("one is missing"), "{error}");
}

// Rules: TLS-3
#[test]
fn certificate_files_are_reread_for_each_connection() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("ca.pem");
    let tls = TlsConfig::new(tls_params("verify-full", path.to_str().unwrap())).unwrap();
    let pem = ca_params()
        .self_signed(&KeyPair::generate().unwrap())
        .unwrap()
        .pem();
    for (text, is_good) in [(pem.as_str(), true), ("nothing", false), (&pem, true)] {
        fs::write(&path, text).unwrap();
        assert_eq!(tls.connector(false).is_ok(), is_good);
    }
}
