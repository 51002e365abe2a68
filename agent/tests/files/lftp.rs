//! The volumes by lftp, which asks in other ways than libraries do: it mirrors whole trees,
//! resumes, and reads one file over several connections.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::fixture::Pod;

/// Files of the tree that is carried up and down.
const FILES: usize = 200;
/// Size of a file that is resumed and read in parts.
const LARGE: usize = 3_000_001;

/// Runs commands of lftp in the app's volumes; what it says on both outputs, and whether all went
/// well.
fn ran(pod: &Pod, here: &Path, commands: &str) -> (String, bool) {
    let port = pod.ftp.port();
    let script = format!(
        "set cmd:fail-exit true; set net:max-retries 1; set net:timeout 20; set xfer:clobber true; \
         open -u anonymous,x ftp://127.0.0.1:{port}/app/data; {commands}"
    );
    let mut lftp = Command::new("lftp");
    // Without the settings and the history of whoever runs this.
    lftp.args(["--norc", "-c", &script]).current_dir(here);
    lftp.env("LFTP_HOME", here.join(".lftp"));
    let output = lftp.output().expect("lftp, see tests/packages.txt");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (said, output.status.success())
}

#[track_caller]
fn lftp(pod: &Pod, here: &Path, commands: &str) -> String {
    let (said, well) = ran(pod, here, commands);
    assert!(well, "{commands}: {said}");
    said
}

/// Bytes in which every position can be told from its neighbours.
fn content(length: usize, seed: usize) -> Vec<u8> {
    let mut state = seed as u32 | 1;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| byte()).collect()
}

/// Makes a tree of files with names that are hard to list, and sizes around those of buffers.
fn make_tree(root: &Path) {
    let names = [
        "plain",
        "with spaces in it",
        "-dash",
        "#hash%20",
        "ümläut",
        "quote'\"",
        "semi;colon&",
        ".hidden",
        "trailing ",
        "[brackets]*?",
    ];
    for number in 0..FILES {
        let folder = root.join(format!("folder {}/inner", number % 7));
        fs::create_dir_all(&folder).unwrap();
        let length = [0, 1, 100, 8_191, 65_536, 70_001][number % 6];
        let name = format!("{}-{number}", names[number % names.len()]);
        fs::write(folder.join(name), content(length, number)).unwrap();
    }
    fs::create_dir_all(root.join("empty")).unwrap();
}

/// All files and folders below a folder, with what is in them.
fn tree(root: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            let is_folder = path.is_dir();
            found.insert(name, (!is_folder).then(|| fs::read(&path).unwrap()));
            if is_folder {
                folders.push(path);
            }
        }
    }
    found
}

#[track_caller]
fn assert_same(one: &Path, other: &Path) {
    let (one, other) = (tree(one), tree(other));
    let names = |tree: &BTreeMap<String, _>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&one), names(&other));
    let differ: Vec<_> = one
        .iter()
        .filter(|(name, it)| other[*name] != **it)
        .collect();
    let differ: Vec<_> = differ.into_iter().map(|(name, _)| name).collect();
    assert!(differ.is_empty(), "contents of {differ:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_is_mirrored_up_and_down_byte_by_byte() {
    let (pod, here) = (Pod::start().await, tempfile::tempdir().unwrap());
    let here = here.path();
    let up = here.join("up");
    make_tree(&up);
    assert_eq!(tree(&up).values().flatten().count(), FILES);
    lftp(&pod, here, "mirror -R up tree");
    assert_same(&up, &pod.volume("data/tree"));
    lftp(&pod, here, "mirror tree down");
    assert_same(&up, &here.join("down"));
    // Over several connections at once.
    lftp(&pod, here, "mirror --parallel=8 tree parallel");
    assert_same(&up, &here.join("parallel"));
    // It is all there, so nothing is carried again.
    for commands in ["mirror -R --dry-run up tree", "mirror --dry-run tree down"] {
        let said = lftp(&pod, here, commands);
        let carried = said.lines().filter(|line| line.starts_with("get "));
        assert_eq!(carried.collect::<Vec<_>>(), [""; 0], "{commands}");
    }
    // One that has changed is, and one that is gone goes there as well.
    fs::write(up.join("folder 0/inner/plain-0"), "changed").unwrap();
    fs::remove_dir_all(up.join("folder 1")).unwrap();
    lftp(&pod, here, "mirror -R --delete up tree");
    assert_same(&up, &pod.volume("data/tree"));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_listed_moved_and_removed() {
    let (pod, here) = (Pod::start().await, tempfile::tempdir().unwrap());
    let here = here.path();
    fs::write(here.join("note"), "a note").unwrap();
    let said = lftp(&pod, here, "put note; ls; cls; cls -l note; cat hello; pwd");
    for part in ["hello", "inner/", "note", "drwx", "6 "] {
        assert!(said.contains(part), "{part:?} in {said}");
    }
    assert!(
        said.contains("helloftp://"),
        "what `cat` and `pwd` say, in {said}"
    );
    lftp(
        &pod,
        here,
        "mv note inner/moved; mkdir -p a/b/c; mv inner/moved 'a/b/c/with space'",
    );
    assert_eq!(
        fs::read(pod.volume("data/a/b/c/with space")).unwrap(),
        b"a note"
    );
    let found = lftp(&pod, here, "find a; du -b a; glob echo h*");
    assert!(
        found.contains("a/b/c/with space\n") && found.contains("hello\n"),
        "{found}"
    );
    lftp(&pod, here, "rm hello; rmdir inner; rm -r a");
    assert_eq!(tree(&pod.volume("data")), BTreeMap::new());
    // What fails is said, and what is forbidden fails.
    for (commands, word) in [
        ("rm nothing", "550"),
        ("get nothing", "550"),
        ("cd /app/etc/ro; put note", "55"),
        ("rm /app/etc/ro/fixed", "55"),
        ("cd /app/tmp", "550"),
        ("get ../../../outside", "550"),
    ] {
        let (said, well) = ran(&pod, here, commands);
        assert!(!well && said.contains(word), "{commands}: {said}");
    }
    assert_eq!(fs::read(pod.volume("etc/ro/fixed")).unwrap(), b"fixed");
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_are_resumed_where_they_ended_and_read_in_parts() {
    let (pod, here) = (Pod::start().await, tempfile::tempdir().unwrap());
    let here = here.path();
    let large = content(LARGE, 7);
    let there = pod.volume("data/large");
    fs::write(&there, &large).unwrap();
    for commands in ["get -c large", "reget large"] {
        // What is there already is not read again, or its change would be undone.
        let mut part = large[..LARGE / 3].to_vec();
        part[0] ^= 0xff;
        fs::write(here.join("large"), &part).unwrap();
        lftp(&pod, here, commands);
        part.extend_from_slice(&large[LARGE / 3..]);
        assert!(fs::read(here.join("large")).unwrap() == part, "{commands}");
        // Nothing is left to be carried.
        lftp(&pod, here, commands);
    }
    fs::remove_file(here.join("large")).unwrap();
    lftp(&pod, here, "pget -n 5 large");
    assert!(fs::read(here.join("large")).unwrap() == large);
    for commands in ["put -c large", "reput large"] {
        let mut part = large[..LARGE / 2].to_vec();
        part[0] ^= 0xff;
        fs::write(&there, &part).unwrap();
        lftp(&pod, here, commands);
        part.extend_from_slice(&large[LARGE / 2..]);
        assert!(fs::read(&there).unwrap() == part, "{commands}");
    }
}
