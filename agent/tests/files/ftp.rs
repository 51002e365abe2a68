//! The volumes by FTP, as a library reads and writes them and as the protocol is meant.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::client::{Client, OK, text};
use crate::fixture::Pod;
use crate::ftp_client::FtpClient;
use crate::mounted::Mount;

/// Runs the list of operations; what they gave, line by line.
fn operations(arguments: &[&str]) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/files/operations.py");
    let output = Command::new("python3")
        .arg(script)
        .args(arguments)
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The two protocols differ in nothing that the operations show.
#[tokio::test(flavor = "multi_thread")]
async fn one_list_of_operations_has_the_same_results_by_sftp_and_by_ftp() {
    let (by_sftp, by_ftp) = (Pod::start().await, Pod::start().await);
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(1_709_251_199);
    for pod in [&by_sftp, &by_ftp] {
        let hello = File::options()
            .write(true)
            .open(pod.volume("data/hello"))
            .unwrap();
        hello.set_modified(changed).unwrap();
    }
    let mount = Mount::of(&by_sftp);
    let sftp = operations(&["mount", mount.path().to_str().unwrap()]);
    let port = by_ftp.ftp.port().to_string();
    let ftp = operations(&["ftp", "127.0.0.1", &port]);
    assert!(sftp.lines().count() >= 60, "{sftp}");
    let differences: Vec<_> = sftp
        .lines()
        .zip(ftp.lines())
        .filter(|(s, f)| s != f)
        .collect();
    assert!(differences.is_empty(), "SFTP and FTP: {differences:#?}");
    assert_eq!(sftp.lines().count(), ftp.lines().count());
    // Neither is empty in the same way as the other.
    for line in [
        "changed data/hello -> 1709251199",
        "read data/hello 2 -> b'llo'",
        "read data/large -> the large file",
        "write data/new b'' 3 -> None",
        "facts data/new -> ('file', 8)",
        "read data/nothing -> missing",
        "remove etc/ro/fixed -> refused",
        "read etc/ro/fixed -> b'fixed'",
    ] {
        assert!(ftp.lines().any(|it| it == line), "{line} in {ftp}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_small_files_are_listed_and_read_by_both_protocols() {
    const FILES: usize = 10_000;
    let pod = Pod::start().await;
    for number in 0..FILES {
        fs::write(
            pod.volume(&format!("data/inner/{number}")),
            number.to_string(),
        )
        .unwrap();
    }
    let mut ftp = FtpClient::log_in(pod.ftp);
    let listed = String::from_utf8(ftp.receive("MLSD data/inner").unwrap()).unwrap();
    let mut names: Vec<usize> = listed
        .lines()
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    names.sort_unstable();
    assert!(names.iter().copied().eq(0..FILES));
    let names: Vec<_> = (0..FILES)
        .map(|number| format!("data/inner/{number}"))
        .collect();
    for (number, content) in ftp.receive_all(&names).into_iter().enumerate() {
        assert_eq!(content, number.to_string().into_bytes());
    }
    let folder = "/tel_app_exports/app/data/inner";
    let mut sftp = Client::connect(pod.address);
    let handle = text(&sftp.on_path(11, folder).string());
    let mut count = 0;
    loop {
        let names = sftp.ask(12, &[&handle]);
        if names.status() != OK {
            break;
        }
        count += names.count();
    }
    // With `.` and `..`.
    assert_eq!(count, FILES + 2);
    let paths: Vec<_> = (0..FILES)
        .map(|number| format!("{folder}/{number}"))
        .collect();
    // As many as may be open at once.
    for (batch, paths) in paths.chunks(1_000).enumerate() {
        for (at, content) in sftp.read_all(paths).into_iter().enumerate() {
            assert_eq!(content, (batch * 1_000 + at).to_string().into_bytes());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_have_the_form_that_clients_read() {
    let pod = Pod::start().await;
    let mut client = FtpClient::log_in(pod.ftp);
    client.send("FEAT");
    let (code, features) = client.reply();
    assert_eq!(code, 211);
    assert!(
        features.contains("\r\n MLST type*;size*;modify*;\r\n"),
        "{features}"
    );
    client.send("PWD");
    assert_eq!(client.reply().1, "257 \"/app\"\r\n");
    assert_eq!(client.say("MKD data/a\"b"), 257);
    assert_eq!(client.say("CWD data/a\"b"), 250);
    client.send("PWD");
    assert_eq!(client.reply().1, "257 \"/app/data/a\"\"b\"\r\n");
    assert_eq!(client.say("CDUP"), 250);
    client.send("MLST hello");
    let (code, facts) = client.reply();
    assert_eq!(code, 250);
    let lines: Vec<_> = facts.lines().collect();
    assert!(
        lines.len() == 3 && lines[1].starts_with(" type=file;size=5;modify="),
        "{facts}"
    );
    assert!(lines[1].ends_with("; hello"), "{facts}");
    client.send("RETR nothing");
    assert_eq!(client.reply().1, "425 say EPSV or PASV first\r\n");
    client.passive();
    client.send("RETR nothing");
    assert_eq!(client.reply().1, "550 no such file or directory\r\n");
    fs::write(pod.volume("data/inner/file"), "").unwrap();
    client.send("RMD inner");
    assert_eq!(client.reply().1, "550 directory not empty\r\n");
    let listed = String::from_utf8(client.receive("LIST hello").unwrap()).unwrap();
    assert!(
        listed.starts_with("-rw") && listed.ends_with("hello\r\n"),
        "{listed}"
    );
    assert_eq!(client.receive("NLST inner"), Ok(b"file\r\n".to_vec()));
    client.send("PASV");
    let (code, text) = client.reply();
    assert!(code == 227 && text.contains("(127,0,0,1,"), "{text}");
    // Pipelined commands are answered in order.
    client.send("NOOP\r\nTYPE E\r\nSYST");
    let codes = [client.reply().0, client.reply().0, client.reply().0];
    assert_eq!(codes, [200, 504, 215]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_can_be_aborted_and_the_connection_goes_on() {
    let pod = Pod::start().await;
    File::create(pod.volume("data/large"))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let mut client = FtpClient::log_in(pod.ftp);
    let mut data = TcpStream::connect(client.passive()).unwrap();
    assert_eq!(client.say("RETR data/large"), 150);
    // Its first bytes are on the way; nobody reads the rest.
    data.read_exact(&mut [0; 1024]).unwrap();
    let abort = b"\xff\xf4\xff\xf2ABOR\r\n";
    socket2::SockRef::from(&client.socket)
        .send_out_of_band(abort)
        .unwrap();
    assert_eq!((client.reply().0, client.reply().0), (426, 226));
    drop(data);
    // A data connection that is closed in the middle.
    let data = TcpStream::connect(client.passive()).unwrap();
    assert_eq!(client.say("RETR data/large"), 150);
    drop(data);
    assert_eq!(client.reply().0, 426);
    // A command that comes during a transfer waits for its end.
    let mut data = TcpStream::connect(client.passive()).unwrap();
    client.send("STOR data/new");
    assert_eq!(client.reply().0, 150);
    client.send("SIZE data/new");
    data.write_all(b"content").unwrap();
    drop(data);
    assert_eq!(client.reply().0, 226);
    assert_eq!(client.reply().1, "213 7\r\n");
    assert_eq!(client.receive("RETR data/new"), Ok(b"content".to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_ends_its_transfer() {
    let pod = Pod::start().await;
    File::create(pod.volume("data/large"))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let mut client = FtpClient::log_in(pod.ftp);
    let mut data = TcpStream::connect(client.passive()).unwrap();
    assert_eq!(client.say("RETR data/large"), 150);
    client.socket.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(client.is_ended());
    drop(client);
    let mut rest = Vec::new();
    let _ = data.read_to_end(&mut rest);
    assert!(rest.len() < 1 << 30, "the file did not arrive whole");
}
