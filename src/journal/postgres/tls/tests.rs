//! Which certificates are taken, and which parameters are none.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;

use super::*;

fn authority() -> CertificateParams {
    let mut params = CertificateParams::new(vec!["db.internal".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

/// What becomes of this certificate of `db.internal`, at this host.
fn look(trust: &Trust, certificate: &CertificateDer<'_>, host: &str) -> Result<(), String> {
    let verifier = Verifier::new(&ring::default_provider(), trust).unwrap();
    let name = ServerName::try_from(host).unwrap();
    let seen = verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::now());
    seen.map(drop).map_err(|error| error.to_string())
}

#[test]
fn a_certificate_signed_by_itself_is_taken_if_it_is_the_one_that_was_named() {
    let directory = TempDir::new().unwrap();
    let file = |name: &str, pem: &str| {
        let path = directory.path().join(name);
        fs::write(&path, pem).unwrap();
        Roots::File(path.to_str().unwrap().to_owned())
    };
    let key = KeyPair::generate().unwrap();
    let mut expired = authority();
    (expired.not_before, expired.not_after) =
        (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    let [own, other, expired] =
        [&authority(), &authority(), &expired].map(|params| params.self_signed(&key).unwrap());
    let plain = CertificateParams::new(vec!["db.internal".to_owned()]).unwrap();
    let plain = plain.self_signed(&key).unwrap();
    for certificate in [&own, &plain] {
        let roots = file("own.pem", &certificate.pem());
        let (any, named) = (Trust::Authorities(roots.clone()), Trust::Host(roots));
        let certificate = certificate.der();
        look(&any, certificate, "elsewhere").unwrap();
        look(&named, certificate, "db.internal").unwrap();
        let error = look(&named, certificate, "elsewhere").unwrap_err();
        assert!(error.contains("not valid for name"), "{error}");
    }
    let trust = Trust::Authorities(file("own.pem", &own.pem()));
    look(&trust, other.der(), "db.internal").unwrap_err();
    let trust = Trust::Authorities(file("expired.pem", &expired.pem()));
    let error = look(&trust, expired.der(), "db.internal").unwrap_err();
    assert!(error.contains("expired"), "{error}");
    look(&Trust::Anyone, expired.der(), "elsewhere").unwrap();
}

#[test]
fn a_chain_is_followed_to_an_authority_that_is_trusted() {
    let directory = TempDir::new().unwrap();
    let mut params = authority();
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
        look(&Trust::Host(roots.clone()), leaf.der(), host).unwrap();
    }
    for host in ["db", "127.0.0.2"] {
        look(&Trust::Host(roots.clone()), leaf.der(), host).unwrap_err();
        look(&Trust::Authorities(roots.clone()), leaf.der(), host).unwrap();
    }
}

fn parameters(mode: &str, root: &str) -> Parameters {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Parameters {
        sslmode: given(mode),
        sslrootcert: given(root),
        ..Default::default()
    }
}

#[test]
fn each_mode_trusts_as_with_libpq() {
    let file = || Roots::File("/x".to_owned());
    let cases = [
        ("", "", SslMode::Prefer, Trust::Anyone),
        ("disable", "/x", SslMode::Disable, Trust::Anyone),
        ("require", "", SslMode::Require, Trust::Anyone),
        (
            "require",
            "/x",
            SslMode::Require,
            Trust::Authorities(file()),
        ),
        (
            "verify-ca",
            "/x",
            SslMode::Require,
            Trust::Authorities(file()),
        ),
        ("verify-full", "/x", SslMode::Require, Trust::Host(file())),
        (
            "verify-full",
            "",
            SslMode::Require,
            Trust::Host(Roots::System),
        ),
        (
            "verify-full",
            "system",
            SslMode::Require,
            Trust::Host(Roots::System),
        ),
        ("", "system", SslMode::Require, Trust::Host(Roots::System)),
    ];
    for (mode, root, is, trust) in cases {
        let tls = Tls::new(parameters(mode, root)).unwrap();
        assert_eq!((tls.mode, tls.trust), (is, trust), "{mode} {root}");
    }
}

#[test]
fn what_promises_less_than_it_seems_to_is_refused_in_clear_words() {
    let cases = [
        (
            "allow",
            "",
            "sslmode=\"allow\" is unknown; use disable, prefer",
        ),
        ("Require", "", "sslmode=\"Require\" is unknown"),
        ("", "/x", "no use with sslmode=prefer"),
        ("verify-ca", "", "needs sslrootcert=FILE"),
        ("verify-ca", "system", "needs sslmode=verify-full"),
        ("require", "system", "needs sslmode=verify-full"),
    ];
    for (mode, root, words) in cases {
        let error = Tls::new(parameters(mode, root)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let half = Parameters {
        sslcert: Some("/x".to_owned()),
        ..Default::default()
    };
    let error = Tls::new(half).unwrap_err().to_string();
    assert!(error.contains("one is missing"), "{error}");
}

#[test]
fn files_are_read_anew_for_each_connection() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("ca.pem");
    let tls = Tls::new(parameters("verify-full", path.to_str().unwrap())).unwrap();
    let pem = authority()
        .self_signed(&KeyPair::generate().unwrap())
        .unwrap()
        .pem();
    for (text, is_good) in [(pem.as_str(), true), ("nothing", false), (&pem, true)] {
        fs::write(&path, text).unwrap();
        assert_eq!(tls.connector(false).is_ok(), is_good);
    }
}
