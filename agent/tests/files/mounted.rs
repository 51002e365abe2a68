//! The volumes as a workstation sees them: mounted by the sshfs of this machine, in the way in
//! which the stock client runs it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, SystemTime};

use crate::fixture::Pod;

pub(crate) struct Mount {
    sshfs: Child,
    folder: tempfile::TempDir,
}

impl Mount {
    pub(crate) fn of(pod: &Pod) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("directport={},follow_symlinks,cache=no", pod.address.port());
        let sshfs = Command::new("sshfs")
            .args(["-f", "-C", "-o", &options])
            .arg(format!("{}:/tel_app_exports/app", pod.address.ip()))
            .arg(folder.path())
            .spawn()
            .unwrap();
        let mount = Self { sshfs, folder };
        let deadline = SystemTime::now() + Duration::from_secs(20);
        while !mount.path().join("data").exists() {
            assert!(SystemTime::now() < deadline, "sshfs did not mount");
            std::thread::sleep(Duration::from_millis(20));
        }
        mount
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("fusermount3")
            .arg("-uz")
            .arg(self.folder.path())
            .status();
        let _ = self.sshfs.kill();
        let _ = self.sshfs.wait();
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workstation_reads_and_writes_the_volumes_through_sshfs() {
    let pod = Pod::start().await;
    let mount = Mount::of(&pod);
    let data = mount.path().join("data");
    assert_eq!(fs::read_to_string(data.join("hello")).unwrap(), "hello");
    assert_eq!(fs::metadata(data.join("hello")).unwrap().len(), 5);
    assert_eq!(names(&data), ["hello", "inner"]);

    fs::write(data.join("new"), "first line\n").unwrap();
    let mut file = OpenOptions::new()
        .append(true)
        .open(data.join("new"))
        .unwrap();
    file.write_all(b"second line\n").unwrap();
    drop(file);
    let written = fs::read_to_string(pod.volume("data/new")).unwrap();
    assert_eq!(written, "first line\nsecond line\n");
    let file = OpenOptions::new()
        .write(true)
        .open(data.join("new"))
        .unwrap();
    file.set_len(5).unwrap();
    file.write_all_at(b"FIRST", 0).unwrap();
    drop(file);
    assert_eq!(fs::read_to_string(pod.volume("data/new")).unwrap(), "FIRST");

    fs::create_dir_all(data.join("a/b/c")).unwrap();
    fs::rename(data.join("new"), data.join("a/b/renamed")).unwrap();
    fs::write(data.join("other"), "other").unwrap();
    fs::rename(data.join("other"), data.join("a/b/renamed")).unwrap();
    assert_eq!(
        fs::read_to_string(data.join("a/b/renamed")).unwrap(),
        "other"
    );
    assert!(fs::remove_dir(data.join("a")).is_err(), "it is not empty");
    fs::remove_file(data.join("a/b/renamed")).unwrap();
    fs::remove_dir_all(data.join("a")).unwrap();
    assert!(!pod.volume("data/a").exists());

    fs::set_permissions(data.join("hello"), Permissions::from_mode(0o600)).unwrap();
    let mode = fs::metadata(pod.volume("data/hello")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    File::options()
        .write(true)
        .open(data.join("hello"))
        .unwrap()
        .set_modified(time)
        .unwrap();
    assert_eq!(
        fs::metadata(pod.volume("data/hello"))
            .unwrap()
            .modified()
            .unwrap(),
        time
    );

    // The kernel is told the attributes of the target (`follow_symlinks`) and takes the new link for
    // an error; it is there all the same.
    let _ = symlink("hello", data.join("link"));
    assert_eq!(
        fs::read_link(pod.volume("data/link")).unwrap(),
        Path::new("hello")
    );
    fs::hard_link(data.join("hello"), data.join("second")).unwrap();
    assert_eq!(fs::metadata(pod.volume("data/hello")).unwrap().nlink(), 2);
    assert_eq!(fs::read_to_string(data.join("link")).unwrap(), "hello");
    let missing = fs::read_to_string(data.join("missing")).unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn config_maps_and_secrets_look_as_in_the_pod_and_follow_an_update() {
    let pod = Pod::start().await;
    let mount = Mount::of(&pod);
    let key = mount.path().join("config/key");
    assert_eq!(fs::read_to_string(&key).unwrap(), "value");
    // The kubelet's way: a new folder, and a link that is replaced in one step.
    fs::create_dir(pod.volume("config/..2027")).unwrap();
    fs::write(pod.volume("config/..2027/key"), "updated").unwrap();
    symlink("..2027", pod.volume("config/..data_tmp")).unwrap();
    fs::rename(pod.volume("config/..data_tmp"), pod.volume("config/..data")).unwrap();
    assert_eq!(fs::read_to_string(&key).unwrap(), "updated");
    let token = mount.path().join("var/run/secrets/eks.amazonaws.com/token");
    assert_eq!(fs::read_to_string(token).unwrap(), "token");
    assert_eq!(
        names(&mount.path().join("var/run/secrets")),
        ["eks.amazonaws.com"]
    );
    let read_only = fs::write(mount.path().join("etc/ro/fixed"), "no").unwrap_err();
    assert_eq!(read_only.kind(), std::io::ErrorKind::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_files_and_many_small_ones_arrive_whole() {
    let pod = Pod::start().await;
    let mount = Mount::of(&pod);
    let content: Vec<u8> = (0..8 << 20)
        .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    fs::write(mount.path().join("data/large"), &content).unwrap();
    assert!(
        fs::read(pod.volume("data/large")).unwrap() == content,
        "written whole"
    );
    let mut file = File::open(mount.path().join("data/large")).unwrap();
    file.seek(SeekFrom::Start(1 << 20)).unwrap();
    let mut rest = Vec::new();
    file.read_to_end(&mut rest).unwrap();
    assert!(rest == content[1 << 20..], "read whole");
    for number in 0..500 {
        fs::write(
            pod.volume(&format!("data/inner/{number}")),
            number.to_string(),
        )
        .unwrap();
    }
    let inner = mount.path().join("data/inner");
    assert_eq!(names(&inner).len(), 500);
    for number in [0, 99, 100, 499] {
        let text = fs::read_to_string(inner.join(number.to_string())).unwrap();
        assert_eq!(text, number.to_string());
    }
}
