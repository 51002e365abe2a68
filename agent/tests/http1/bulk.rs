//! Long bodies, which the kernel moves past the agent, and what stands at their edges.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use agent_testkit::WAIT_TIMEOUT;
use agent_testkit::app::{Expect, ScriptedApp};
use agent_testkit::port::PortFixture;

const MIB: usize = 1 << 20;

fn content(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7 + i * seed) as u8).collect()
}

/// A message in one of the two framings; chunks of 300 KiB, then small ones.
fn message(start: &str, body: &[u8], chunked: bool) -> Vec<u8> {
    if !chunked {
        let mut message = format!(
            "{start}\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        message.extend_from_slice(body);
        return message;
    }
    let mut message =
        format!("{start}\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    let (long, short) = body.split_at(body.len() - 1000);
    for chunk in long.chunks(300 * 1024).chain(short.chunks(100)) {
        message.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        message.extend_from_slice(chunk);
        message.extend_from_slice(b"\r\n");
    }
    message.extend_from_slice(b"0\r\nchecksum: none\r\n\r\n");
    message
}

#[tokio::test]
async fn long_bodies_pass_unchanged_one_after_the_other_and_mostly_past_the_agent() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    let mut caller = fixture.connect().await;
    let mut served = None;
    for (n, (up, down)) in [(false, false), (true, true), (false, true), (true, false)]
        .into_iter()
        .enumerate()
    {
        let request = message("POST /upload HTTP/1.1", &content(3 * MIB + n, 3), up);
        let answer = message("HTTP/1.1 200 OK", &content(4 * MIB + n, 5), down);
        let (mut seen_by_app, mut seen_by_caller) = (vec![0; request.len()], vec![0; answer.len()]);
        let serving = async {
            let socket = match &mut served {
                Some(socket) => socket,
                None => served.insert(app.accept().await),
            };
            socket.read_exact(&mut seen_by_app).await.unwrap();
            socket.write_all(&answer).await.unwrap();
        };
        let calling = async {
            caller.write_all(&request).await.unwrap();
            caller.read_exact(&mut seen_by_caller).await.unwrap();
        };
        timeout(WAIT_TIMEOUT, async { tokio::join!(serving, calling) })
            .await
            .expect("the exchange got stuck");
        assert!(
            seen_by_app == request,
            "the request was changed in round {n}"
        );
        assert!(
            seen_by_caller == answer,
            "the answer was changed in round {n}"
        );
    }
    let spliced = fixture.port.metrics.bytes_spliced.get();
    assert!(
        spliced > 14 * MIB as u64,
        "of 28 MiB only {spliced} bytes were spliced"
    );
}

#[tokio::test]
async fn nothing_is_lost_of_an_upload_that_an_answer_without_end_overtakes() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    let request = message("POST /upload HTTP/1.1", &content(16 * MIB, 3), false);
    let sent = request.clone();
    let (mut from_agent, mut to_agent) = fixture.connect().await.into_split();
    let uploading = tokio::spawn(async move { to_agent.write_all(&sent).await.map(|()| to_agent) });
    let mut socket = app.accept().await;
    let mut seen = vec![0; request.len()];
    // Until the answer has arrived the rest of the upload stands in buffers and pipes.
    socket.read_exact(&mut seen[..3 * MIB]).await.unwrap();
    socket.send("HTTP/1.1 200 OK\r\n\r\nbegun").await;
    let mut begun = vec![0; "HTTP/1.1 200 OK\r\n\r\nbegun".len()];
    timeout(WAIT_TIMEOUT, from_agent.read_exact(&mut begun))
        .await
        .expect("the answer did not arrive")
        .unwrap();
    timeout(WAIT_TIMEOUT, socket.read_exact(&mut seen[3 * MIB..]))
        .await
        .expect("the upload got stuck")
        .unwrap();
    assert!(seen == request, "the upload was changed");
    drop(socket);
    let mut rest = Vec::new();
    timeout(WAIT_TIMEOUT, from_agent.read_to_end(&mut rest))
        .await
        .expect("no end")
        .unwrap();
    assert!(rest.is_empty());
    uploading.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_the_app_says_behind_its_last_answer_reaches_the_caller_too() {
    for (connection, more) in [
        ("close", "more than announced"),
        ("close", ""),
        ("keep-alive", "\r\n"),
    ] {
        let app = ScriptedApp::listen().await;
        let fixture = PortFixture::start(app.addr());
        let mut caller = fixture.connect().await;
        caller
            .send(&format!(
                "GET / HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\n\r\n"
            ))
            .await;
        let mut socket = app.accept().await;
        socket
            .expect(&format!(
                "GET / HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\n\r\n"
            ))
            .await;
        let answer = format!(
            "HTTP/1.1 200 OK\r\nConnection: {connection}\r\nContent-Length: 2\r\n\r\nok{more}"
        );
        socket.send(&answer).await;
        drop(socket);
        caller.expect(&answer).await;
        caller.expect_end().await;
    }
}
