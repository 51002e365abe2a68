//! Secret layouts and key formats that are read, and all faults of a Secret.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256};
use traffic_agent::tls::secrets::secret::{Fault, LoadedSecret, SecretSource, Want, load};

use crate::certs::{self, Ca, Issued, write_secret};

fn source(dir: &Path) -> SecretSource {
    SecretSource {
        annotation: "telepresence.io/downstream-tls-secret.8443".into(),
        value: "web-tls".into(),
        dirs: vec![PathBuf::from("/nonexistent/first"), dir.to_owned()],
    }
}

fn read(dir: &Path) -> Result<LoadedSecret, Fault> {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    load(&source(dir), Want::Pair, now as i64)
}

fn openssl(args: &[&str]) {
    let output = Command::new("openssl").args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn serial(issued: &Issued) -> String {
    issued
        .serial
        .to_be_bytes()
        .iter()
        .skip_while(|b| **b == 0)
        .map(|b| format!("{b:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}

#[test]
fn both_layouts_are_read_with_and_without_a_ca() {
    let ca = Ca::default();
    let issued = ca.issue(&["Web.Test", "*.web.test"]);
    for [crt, key, root] in [
        ["tls.crt", "tls.key", "ca.crt"],
        ["cert-chain.pem", "key.pem", "root-cert.pem"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(crt), &issued.chain).unwrap();
        fs::write(dir.path().join(key), &issued.key).unwrap();
        let loaded = read(dir.path()).unwrap();
        let facts = &loaded.pair.as_ref().unwrap().facts;
        assert!(loaded.ca.is_none());
        assert_eq!(facts.dns_names, ["web.test", "*.web.test"]);
        assert_eq!(facts.serial, serial(&issued));
        fs::write(dir.path().join(root), &ca.pem).unwrap();
        assert_eq!(read(dir.path()).unwrap().ca.unwrap().pinned.len(), 1);
        assert!(
            load(&source(dir.path()), Want::Ca, 0)
                .unwrap()
                .pair
                .is_none()
        );
    }
}

#[test]
fn every_key_kind_and_format_is_read() {
    let ca = Ca::default();
    let keys = [
        (
            "rsa",
            KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap(),
            vec!["PKCS#8", "-traditional"],
        ),
        (
            "p256",
            KeyPair::generate().unwrap(),
            vec!["PKCS#8", "-traditional"],
        ),
        (
            "p384",
            KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(),
            vec!["PKCS#8", "-traditional"],
        ),
        (
            "ed25519",
            KeyPair::generate_for(&PKCS_ED25519).unwrap(),
            vec!["PKCS#8"],
        ),
    ];
    for (name, key, formats) in keys {
        let issued = ca.issue_for(key, &["web.test"], |_| {});
        for format in formats {
            let dir = tempfile::tempdir().unwrap();
            write_secret(dir.path(), &issued, None);
            if format == "-traditional" {
                let path = dir.path().join("tls.key").display().to_string();
                rewrite_key(dir.path(), &["pkey", "-traditional"]);
                assert!(
                    !fs::read_to_string(&path)
                        .unwrap()
                        .contains("BEGIN PRIVATE KEY"),
                    "{name}"
                );
            }
            assert!(read(dir.path()).is_ok(), "{name} {format}");
        }
    }
}

#[test]
fn a_chain_keeps_its_intermediates() {
    let ca = Ca::default();
    let mut issued = ca.issue(&["web.test"]);
    issued.chain.push_str(&ca.pem);
    let dir = tempfile::tempdir().unwrap();
    write_secret(dir.path(), &issued, None);
    assert_eq!(
        read(dir.path()).unwrap().pair.unwrap().certified.cert.len(),
        2
    );
}

type Spoil = Box<dyn Fn(&Path)>;

fn write(name: &'static str, text: impl AsRef<[u8]> + 'static) -> Spoil {
    Box::new(move |dir| fs::write(dir.join(name), text.as_ref()).unwrap())
}

fn remove(name: &'static str) -> Spoil {
    Box::new(move |dir| fs::remove_file(dir.join(name)).unwrap())
}

fn openssl_key(args: &'static [&'static str]) -> Spoil {
    Box::new(move |dir| rewrite_key(dir, args))
}

fn rewrite_key(dir: &Path, args: &[&str]) {
    let path = dir.join("tls.key").display().to_string();
    let out = dir.join("out").display().to_string();
    openssl(&[args, &["-in", &path, "-out", &out]].concat());
    fs::rename(out, path).unwrap();
}

fn certificate_between(from: (i32, u8, u8), to: (i32, u8, u8)) -> Spoil {
    let issued = Ca::default().issue_with(&["web.test"], |params| {
        params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
        params.not_after = rcgen::date_time_ymd(to.0, to.1, to.2);
    });
    Box::new(move |dir| write_secret(dir, &issued, None))
}

fn malformed() -> Vec<(&'static str, Spoil, &'static str, &'static str)> {
    let ca = Ca::default();
    let (one, other) = (ca.issue(&["web.test"]), ca.issue(&["web.test"]));
    let mut ca_first = other.clone();
    ca_first.chain = format!("{}{}", ca.pem, other.chain);
    let truncated = one.key[..one.key.len() / 2].to_owned();
    let damaged = one.key.replacen("\nM", "\n!", 1);
    let der_lie = "-----BEGIN CERTIFICATE-----\nAQIDBAUG\n-----END CERTIFICATE-----\n";
    let key_lie = "-----BEGIN PRIVATE KEY-----\nAQIDBAUG\n-----END PRIVATE KEY-----\n";
    let swapped = one.clone();
    vec![
        (
            "certificate empty",
            write("tls.crt", ""),
            "tls.crt: is empty",
            "whole PEM",
        ),
        (
            "key empty",
            write("tls.key", ""),
            "tls.key: is empty",
            "whole PEM",
        ),
        (
            "swapped",
            Box::new(move |dir| {
                fs::write(dir.join("tls.crt"), &swapped.key).unwrap();
                fs::write(dir.join("tls.key"), &swapped.chain).unwrap();
            }),
            "tls.crt: holds a private key instead of certificates",
            "swap",
        ),
        (
            "key file holds certificates",
            write("tls.key", ca.pem.clone()),
            "tls.key: holds certificates",
            "swap",
        ),
        (
            "wrong key",
            write("tls.key", other.key.clone()),
            "tls.key: the private key does not belong",
            "issued for",
        ),
        (
            "leaf not first",
            Box::new(move |dir| write_secret(dir, &ca_first, None)),
            "certificate 2 of the chain",
            "first",
        ),
        (
            "expired",
            certificate_between((2020, 1, 1), (2021, 6, 1)),
            "expired on Jun",
            "renew",
        ),
        (
            "not yet valid",
            certificate_between((2090, 1, 1), (2091, 1, 1)),
            "not valid before Jan",
            "clocks",
        ),
        (
            "garbage certificate",
            write("tls.crt", "certainly no PEM"),
            "tls.crt: holds no PEM section",
            "whole PEM",
        ),
        (
            "garbage key",
            write("tls.key", [0xff, 0x00, 0x80]),
            "tls.key: holds no PEM section",
            "whole PEM",
        ),
        (
            "not X.509",
            write("tls.crt", der_lie),
            "certificate 1 is not valid X.509",
            "issue",
        ),
        (
            "not a key",
            write("tls.key", key_lie),
            "of a kind TLS cannot use",
            "2048",
        ),
        (
            "cut off",
            write("tls.key", truncated),
            "has no END line",
            "whole PEM",
        ),
        (
            "damaged",
            write("tls.key", damaged),
            "not base64",
            "whole PEM",
        ),
        (
            "encrypted",
            openssl_key(&["pkey", "-aes256", "-passout", "pass:x"]),
            "key is encrypted",
            "pass phrase",
        ),
        (
            "encrypted, old",
            openssl_key(&["ec", "-aes256", "-passout", "pass:x"]),
            "key is encrypted",
            "pass phrase",
        ),
        (
            "key missing",
            remove("tls.key"),
            "tls.key: the file is missing",
            "tls.crt and tls.key",
        ),
        (
            "certificate missing",
            remove("tls.crt"),
            "tls.crt: the file is missing",
            "tls.crt and tls.key",
        ),
        (
            "no directory",
            Box::new(|dir| fs::remove_dir_all(dir).unwrap()),
            "no such directory",
            "restart the workload",
        ),
        (
            "empty directory",
            Box::new(|dir| {
                ["tls.crt", "tls.key"]
                    .iter()
                    .for_each(|f| fs::remove_file(dir.join(f)).unwrap())
            }),
            "none of tls.crt",
            "kubernetes.io/tls",
        ),
        (
            "a directory for a file",
            Box::new(|dir| {
                fs::remove_file(dir.join("tls.key")).unwrap();
                fs::create_dir(dir.join("tls.key")).unwrap();
            }),
            "is not a file",
            "files themselves",
        ),
        (
            "too large",
            write("tls.crt", vec![b'\n'; 3 << 20]),
            "is not a file of at most 1 MiB",
            "files themselves",
        ),
        (
            "bad CA",
            write("ca.crt", "no CA"),
            "ca.crt: holds no PEM section",
            "whole PEM",
        ),
        (
            "CA is a key",
            write("ca.crt", one.key.clone()),
            "ca.crt: holds a private key",
            "swap",
        ),
    ]
}

#[test]
fn every_malformed_secret_has_its_message() {
    for (what, spoil, problem, remedy) in malformed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("web-tls");
        let good = Ca::default().issue(&["web.test"]);
        write_secret(&dir, &good, None);
        read(&dir).unwrap();
        spoil(&dir);
        let fault = read(&dir).expect_err(what);
        let text = fault.to_string();
        let start = "secret \"web-tls\" (annotation telepresence.io/downstream-tls-secret.8443): ";
        assert!(text.starts_with(start), "{what}: {text}");
        assert!(
            text.contains(problem) && text.contains(remedy),
            "{what}: {text}"
        );
        assert!(text.contains(&*dir.display().to_string()), "{what}: {text}");
        assert!(
            !text.contains(&good.key[30..60]) && text.lines().count() == 1,
            "{what}: {text}"
        );
    }
}

#[test]
fn an_unreadable_file_says_who_has_to_let_it_be_read() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("web-tls");
    write_secret(&dir, &Ca::default().issue(&["web.test"]), None);
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(dir.join("tls.key"), fs::Permissions::from_mode(0o000)).unwrap();
    // Root reads everything, so the look is taken as somebody else. A thread's identity is its own.
    let text = std::thread::spawn(move || {
        if rustix::process::geteuid().is_root() {
            let nobody = rustix::process::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        }
        read(&dir).unwrap_err().to_string()
    })
    .join()
    .unwrap();
    assert!(
        text.contains("tls.key: cannot be read (permission denied)"),
        "{text}"
    );
    assert!(text.contains("defaultMode"), "{text}");
}

#[test]
fn version_1_certificates_are_named_as_such() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).display().to_string();
    openssl(&[
        "req",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=web.test",
        "-keyout",
        &path("tls.key"),
        "-out",
        &path("csr"),
    ]);
    openssl(&[
        "x509",
        "-req",
        "-in",
        &path("csr"),
        "-signkey",
        &path("tls.key"),
        "-days",
        "30",
        "-out",
        &path("tls.crt"),
    ]);
    let text = read(root.path()).unwrap_err().to_string();
    assert!(
        text.contains("X.509 version 1") && text.contains("version 3"),
        "{text}"
    );
}

#[test]
fn a_self_signed_ca_as_its_own_leaf_can_be_served() {
    let root = tempfile::tempdir().unwrap();
    write_secret(root.path(), &certs::self_signed_ca_leaf("web.test"), None);
    read(root.path()).unwrap();
}

#[test]
fn a_ca_alone_serves_only_where_a_ca_is_wanted() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("ca.crt"), Ca::default().pem).unwrap();
    assert!(load(&source(root.path()), Want::Ca, 0).is_ok());
    assert!(
        read(root.path())
            .unwrap_err()
            .to_string()
            .contains("tls.crt: the file is missing")
    );
    fs::write(root.path().join("ca.crt"), "").unwrap();
    let text = load(&source(root.path()), Want::Ca, 0)
        .unwrap_err()
        .to_string();
    assert!(text.contains("ca.crt: the file is missing"), "{text}");
}
