//! Secrets that change under handshakes and long-lived streams. `TLS_ROTATION_SECONDS` (default 4)
//! says for how long.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certs::{self, Ca, Projected, write_secret};
use crate::handshakes::{connect, echo};
use crate::listener::{Listener, plan};
use crate::logs;

const SECRET: &str = "telepresence.io/downstream-tls-secret.8443";
/// A new pair is to be in use within this time.
const ROTATION_TIMEOUT: Duration = Duration::from_secs(2);

fn seconds() -> u64 {
    std::env::var("TLS_ROTATION_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(4)
}

pub fn serial_of(stream: &crate::handshakes::Stream) -> u64 {
    let certificate = &stream.get_ref().1.peer_certificates().unwrap()[0];
    let (_, parsed) = X509Certificate::from_der(certificate).unwrap();
    parsed
        .raw_serial()
        .iter()
        .fold(0, |n, b| n << 8 | u64::from(*b))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_under_load_fails_no_handshake_and_cuts_no_stream() {
    let ca = Ca::default();
    let root = tempfile::tempdir().unwrap();
    let first = ca.issue(&["web.test"]);
    let mut secret = Projected::new(&root.path().join("downstream-tls/web"), &first, None);
    let listener =
        Listener::start(plan(root.path(), &[(SECRET, "web")], "http"), echo().await).await;
    let config = certs::client(&ca, &[], None);
    let stop = Arc::new(AtomicBool::new(false));
    let oldest_allowed = Arc::new(AtomicU64::new(first.serial));
    let addr = listener.addr;

    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = connect(listener.addr, Arc::clone(&config), "web.test")
            .await
            .unwrap();
        let stop = Arc::clone(&stop);
        streams.push(tokio::spawn(async move {
            let mut rounds = 0u64;
            while !stop.load(Ordering::Relaxed) {
                stream.write_all(&rounds.to_be_bytes()).await.unwrap();
                assert_eq!(stream.read_u64().await.unwrap(), rounds);
                rounds += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            rounds
        }));
    }
    let mut callers = Vec::new();
    for _ in 0..3 {
        let (config, stop, oldest_allowed) = (
            Arc::clone(&config),
            Arc::clone(&stop),
            Arc::clone(&oldest_allowed),
        );
        callers.push(tokio::spawn(async move {
            let mut done = 0u64;
            while !stop.load(Ordering::Relaxed) {
                // What may still be seen is fixed before the handshake begins.
                let oldest = oldest_allowed.load(Ordering::SeqCst);
                let mut stream = connect(addr, Arc::clone(&config), "web.test")
                    .await
                    .unwrap();
                let seen = serial_of(&stream);
                assert!(
                    seen >= oldest,
                    "serial {seen} is older than {oldest}, which was due"
                );
                stream.write_all(b"x").await.unwrap();
                assert_eq!(stream.read_u8().await.unwrap(), b'x');
                done += 1;
            }
            done
        }));
    }

    let end = Instant::now() + Duration::from_secs(seconds());
    let mut pending: Vec<(u64, Instant)> = Vec::new();
    let mut rotations = 0u64;
    while Instant::now() < end {
        let next = ca.issue(&["web.test"]);
        secret.update(|dir| write_secret(dir, &next, None));
        rotations += 1;
        pending.push((next.serial, Instant::now() + ROTATION_TIMEOUT));
        for step in 0..10 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            pending.retain(|(serial, due)| {
                let due = *due <= Instant::now();
                if due {
                    oldest_allowed.fetch_max(*serial, Ordering::SeqCst);
                }
                !due
            });
            if step == 5 && rotations.is_multiple_of(3) {
                // A pair that does not match comes and goes; nobody must see it.
                let (good, bad) = (next.clone(), ca.issue(&["web.test"]));
                secret.update(|dir| {
                    write_secret(dir, &bad, None);
                    fs::write(dir.join("tls.key"), &good.key).unwrap();
                });
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut handshakes = 0;
    for caller in callers {
        handshakes += caller
            .await
            .expect("no handshake fails, none shows an old certificate");
    }
    for stream in streams {
        assert!(stream.await.expect("no stream is cut") > 0);
    }
    let failures: u64 = listener.metrics.tls_failures.iter().map(|(_, n)| n).sum();
    println!("{handshakes} handshakes, {rotations} rotations, {failures} failures");
    assert_eq!(failures, 0);
    let store = &listener.tls.stores()[0];
    assert!(
        store.loads.get() > rotations / 2 && handshakes > rotations,
        "{} loads",
        store.loads.get()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_pair_is_refused_once_and_a_good_one_taken_over() {
    logs::collect();
    let ca = Ca::default();
    let root = tempfile::tempdir().unwrap();
    let first = ca.issue(&["web.test"]);
    let mut secret = Projected::new(&root.path().join("downstream-tls/web"), &first, None);
    let listener =
        Listener::start(plan(root.path(), &[(SECRET, "web")], "http"), echo().await).await;
    let store = Arc::clone(&listener.tls.stores()[0]);
    let config = certs::client(&ca, &[], None);
    secret.update(|dir| {
        write_secret(dir, &ca.issue(&["web.test"]), None);
        fs::write(dir.join("tls.key"), &first.key).unwrap();
    });
    crate::listener::eventually("the bad pair is refused", || store.refused.get() == 1).await;
    assert!(store.fault().unwrap().contains("does not belong"));
    let stream = connect(listener.addr, Arc::clone(&config), "web.test")
        .await
        .unwrap();
    assert_eq!(serial_of(&stream), first.serial, "the good pair stays");
    let next = ca.issue(&["web.test"]);
    secret.update(|dir| write_secret(dir, &next, None));
    crate::listener::eventually("the good pair is in use", || store.loads.get() == 2).await;
    let stream = connect(listener.addr, config, "web.test").await.unwrap();
    assert_eq!(serial_of(&stream), next.serial);
    assert_eq!((store.refused.get(), store.fault()), (1, None));
    let told = logs::lines(&[
        root.path().to_str().unwrap(),
        "does not belong",
        "the last good certificate stays in use",
    ]);
    assert_eq!(told.len(), 1, "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_whose_secret_comes_late_relays_until_then() {
    let ca = Ca::default();
    let root = tempfile::tempdir().unwrap();
    let listener =
        Listener::start(plan(root.path(), &[(SECRET, "web")], "http"), echo().await).await;
    assert!(!listener.tls.terminates());
    let fault = listener.tls.fault().unwrap();
    assert!(
        fault.contains("downstream-tls/web") && fault.contains("no such directory"),
        "{fault}"
    );
    // Relayed untouched: even a ClientHello comes back from the echo as it is.
    let mut socket = tokio::net::TcpStream::connect(listener.addr).await.unwrap();
    socket.write_all(&[22, 3, 1, 0, 1, 1]).await.unwrap();
    let mut back = [0; 6];
    socket.read_exact(&mut back).await.unwrap();
    assert_eq!(back, [22, 3, 1, 0, 1, 1]);
    write_secret(
        &root.path().join("downstream-tls/web"),
        &ca.issue(&["web.test"]),
        None,
    );
    let tls = Arc::clone(&listener.tls);
    crate::listener::eventually("the secret is found", move || tls.terminates()).await;
    connect(listener.addr, certs::client(&ca, &[], None), "web.test")
        .await
        .unwrap();
}

#[tokio::test]
async fn the_name_asked_for_picks_the_certificate() {
    let ca = Ca::default();
    let root = tempfile::tempdir().unwrap();
    let (a, b) = (ca.issue(&["a.test"]), ca.issue(&["b.test", "*.b.test"]));
    write_secret(&root.path().join("downstream-tls/a"), &a, None);
    write_secret(&root.path().join("downstream-tls/b"), &b, None);
    let listener =
        Listener::start(plan(root.path(), &[(SECRET, "a,b")], "http"), echo().await).await;
    for (name, expected) in [
        ("a.test", &a),
        ("b.test", &b),
        ("x.b.test", &b),
        ("B.TEST", &b),
    ] {
        let stream = connect(listener.addr, certs::client(&ca, &[], None), name)
            .await
            .unwrap();
        assert_eq!(serial_of(&stream), expected.serial, "{name}");
    }
    // A name nobody has gets the first one, which the caller then refuses.
    let refused = connect(listener.addr, certs::client(&ca, &[], None), "c.test")
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("not valid for name"),
        "{refused}"
    );
}

#[tokio::test]
async fn the_end_of_a_certificate_is_told_from_seven_days_before() {
    logs::collect();
    let ca = Ca::default();
    for (name, days, warned) in [("soon", 6, 1), ("later", 8, 0)] {
        let root = tempfile::tempdir().unwrap();
        let issued = ca.issue_with(&[name], |params| {
            let seconds = std::time::SystemTime::now() + Duration::from_secs(days * 24 * 3600);
            params.not_after = seconds.into();
        });
        let secret = format!("expires-{name}");
        write_secret(
            &root.path().join("downstream-tls").join(&secret),
            &issued,
            None,
        );
        let plan = plan(root.path(), &[(SECRET, &secret)], "http");
        let mut stores = traffic_agent::tls::secrets::store::Stores::default();
        let store = stores.all_of(&plan).remove(0);
        let left =
            store.not_after().unwrap() - std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
        assert!((left - days as i64 * 24 * 3600).abs() < 60, "{left}");
        // Told once, however often the secret is looked at.
        assert!(!store.check() && !store.check());
        let lines = logs::lines(&["WARN", &secret, "the certificate expires soon"]);
        assert_eq!(lines.len(), warned, "{lines:?}");
    }
}
