//! Databases behind an undeclared port, with their own clients: they have to notice nothing.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use harness::apps::App;
use harness::process::Process;
use harness::system::System;
use harness::{caller, ports};

use crate::rig::{connect, in_front_of, scale};

/// Runs a client to its end, with `input`; returns what it printed.
fn run(command: &mut Command, input: &str) -> String {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writing = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let done = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(
        done.status.success(),
        "{command:?}: {}\n{said}\n{errors}",
        done.status
    );
    writing.join().unwrap().unwrap();
    said
}

/// Runs `use_it` with no intercept, and again with one on the port that takes single requests.
fn without_and_beside_an_intercept(system: &System, use_it: impl Fn(&str)) {
    use_it("plain");
    let laptop = App::start("laptop");
    let client = system.intercept("mine", laptop.address(), &["--http-header=x-dev=a"]);
    use_it("beside");
    assert_eq!(laptop.served(), 0);
    assert!(client.terminate().success());
    assert_eq!(system.agent.stat(".fail_open.no_tunnel"), 0);
}

fn redis(name: &str) -> (Process, SocketAddr) {
    let port = ports::free();
    let mut command = Command::new("redis-server");
    command.args([
        "--port",
        &port.to_string(),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
    ]);
    let process = Process::start(name, &mut command);
    process.line("Ready to accept connections");
    (process, SocketAddr::from(([127, 0, 0, 1], port)))
}

#[test]
fn redis_notices_nothing() {
    let requests = scale("REDIS_REQUESTS", 5_000);
    let (_redis, direct) = redis("redis");
    let system = in_front_of(direct, |_| {});
    let cli = |to: SocketAddr, arguments: &[&str], input: &str| {
        let mut command = Command::new("redis-cli");
        command
            .args(["-h", "127.0.0.1", "-p", &to.port().to_string()])
            .args(arguments);
        run(&mut command, input)
    };
    let address = system.address();
    without_and_beside_an_intercept(&system, |when| {
        cli(address, &["FLUSHALL"], "");
        let commands: String = (0..requests)
            .map(|n| format!("SET {when}:{n} {}\r\n", "v".repeat(1 + n as usize % 2000)))
            .collect();
        let said = cli(address, &["--pipe"], &commands);
        assert!(
            said.contains(&format!("errors: 0, replies: {requests}")),
            "{said}"
        );
        let through = cli(address, &["DEBUG", "DIGEST"], "");
        assert_eq!(through, cli(direct, &["DEBUG", "DIGEST"], ""));
        let large = "x".repeat(8 << 20);
        cli(address, &["-x", "SET", "large"], &large);
        assert_eq!(cli(address, &["GET", "large"], "").len(), large.len() + 1);
        inline_commands(address);
        published_messages(address, direct);

        let mut bench = Command::new("redis-benchmark");
        bench.args([
            "-h",
            "127.0.0.1",
            "-p",
            &address.port().to_string(),
            "-n",
            &requests.to_string(),
        ]);
        bench.args([
            "-c",
            "20",
            "-q",
            "--csv",
            "-t",
            "ping_inline,ping_mbulk,set,get,lpush,lrange_100,mset",
        ]);
        let said = run(&mut bench, "");
        let lines: Vec<_> = said
            .lines()
            .filter(|line| line.starts_with('"') && !line.starts_with("\"test\""))
            .collect();
        assert_eq!(
            lines.len(),
            8,
            "one for each test, lrange's own filling included: {said}"
        );
        bench.args(["-P", "50"]);
        run(&mut bench, "");
        eprintln!(
            "redis-benchmark through the agent, {when}:\n{}",
            lines.join("\n")
        );
    });
    assert!(system.agent.stat(".opaque.not_http") > 0);
    assert_eq!(
        caller::get(system.agent.admin(), "/ready", &[])
            .unwrap()
            .status,
        200
    );
}

/// A command in plain text looks like the beginning of a request line.
fn inline_commands(address: SocketAddr) {
    for cut in [0, 1, 3, 4, 5, 9] {
        let mut stream = connect(address);
        let command = b"GET large-one\r\n";
        stream.write_all(&command[..cut]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5));
        stream.write_all(&command[cut..]).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        assert_eq!(line, "$-1\r\n");
    }
}

