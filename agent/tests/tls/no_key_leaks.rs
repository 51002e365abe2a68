//! Private keys never leak: no log line, debug output or error contains one.

use std::fmt::Write as _;
use std::fs;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use traffic_agent::tls::secrets::secret::{SecretSource, Want, load};
use traffic_agent::tls::secrets::store::Stores;

use crate::certs::{self, Ca, Issued, write_secret};
use crate::handshakes::{connect, echo};
use crate::listener::{Listener, plan};
use crate::logs;

/// Forms in which a key could be printed: PEM lines, DER as hexadecimal or as a list of numbers.
fn shapes(issued: &Issued) -> Vec<String> {
    let der = issued.key_der().secret_der().to_vec();
    // The middle holds the secret; the beginning is the same for every key of its kind.
    let secret = &der[der.len() / 3..der.len() / 3 + 12];
    let mut hex = String::new();
    secret.iter().for_each(|b| write!(hex, "{b:02x}").unwrap());
    let list = secret
        .iter()
        .map(u8::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    let lines = issued
        .key
        .lines()
        .filter(|l| !l.starts_with('-'))
        .map(|l| l[..l.len().min(32)].to_owned());
    lines.chain([hex.to_uppercase(), hex, list]).collect()
}

#[track_caller]
fn holds_no_key(text: &str, keys: &[Issued]) {
    for shape in keys.iter().flat_map(shapes) {
        assert!(
            !text.contains(&shape),
            "a key is in {}",
            &text[..text.len().min(2000)]
        );
    }
}

#[tokio::test]
async fn no_key_is_in_any_log_line_dump_or_error() {
    logs::collect();
    let ca = Ca::default();
    let root = tempfile::tempdir().unwrap();
    let (server, client, next) = (
        ca.issue(&["web.test"]),
        ca.issue(&["agent"]),
        ca.issue(&["web.test"]),
    );
    let keys = [server.clone(), client.clone(), next.clone()];
    let secrets = root.path().join("downstream-tls");
    write_secret(&secrets.join("web"), &server, None);
    write_secret(&secrets.join("client"), &client, Some(&ca.pem));
    let annotations = [
        ("telepresence.io/downstream-tls-secret.8443", "web"),
        ("telepresence.io/upstream-tls-secret.8443", "client"),
    ];
    let plan = plan(root.path(), &annotations, "");
    let listener = Listener::start(plan.clone(), echo().await).await;
    let mut stream = connect(
        listener.addr,
        certs::client(&ca, &[b"h2", b"http/1.1"], None),
        "web.test",
    )
    .await
    .unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    let _ = connect(
        listener.addr,
        certs::client(&Ca::default(), &[], None),
        "web.test",
    )
    .await
    .unwrap_err();

    let mut dumps = format!("{:#?} {:#?} {plan:?}", listener.tls, listener.metrics);
    let mut stores = Stores::default();
    let store = stores.open(&plan.terminating[0], Want::Pair);
    for spoil in ["", "cut", "encrypt", "swap", "mismatch", "garbage"] {
        let (crt, key) = (secrets.join("web/tls.crt"), secrets.join("web/tls.key"));
        write_secret(&secrets.join("web"), &next, None);
        match spoil {
            "cut" => fs::write(&key, &next.key[..next.key.len() - 30]).unwrap(),
            "encrypt" => fs::write(&key, next.key.replace("PRIVATE", "ENCRYPTED PRIVATE")).unwrap(),
            "swap" => {
                (
                    fs::write(&key, &next.chain).unwrap(),
                    fs::write(&crt, &next.key).unwrap(),
                )
                    .0
            }
            "mismatch" => fs::write(&key, &server.key).unwrap(),
            // The BEGIN line itself holds key material; an error that quotes the line would tell
            // it.
            "garbage" => fs::write(
                &key,
                next.key
                    .replace("-----\n", "")
                    .replace("BEGIN", "-----BEGIN"),
            )
            .unwrap(),
            _ => {}
        }
        let source = SecretSource {
            dirs: vec![secrets.join("web")],
            ..plan.terminating[0].clone()
        };
        let loaded = load(&source, Want::Pair, i64::from(u32::MAX / 2));
        assert_eq!(loaded.is_ok(), spoil.is_empty(), "{spoil}");
        write!(dumps, "{loaded:?}").unwrap();
        if let Err(fault) = loaded {
            write!(dumps, "{fault} {fault:#?}").unwrap();
        }
        while store.check() {}
        write!(dumps, "{store:#?} {stores:?}").unwrap();
    }
    let log = logs::text();
    assert!(
        log.contains("does not belong") && log.contains("certificate in use"),
        "{log}"
    );
    assert!(dumps.contains("web.test"), "{dumps}");
    holds_no_key(&log, &keys);
    holds_no_key(&dumps, &keys);
    // The search finds what it is looking for where it is.
    let there = std::panic::catch_unwind(|| holds_no_key(&server.key, &keys));
    assert!(there.is_err());
}
