//! Tests of listen addresses, and of sockets that are free, stale or in use.

use tempfile::tempdir;

use super::*;

fn address(text: &str) -> ListenAddress {
    text.parse().unwrap()
}

// Rules: CONN-7
#[test]
fn listen_addresses_round_trip_through_text() {
    for text in [
        "127.0.0.1:8470",
        "[::1]:0",
        "localhost:1",
        "unix:/run/lro.sock",
        "unix:lro.sock",
    ] {
        assert_eq!(address(text).to_string(), text);
    }
    assert_eq!(
        address("unix:///run/lro.sock"),
        address("unix:/run/lro.sock")
    );
}

// Rules: CONN-7
#[test]
fn invalid_listen_address_error_says_what_to_write() {
    for (text, problem) in [
        ("8470", "write host:port or unix:PATH"),
        (
            ":8470",
            "the host is missing; write 0.0.0.0 for all interfaces",
        ),
        (
            "::1:8470",
            "write an IPv6 address in brackets, as in [::1]:8470",
        ),
        (
            "localhost:99999",
            "the port must be a number from 0 to 65535",
        ),
        ("localhost:", "the port must be a number from 0 to 65535"),
        (
            "http://localhost:8470",
            "write host:port without a scheme or path",
        ),
        ("unix:", "a path must follow unix:"),
    ] {
        let error = text.parse::<ListenAddress>().unwrap_err().to_string();
        assert_eq!(error, format!("invalid listen address {text:?}: {problem}"));
    }
}

// Rules: CONN-7
#[tokio::test]
async fn port_0_is_reported_as_the_bound_port() {
    let listener = Listener::bind(&address("127.0.0.1:0"), None).unwrap();
    let local = listener.local_addr().to_string();
    assert!(
        local.starts_with("127.0.0.1:") && !local.ends_with(":0"),
        "{local}"
    );
}

// Rules: CONN-7
#[tokio::test]
async fn port_in_use_error_names_the_address_and_cause() {
    let listener = Listener::bind(&address("127.0.0.1:0"), None).unwrap();
    let error = Listener::bind(&listener.local_addr(), None).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    let message = error.to_string();
    assert!(
        message.starts_with(&format!("cannot listen on {}: ", listener.local_addr())),
        "{message}"
    );
    assert!(
        message.ends_with("; is another server running there?"),
        "{message}"
    );
}

// Rules: CONN-7
#[tokio::test]
async fn dropping_a_listener_removes_its_unix_socket() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("lro.sock");
    let listener = Listener::bind(&ListenAddress::Unix(path.clone()), None).unwrap();
    assert!(path.exists());
    drop(listener);
    assert!(!path.exists());
}

// Rules: CONN-7
#[tokio::test]
async fn dropping_a_listener_keeps_a_successors_unix_socket() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("lro.sock");
    let first = Listener::bind(&ListenAddress::Unix(path.clone()), None).unwrap();
    fs::rename(&path, folder.path().join("moved.sock")).unwrap();
    let second = Listener::bind(&ListenAddress::Unix(path.clone()), None).unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}

// Rules: CONN-7
#[tokio::test]
async fn stale_unix_socket_is_replaced() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("lro.sock");
    // The standard library does not remove the file, like a killed server.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    Listener::bind(&ListenAddress::Unix(path), None).unwrap();
}

// Rules: CONN-7
#[tokio::test]
async fn unix_socket_in_use_is_not_replaced() {
    let folder = tempdir().unwrap();
    let in_use = ListenAddress::Unix(folder.path().join("lro.sock"));
    let listener = Listener::bind(&in_use, None).unwrap();
    let error = Listener::bind(&in_use, None).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    listener.accept().await.unwrap();
}

// Rules: CONN-7
#[tokio::test]
async fn file_that_is_not_a_socket_is_not_removed() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    fs::write(&path, "precious").unwrap();
    let error = Listener::bind(&ListenAddress::Unix(path.clone()), None).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("a file that is not a socket exists at this path"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(path).unwrap(), "precious");
}
