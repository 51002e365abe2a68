//! Ways out of the exported volumes, and around their policies; none may succeed.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::client::{Client, NO_SUCH_FILE, OK, PERMISSION_DENIED, text};
use crate::fixture::Pod;

const APP: &str = "/tel_app_exports/app";

#[tokio::test(flavor = "multi_thread")]
async fn no_path_leads_out_of_the_volumes() {
    let pod = Pod::start().await;
    let outside = pod.outside();
    symlink(&outside, pod.volume("data/absolute")).unwrap();
    symlink("../../../outside", pod.volume("data/relative")).unwrap();
    symlink("/proc/self/environ", pod.volume("data/proc")).unwrap();
    symlink("/proc/self/root/etc/passwd", pod.volume("data/magic")).unwrap();
    symlink("/", pod.volume("data/top")).unwrap();
    let mut client = Client::connect(pod.address);
    for path in [
        "/etc/passwd",
        "/tel_app_exports/../etc/passwd",
        "/tel_app_exports/app/../../etc/passwd",
        "/tel_app_exports/app/data/../../../../../../etc/passwd",
        "/tel_app_exports/app/data/absolute",
        "/tel_app_exports/app/data/relative",
        "/tel_app_exports/app/data/proc",
        "/tel_app_exports/app/data/magic",
        "/tel_app_exports/app/data/top/root/passwd",
        "/tel_app_exports/other/data/hello",
        &format!("{APP}/data/top{}", outside.display()),
    ] {
        let read = client.read(path);
        assert!(
            matches!(read, Err(NO_SUCH_FILE | PERMISSION_DENIED)),
            "{path}: {read:?}"
        );
        let stat = client.on_path(17, path).status();
        assert_ne!(stat, OK, "STAT {path}");
        assert_ne!(client.open(path, 2 | 8 | 16).status(), OK, "create {path}");
    }
    // A link to the root leads where it leads in the app's container.
    assert_eq!(
        client.read(&format!("{APP}/data/top/data/hello")),
        Ok(b"hello".to_vec())
    );
    assert_eq!(fs::read_to_string(outside).unwrap(), "secret of the agent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_mount_cannot_be_changed_by_any_operation() {
    let pod = Pod::start().await;
    symlink("/etc/ro/fixed", pod.volume("data/to_fixed")).unwrap();
    symlink("/etc/ro/fresh", pod.volume("data/to_fresh")).unwrap();
    symlink("/etc/ro", pod.volume("data/to_ro")).unwrap();
    let mut client = Client::connect(pod.address);
    let fixed = format!("{APP}/etc/ro/fixed");
    assert_eq!(client.read(&fixed), Ok(b"fixed".to_vec()));
    for path in ["etc/ro/fixed", "data/to_fixed", "data/to_ro/fixed"] {
        let path = format!("{APP}/{path}");
        for flags in [2, 1 | 2, 2 | 16, 4, 2 | 8 | 16] {
            assert_eq!(
                client.open(&path, flags).status(),
                PERMISSION_DENIED,
                "{path} {flags}"
            );
        }
        let attributes = [&[0, 0, 0, 5][..], &[0; 8], &[0, 0, 1, 0xff]].concat();
        let set = client.ask(9, &[&text(path.as_bytes()), &attributes]);
        assert_eq!(set.status(), PERMISSION_DENIED, "SETSTAT {path}");
    }
    for path in ["etc/ro/fresh", "data/to_fresh", "data/to_ro/fresh"] {
        assert_ne!(
            client.open(&format!("{APP}/{path}"), 2 | 8).status(),
            OK,
            "{path}"
        );
    }
    let inside = format!("{APP}/etc/ro/new");
    let hello = text(format!("{APP}/data/hello").as_bytes());
    assert_eq!(
        client.on_path(13, &fixed).status(),
        PERMISSION_DENIED,
        "REMOVE"
    );
    assert_eq!(
        client
            .ask(14, &[&text(inside.as_bytes()), &[0; 4]])
            .status(),
        PERMISSION_DENIED
    );
    assert_eq!(
        client.ask(18, &[&hello, &text(inside.as_bytes())]).status(),
        PERMISSION_DENIED
    );
    let link = client.ask(20, &[&text(b"x"), &text(inside.as_bytes())]);
    assert_eq!(link.status(), PERMISSION_DENIED, "SYMLINK");
    let entries = fs::read_dir(pod.volume("etc/ro")).unwrap().count();
    assert_eq!(entries, 1, "nothing was created");
    assert_eq!(
        fs::read_to_string(pod.volume("etc/ro/fixed")).unwrap(),
        "fixed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_mount_is_not_shown() {
    let pod = Pod::start().await;
    symlink("/tmp/private", pod.volume("data/to_private")).unwrap();
    let mut client = Client::connect(pod.address);
    for path in ["tmp/private", "data/to_private"] {
        let path = format!("{APP}/{path}");
        assert_eq!(client.read(&path), Err(NO_SUCH_FILE), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_is_not_opened_and_blocks_nothing() {
    let pod = Pod::start().await;
    pod.make_special_files();
    let mut client = Client::connect(pod.address);
    for name in ["fifo", "zero", "socket", "inner"] {
        let read = client.read(&format!("{APP}/data/{name}"));
        assert!(read.is_err_and(|status| status != OK), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_changes_under_the_request_never_leads_out() {
    let pod = Pod::start().await;
    let (link, fresh) = (pod.volume("data/race"), pod.volume("data/race.new"));
    let (inner, outside) = (pod.volume("data/inner"), pod.outside());
    fs::write(inner.join("outside"), "inside").unwrap();
    symlink(&inner, &link).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let swapper = std::thread::spawn(move || {
        let parent = outside.parent().unwrap();
        for target in ["inner".as_ref(), parent].iter().cycle() {
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            symlink(target, &fresh).unwrap();
            fs::rename(&fresh, &link).unwrap();
            std::thread::yield_now();
        }
    });
    let mut client = Client::connect(pod.address);
    let mut served = 0;
    for _ in 0..60 {
        match client.read(&format!("{APP}/data/race/outside")) {
            Ok(content) => {
                assert_eq!(content, b"inside");
                served += 1;
            }
            Err(status) => assert_ne!(status, OK),
        }
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(served > 0, "the link led inside at times");
}

#[tokio::test(flavor = "multi_thread")]
async fn handles_and_packets_are_bounded() {
    let pod = Pod::start().await;
    let mut client = Client::connect(pod.address);
    let path = format!("{APP}/data/hello");
    let opened = (0..1_100)
        .filter(|_| client.open(&path, 1).status() == OK)
        .count();
    assert_eq!(opened, 1_024);
    assert_ne!(
        client.ask(5, &[&text(b"none"), &[0; 8], &[0; 4]]).status(),
        OK,
        "no such handle"
    );
    let mut other = Client::connect(pod.address);
    std::io::Write::write_all(&mut other.0, &[0xff; 64]).unwrap();
    let mut rest = Vec::new();
    let read = std::io::Read::read_to_end(&mut other.0, &mut rest);
    assert!(
        rest.is_empty() && read.is_ok_and(|n| n == 0),
        "the connection ends"
    );
    assert_eq!(client.on_path(17, &path).status(), OK, "others go on");
}
