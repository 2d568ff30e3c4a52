//! Encrypted connections, judged by two other implementations of TLS.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::path::Path;
use std::sync::Arc;

use vmwright_disk::ErrorKind;
use vmwright_image::Format;
use vmwright_judges::{need, output, run};
use vmwright_server::nbd::{Config, Export, Listen, Tls, TlsMode};

use crate::support::{Folder, Running, new_image, qemu_img, sample};

/// Makes an authority with a certificate for a server at 127.0.0.1 and one for a client, named as QEMU names them.
fn credentials(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-batch"];
    let ca = ["req", "-x509", "-days", "2", "-subj", "/CN=vmwright test authority"];
    let ca_files = ["-keyout", &path("ca-key.pem"), "-out", &path("ca-cert.pem")].map(str::to_owned);
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    run("openssl", [words(&ca), words(&new_key), ca_files.to_vec()].concat());
    let who = [
        ("server", "subjectAltName=IP:127.0.0.1,DNS:localhost", "serverAuth"),
        ("client", "subjectAltName=DNS:client", "clientAuth"),
    ];
    for (name, alternative, usage) in who {
        let (key, request, certificate) =
            (path(&format!("{name}-key.pem")), path("request.pem"), path(&format!("{name}-cert.pem")));
        let subject = format!("/CN={name}");
        let ask = ["req", "-subj", &subject, "-keyout", &key, "-out", &request];
        run("openssl", [words(&ask), words(&new_key)].concat());
        std::fs::write(folder.join("extensions"), format!("{alternative}\nextendedKeyUsage={usage}\n"))
            .unwrap();
        let (ca, ca_key, extensions) = (path("ca-cert.pem"), path("ca-key.pem"), path("extensions"));
        let sign =
            ["x509", "-req", "-days", "2", "-CAcreateserial", "-in", &request, "-CA", &ca, "-CAkey", &ca_key];
        run("openssl", [words(&sign), words(&["-extfile", &extensions, "-out", &certificate])].concat());
    }
}

fn config(folder: &Folder, mode: TlsMode, verify_clients: bool) -> Config {
    let disk = new_image(&folder.path("image"), Format::Qcow2, 9 << 20);
    let listen = Listen::Tcp("127.0.0.1:0".parse().unwrap());
    let tls = Some(Tls::from_folder(&folder.path("pki"), mode, verify_clients).unwrap());
    Config { tls, ..Config::new(vec![Export::new("disk", disk).writable()], listen) }
}

/// The address as nbdinfo and nbdcopy take it, with the credentials of a client.
fn nbds(server: &Running, credentials: &str) -> String {
    format!("{}?tls-certificates={credentials}", server.uri("disk").replace("nbd://", "nbds://"))
}

fn port(server: &Running) -> u16 {
    match &server.places[0] {
        Listen::Tcp(address) => address.port(),
        Listen::Unix(path) => panic!("{} is no address", path.display()),
    }
}

#[test]
fn nbdcopy_and_qemu_img_copy_both_ways_encrypted() {
    need!("openssl", "nbdcopy", "nbdinfo", "qemu-img");
    let folder = Folder::new();
    credentials(&folder.path("pki"));
    let expected = sample(&folder.path("source"), 9 << 20);
    let server = Running::start(config(&folder, TlsMode::Required, true));
    let uri = nbds(&server, &folder.text("pki"));
    run("nbdcopy", [&folder.text("source"), &uri]);
    run("nbdcopy", [&uri, &folder.text("copy")]);
    assert!(std::fs::read(folder.path("copy")).unwrap() == expected);
    let info = run("nbdinfo", ["--json", &uri]);
    assert!(info.contains("\"TLS\": true"), "{info}");

    let object = format!("tls-creds-x509,id=tls0,dir={},endpoint=client", folder.text("pki"));
    let options = format!("driver=nbd,host=127.0.0.1,port={},export=disk,tls-creds=tls0", port(&server));
    let convert =
        ["convert", "--object", &object, "--image-opts", &options, "-O", "raw", &folder.text("by-qemu")];
    run("qemu-img", convert);
    assert!(std::fs::read(folder.path("by-qemu")).unwrap() == expected);
    assert!(server.wait_for("Serving").contains("encrypted: true"));
    assert_eq!(server.stop().unwrap().broken, 0);
    qemu_img(&format!("check -q -f qcow2 {}", folder.text("image")));
}