/// The server speaks whenever it has something to say.
fn published_messages(address: SocketAddr, direct: SocketAddr) {
    let mut subscriber = connect(address);
    subscriber.write_all(b"SUBSCRIBE news\r\n").unwrap();
    let mut lines = BufReader::new(subscriber.try_clone().unwrap())
        .lines()
        .map(Result::unwrap);
    assert!(lines.by_ref().any(|line| line == ":1"));
    let mut publisher = connect(direct);
    for number in 0..200 {
        publisher
            .write_all(format!("PUBLISH news item-{number}\r\n").as_bytes())
            .unwrap();
        assert!(lines.by_ref().any(|line| line == format!("item-{number}")));
    }
}

#[test]
#[ignore = "needs Debian's postgresql and postgresql-client, which are large; CONTRIBUTING.md has \
    the command"]
fn postgresql_notices_nothing() {
    let transactions = scale("PGBENCH_TRANSACTIONS", 200);
    let (_folder, _server, direct) = postgresql();
    let system = in_front_of(direct, |_| {});
    let address = system.address();
    let client = |program: &str, to: SocketAddr| {
        let mut command = Command::new(program);
        command
            .args([
                "-h",
                "127.0.0.1",
                "-p",
                &to.port().to_string(),
                "-U",
                "postgres",
            ])
            .env("PGDATABASE", "postgres");
        command
    };
    without_and_beside_an_intercept(&system, |when| {
        run(client("pgbench", address).args(["-i", "-s", "2", "-q"]), "");
        for mode in ["simple", "extended", "prepared"] {
            let count = transactions.to_string();
            let said = run(
                client("pgbench", address).args(["-c", "8", "-j", "2", "-t", &count, "-M", mode]),
                "",
            );
            assert!(said.contains("number of failed transactions: 0 "), "{said}");
            let rate = said
                .lines()
                .find(|line| line.starts_with("tps"))
                .unwrap_or_default();
            eprintln!("pgbench -M {mode} through the agent, {when}: {rate}");
        }
        // A password-less login asks for TLS first, which the server declines by a single byte.
        let query = "select count(*), sum(length(repeat('x', n))) from generate_series(1, 3000) n";
        assert_eq!(
            run(client("psql", address).args(["-Atc", query]), ""),
            "3000|4501500\n"
        );
        let rows: String = (0..100_000).map(|n| format!("{n}\trow {n}\n")).collect();
        run(
            client("psql", address).args([
                "-c",
                "drop table if exists t; create table t (n int, s text)",
            ]),
            "",
        );
        run(
            client("psql", address).args(["-c", "\\copy t from stdin"]),
            &rows,
        );
        assert_eq!(
            run(
                client("psql", address)
                    .args(["-Atc", "copy (select * from t order by n) to stdout"]),
                ""
            ),
            rows
        );
        let notified = "listen news; notify news, 'hello'; select 1;";
        assert!(
            run(&mut client("psql", address), notified).contains("\"news\" with payload \"hello\"")
        );
        let failed = client("psql", address)
            .args(["-c", "select 1/0"])
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&failed.stderr).contains("division by zero"));
    });
}

/// Starts a database as user `nobody`, since it refuses to run as root.
fn postgresql() -> (tempfile::TempDir, Process, SocketAddr) {
    const NOBODY: u32 = 65534;
    let version = std::fs::read_dir("/usr/lib/postgresql")
        .expect("apt-get install postgresql")
        .next()
        .unwrap()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let data = folder.path().join("data");
    let port = ports::free();
    let program = |name: &str| {
        let mut command = Command::new(version.path().join("bin").join(name));
        command
            .arg("-D")
            .arg(&data)
            .uid(NOBODY)
            .gid(NOBODY)
            .current_dir(folder.path());
        command
    };
    run(
        program("initdb").args(["-U", "postgres", "-A", "trust", "-N"]),
        "",
    );
    let mut command = program("postgres");
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-k", "", "-F"]);
    let server = Process::start("postgresql", &mut command);
    server.line("database system is ready to accept connections");
    (folder, server, SocketAddr::from(([127, 0, 0, 1], port)))
}
