//! The ways out of the exported volumes that FTP has; none may succeed.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::fixture::Pod;
use crate::ftp_client::FtpClient;

/// Names in `data` that lead, or seem to lead, out of the volumes.
fn outside_names(pod: &Pod) -> Vec<String> {
    let outside = pod.outside();
    let folder = outside.parent().unwrap().to_owned();
    for (name, target) in [
        ("absolute", outside.clone()),
        ("absolute_folder", folder),
        ("relative", "../../../outside".into()),
        ("relative_folder", "../../..".into()),
        ("proc", "/proc/self/environ".into()),
        ("magic", "/proc/self/root/etc/passwd".into()),
        ("top", "/".into()),
    ] {
        symlink(target, pod.volume(&format!("data/{name}"))).unwrap();
    }
    [
        "/../etc/passwd",
        "/../outside",
        "../../outside",
        "/app/../../outside",
        "/app/data/../../../../../../../etc/passwd",
        "/tel_app_exports/app/data/hello",
        "/other/data/hello",
        "data/absolute",
        "data/absolute_folder/outside",
        "data/relative",
        "data/relative_folder/outside",
        "data/proc",
        "data/magic",
        "data/top/etc/passwd",
        "data/top/../outside",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([format!("data/top{}", outside.display())])
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_path_leads_out_of_the_volumes_by_any_command() {
    let pod = Pod::start().await;
    let names = outside_names(&pod);
    let mut client = FtpClient::log_in(pod.ftp);
    for name in &names {
        let read = client.receive(&format!("RETR {name}"));
        assert_eq!(read, Err(550), "RETR {name}");
        for verb in ["SIZE", "MDTM", "MLST", "CWD"] {
            assert_eq!(client.say(&format!("{verb} {name}")), 550, "{verb} {name}");
        }
        for verb in ["MLSD", "LIST", "NLST"] {
            let listed = client.receive(&format!("{verb} {name}"));
            assert_eq!(listed, Err(550), "{verb} {name}");
        }
    }
    // These lead to a place in the volumes: `..` ends at their root, and `/` is their root.
    let inside = [
        ("data/relative_folder/outside", "outside"),
        ("data/top/../outside", "data/outside"),
        ("data/top/etc/passwd", "etc/passwd"),
    ];
    let leads_inside = |name: &str| inside.iter().any(|(it, _)| *it == name);
    let in_data = names.iter().filter(|name| name.starts_with("data/"));
    for name in in_data.filter(|name| !leads_inside(name)) {
        for verb in ["STOR", "APPE"] {
            let code = client.store(&format!("{verb} {name}"), b"changed");
            assert_eq!(code, 550, "{verb} {name}");
        }
    }
    for (name, place) in inside {
        assert_eq!(client.store(&format!("STOR {name}"), b"inside"), 226);
        assert_eq!(fs::read_to_string(pod.volume(place)).unwrap(), "inside");
    }
    // What lies behind a link cannot be made, moved or removed.
    for name in ["data/absolute_folder/new", "/new", "../../new"] {
        assert_eq!(client.say(&format!("MKD {name}")), 550, "MKD {name}");
        assert_eq!(
            client.store(&format!("STOR {name}"), b"x"),
            550,
            "STOR {name}"
        );
        assert_eq!(client.say("RNFR data/hello"), 350);
        assert_eq!(client.say(&format!("RNTO {name}")), 550, "RNTO {name}");
    }
    for name in ["data/absolute_folder/outside", "/app", "/"] {
        for verb in ["DELE", "RMD"] {
            assert_eq!(client.say(&format!("{verb} {name}")), 550, "{verb} {name}");
        }
        if client.say(&format!("RNFR {name}")) == 350 {
            assert_eq!(client.say("RNTO data/taken"), 550, "RNFR {name}");
        }
    }
    assert_eq!(
        client.receive("RETR data/top/data/hello"),
        Ok(b"hello".to_vec())
    );
    assert_eq!(
        fs::read_to_string(pod.outside()).unwrap(),
        "secret of the agent"
    );
    assert_eq!(
        fs::read_dir(pod.outside().parent().unwrap())
            .unwrap()
            .count(),
        3
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_of_mounts_hold_behind_links_too() {
    let pod = Pod::start().await;
    symlink("/etc/ro", pod.volume("data/to_ro")).unwrap();
    symlink("/etc/ro/fixed", pod.volume("data/to_fixed")).unwrap();
    symlink("/etc/ro/fresh", pod.volume("data/to_fresh")).unwrap();
    symlink("/tmp/private", pod.volume("data/to_private")).unwrap();
    let mut client = FtpClient::log_in(pod.ftp);
    for path in ["etc/ro/fixed", "data/to_ro/fixed", "data/to_fixed"] {
        assert_eq!(
            client.receive(&format!("RETR {path}")),
            Ok(b"fixed".to_vec())
        );
        for verb in ["STOR", "APPE"] {
            assert_eq!(
                client.store(&format!("{verb} {path}"), b"x"),
                550,
                "{verb} {path}"
            );
        }
        assert_eq!(client.say("REST 2"), 350);
        assert_eq!(
            client.store(&format!("STOR {path}"), b""),
            550,
            "REST, STOR {path}"
        );
    }
    for path in ["etc/ro/new", "data/to_ro/new", "data/to_fresh"] {
        assert_eq!(
            client.store(&format!("STOR {path}"), b"x"),
            550,
            "STOR {path}"
        );
    }
    for command in [
        "MKD etc/ro/new",
        "DELE data/to_ro/fixed",
        "DELE etc/ro/fixed",
        "RMD etc/ro",
    ] {
        assert_eq!(client.say(command), 550, "{command}");
    }
    for (from, to) in [("etc/ro/fixed", "data/x"), ("data/hello", "etc/ro/x")] {
        assert_eq!(client.say(&format!("RNFR {from}")), 350);
        assert_eq!(client.say(&format!("RNTO {to}")), 550, "{from} to {to}");
    }
    for path in ["tmp/private", "data/to_private"] {
        assert_eq!(client.receive(&format!("RETR {path}")), Err(550), "{path}");
        assert_eq!(client.say(&format!("SIZE {path}")), 550, "{path}");
    }
    assert_eq!(client.receive("NLST etc/ro"), Ok(b"fixed\r\n".to_vec()));
    assert_eq!(
        fs::read_to_string(pod.volume("etc/ro/fixed")).unwrap(),
        "fixed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_is_neither_read_nor_written_and_blocks_nothing() {
    let pod = Pod::start().await;
    pod.make_special_files();
    let mut client = FtpClient::log_in(pod.ftp);
    for name in ["fifo", "zero", "socket", "inner"] {
        assert_eq!(
            client.receive(&format!("RETR data/{name}")),
            Err(550),
            "{name}"
        );
        assert_eq!(
            client.store(&format!("STOR data/{name}"), b"x"),
            550,
            "{name}"
        );
        assert_eq!(client.say(&format!("SIZE data/{name}")), 550, "{name}");
    }
    // A name that would read as two entries is not told.
    fs::write(
        pod.volume("data/inner/a\r\ntype=file;size=1;modify=1; b"),
        "",
    )
    .unwrap();
    assert_eq!(client.receive("MLSD data/inner"), Ok(Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_changes_under_the_command_never_leads_out() {
    let pod = Pod::start().await;
    let (link, fresh) = (pod.volume("data/race"), pod.volume("data/race.new"));
    let outside = pod.outside().parent().unwrap().to_owned();
    fs::write(pod.volume("data/inner/outside"), "inside").unwrap();
    symlink("inner", &link).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let swapper = std::thread::spawn(move || {
        for target in ["inner".as_ref(), outside.as_path()].iter().cycle() {
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            symlink(target, &fresh).unwrap();
            fs::rename(&fresh, &link).unwrap();
            std::thread::yield_now();
        }
    });
    let mut client = FtpClient::log_in(pod.ftp);
    let mut served = 0;
    for _ in 0..60 {
        match client.receive("RETR data/race/outside") {
            Ok(content) => {
                assert_eq!(content, b"inside");
                served += 1;
            }
            Err(code) => assert_eq!(code, 550),
        }
        client.store("STOR data/race/outside", b"inside");
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(served > 0, "the link led inside at times");
    assert_eq!(
        fs::read_to_string(pod.outside()).unwrap(),
        "secret of the agent"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_calls_no_host_that_a_client_names_and_runs_no_program() {
    let pod = Pod::start().await;
    let third = TcpListener::bind("127.0.0.3:0").unwrap();
    third.set_nonblocking(true).unwrap();
    let port = third.local_addr().unwrap().port();
    let [high, low] = port.to_be_bytes();
    let mut client = FtpClient::log_in(pod.ftp);
    for (command, code) in [
        (format!("PORT 127,0,0,3,{high},{low}"), 502),
        (format!("EPRT |1|127.0.0.3|{port}|"), 502),
        (format!("LPRT 4,4,127,0,0,3,2,{high},{low}"), 502),
        (format!("EPSV |1|127.0.0.3|{port}|"), 522),
        ("EPSV 2".to_owned(), 522),
        ("EPSV 99999999999999999999".to_owned(), 522),
        ("SITE EXEC id".to_owned(), 502),
        ("SITE CHMOD 4777 data/hello".to_owned(), 502),
        ("SITE CPFR /etc/passwd".to_owned(), 502),
        ("SITE SYMLINK /etc/passwd data/link".to_owned(), 502),
        ("AUTH TLS".to_owned(), 502),
        ("RETR data/hello".to_owned(), 425),
        ("STOR data/hello".to_owned(), 425),
        ("MLSD data".to_owned(), 425),
    ] {
        assert_eq!(client.say(&command), code, "{command}");
    }
    assert_eq!(
        third.accept().unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock
    );
    assert_eq!(
        fs::read_to_string(pod.volume("data/hello")).unwrap(),
        "hello"
    );
    assert_eq!(client.say("EPSV ALL"), 200);
    assert_eq!(client.say("PASV"), 503);
    assert_eq!(client.receive("RETR data/hello"), Ok(b"hello".to_vec()));
}

/// Connects from an address of this machine that is not the client's.
fn connect_from_elsewhere(address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let elsewhere: SocketAddr = ([127, 0, 0, 2], 0).into();
    socket.bind(&elsewhere.into()).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_connection_of_another_host_gets_nothing() {
    let pod = Pod::start().await;
    let mut client = FtpClient::log_in(pod.ftp);
    let address = client.passive();
    let mut thief = connect_from_elsewhere(address);
    client.send("RETR data/hello");
    assert_eq!(client.reply().0, 150);
    let mut stolen = Vec::new();
    // An end or a reset: both are nothing.
    let _ = thief.read_to_end(&mut stolen);
    assert_eq!(stolen, b"");
    let mut data = TcpStream::connect(address).unwrap();
    let mut read = String::new();
    data.read_to_string(&mut read).unwrap();
    assert_eq!((read.as_str(), client.reply().0), ("hello", 226));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_served_before_the_login() {
    let pod = Pod::start().await;
    let mut client = FtpClient::connect(pod.ftp);
    for command in [
        "PWD",
        "EPSV",
        "PASV",
        "RETR app/data/hello",
        "MLST app",
        "DELE app/data/hello",
    ] {
        assert_eq!(client.say(command), 530, "{command}");
    }
    assert_eq!(client.say("PASS x"), 503);
    assert_eq!(client.say("USER root"), 530);
    assert_eq!(client.say("PASS x"), 503);
    assert_eq!(client.say("USER anonymous"), 331);
    assert_eq!(client.say("PWD"), 530);
    assert_eq!(client.say("PASS x"), 230);
    assert_eq!(client.say("PWD"), 257);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_connections_are_bounded() {
    let pod = Pod::start().await;
    let mut long = FtpClient::log_in(pod.ftp);
    let _ = long.socket.write_all(&vec![b'a'; 9_000]);
    assert_eq!(long.reply().0, 500);
    let mut clients: Vec<_> = (0..64).map(|_| FtpClient::log_in(pod.ftp)).collect();
    let mut waiting = TcpStream::connect(pod.ftp).unwrap();
    waiting
        .set_read_timeout(Some(std::time::Duration::from_millis(200)))
        .unwrap();
    assert!(waiting.read(&mut [0; 64]).is_err(), "the 65th waits");
    let mut leaving = clients.pop().unwrap();
    assert_eq!(leaving.say("QUIT"), 221);
    assert!(leaving.is_ended());
    waiting.set_read_timeout(None).unwrap();
    assert_ne!(waiting.read(&mut [0; 64]).unwrap(), 0, "a place is free");
    // Every port that is asked for closes the one before.
    let client = &mut clients[0];
    let first = client.passive();
    let second = client.passive();
    assert!(TcpStream::connect(first).is_err() && TcpStream::connect(second).is_ok());
}