#[test]
fn where_encryption_is_required_there_is_nothing_without() {
    need!("openssl", "nbdinfo");
    let folder = Folder::new();
    credentials(&folder.path("pki"));
    let server = Running::start(config(&folder, TlsMode::Required, false));
    assert!(!output("nbdinfo", [server.uri("disk")]).status.success());
    assert!(!output("nbdinfo", ["--list", &server.uri("")]).status.success());
    run("nbdinfo", [nbds(&server, &folder.text("pki"))]);
    server.stop().unwrap();
}

#[test]
fn where_encryption_is_allowed_both_ways_lead_in() {
    need!("openssl", "nbdinfo");
    let folder = Folder::new();
    credentials(&folder.path("pki"));
    let server = Running::start(config(&folder, TlsMode::Allowed, false));
    run("nbdinfo", [server.uri("disk")]);
    assert!(server.wait_for("Serving").contains("encrypted: false"));
    run("nbdinfo", [nbds(&server, &folder.text("pki"))]);
    server.stop().unwrap();
}

#[test]
fn a_client_of_another_authority_is_kept_out_and_so_is_one_without_certificate() {
    need!("openssl", "nbdinfo");
    let folder = Folder::new();
    credentials(&folder.path("pki"));
    credentials(&folder.path("other"));
    // Knows the server's authority, but has a certificate of another one.
    std::fs::copy(folder.path("pki").join("ca-cert.pem"), folder.path("other").join("ca-cert.pem")).unwrap();
    std::fs::create_dir(folder.path("none")).unwrap();
    std::fs::copy(folder.path("pki").join("ca-cert.pem"), folder.path("none").join("ca-cert.pem")).unwrap();
    let server = Running::start(config(&folder, TlsMode::Required, true));
    for stranger in ["other", "none"] {
        assert!(!output("nbdinfo", [nbds(&server, &folder.text(stranger))]).status.success(), "{stranger}");
    }
    run("nbdinfo", [nbds(&server, &folder.text("pki"))]);
    server.stop().unwrap();
}

#[test]
fn credentials_that_cannot_be_used_are_refused_by_name() {
    need!("openssl");
    let folder = Folder::new();
    let pki = folder.path("pki");
    let error = Tls::from_folder(&pki, TlsMode::Required, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    credentials(&pki);
    std::fs::write(pki.join("ca-cert.pem"), "no certificate").unwrap();
    let error = Tls::from_folder(&pki, TlsMode::Required, true).unwrap_err();
    assert!(error.to_string().contains("ca-cert.pem"), "{error}");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    // A key that is not that of the certificate.
    std::fs::copy(pki.join("client-key.pem"), pki.join("server-key.pem")).unwrap();
    let error = Tls::from_folder(&pki, TlsMode::Required, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_client_that_stalls_within_the_handshake_is_left() {
    need!("openssl");
    let folder = Folder::new();
    credentials(&folder.path("pki"));
    let mut config = config(&folder, TlsMode::Required, false);
    config.limits.negotiation = std::time::Duration::from_millis(1500);
    let server = Running::start(config);
    let stream = std::net::TcpStream::connect(("127.0.0.1", port(&server))).unwrap();
    let mut client = crate::client::Client::connect(stream);
    assert_eq!(client.last(5, &[]), crate::client::ACK);
    assert!(server.wait_for("Gone").contains("start TLS"));
    let _kept = Arc::new(client);
    server.stop().unwrap();
}
