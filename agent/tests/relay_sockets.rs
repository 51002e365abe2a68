//! The copy loop between real sockets: half-close, resets, bulk with and without splice, stalled
//! readers.

#![allow(clippy::unwrap_used)]

use std::io;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use traffic_agent::io::buffers::Buf;
use traffic_agent::io::conn::{Conn, Io};
use traffic_agent::io::relay::{PendingBytes, Relayed, Side};
use traffic_agent::io::{relay, splice};
use traffic_agent::telemetry::metrics::PortMetrics;

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (a, b) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    let (a, b) = (a.unwrap(), b.unwrap().0);
    a.set_nodelay(true).unwrap();
    b.set_nodelay(true).unwrap();
    (a, b)
}

/// A socket that the relay cannot splice, as TLS is to it.
struct Plain(TcpStream);

impl tokio::io::AsyncRead for Plain {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Plain {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl Io for Plain {
    fn abort(&mut self) {
        self.0.abort();
    }
}

struct Relay {
    caller: TcpStream,
    app: TcpStream,
    task: JoinHandle<(Relayed, u64)>,
}

async fn relay(first: PendingBytes, spliced: bool) -> Relay {
    let ((caller, down), (up, app)) = (pair().await, pair().await);
    let (mut down, mut up) = if spliced {
        (Conn::Tcp(down), Conn::Tcp(up))
    } else {
        (
            Conn::Other(Box::new(Plain(down))),
            Conn::Other(Box::new(Plain(up))),
        )
    };
    let task = tokio::spawn(async move {
        let metrics = PortMetrics::default();
        let relayed = relay::both(&mut down, &mut up, first, &metrics).await;
        assert_eq!(
            (metrics.bytes_in.get(), metrics.bytes_out.get()),
            (relayed.bytes_in, relayed.bytes_out)
        );
        (relayed, metrics.bytes_spliced.get())
    });
    Relay { caller, app, task }
}

async fn ended(task: JoinHandle<(Relayed, u64)>) -> (Relayed, u64) {
    timeout(WAIT_TIMEOUT, task)
        .await
        .expect("the relay ends")
        .unwrap()
}

async fn rest_of(socket: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    timeout(WAIT_TIMEOUT, socket.read_to_end(&mut all))
        .await
        .expect("the stream ends")?;
    Ok(all)
}

async fn error_of(socket: &mut TcpStream) -> io::ErrorKind {
    rest_of(socket)
        .await
        .expect_err("a reset, not an orderly end")
        .kind()
}

fn buf_of(bytes: &'static [u8]) -> Buf {
    let mut buf = Buf::default();
    let mut from = bytes;
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(buf.poll_fill(&mut from, &mut cx).is_ready());
    buf
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut out = Vec::with_capacity(len);
    while out.len() < len {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

#[tokio::test]
async fn a_caller_that_half_closes_still_gets_the_whole_answer() {
    let mut r = relay(PendingBytes::default(), true).await;
    r.caller.write_all(b"question").await.unwrap();
    r.caller.shutdown().await.unwrap();
    assert_eq!(rest_of(&mut r.app).await.unwrap(), b"question");
    r.app.write_all(b"answer").await.unwrap();
    drop(r.app);
    assert_eq!(rest_of(&mut r.caller).await.unwrap(), b"answer");
    let (relayed, _) = ended(r.task).await;
    assert!(relayed.broken.is_none());
    assert_eq!((relayed.bytes_in, relayed.bytes_out), (8, 6));
}

#[tokio::test]
async fn an_app_that_half_closes_still_hears_the_caller() {
    let mut r = relay(PendingBytes::default(), true).await;
    r.app.write_all(b"bye").await.unwrap();
    r.app.shutdown().await.unwrap();
    assert_eq!(rest_of(&mut r.caller).await.unwrap(), b"bye");
    r.caller.write_all(b"not yet").await.unwrap();
    drop(r.caller);
    assert_eq!(rest_of(&mut r.app).await.unwrap(), b"not yet");
    assert!(ended(r.task).await.0.broken.is_none());
}

#[tokio::test]
async fn bytes_read_before_the_relay_come_first_in_both_directions() {
    let first = PendingBytes {
        from_down: buf_of(b"down, "),
        from_up: buf_of(b"up, "),
    };
    let mut r = relay(first, true).await;
    r.caller.write_all(b"then").await.unwrap();
    r.app.write_all(b"more").await.unwrap();
    r.caller.shutdown().await.unwrap();
    r.app.shutdown().await.unwrap();
    assert_eq!(rest_of(&mut r.app).await.unwrap(), b"down, then");
    assert_eq!(rest_of(&mut r.caller).await.unwrap(), b"up, more");
    ended(r.task).await;
}

#[tokio::test]
async fn a_caller_s_reset_reaches_the_app_as_a_reset() {
    let mut r = relay(PendingBytes::default(), true).await;
    r.caller.write_all(b"half a").await.unwrap();
    let mut six = [0; 6];
    r.app.read_exact(&mut six).await.unwrap();
    r.caller.abort();
    drop(r.caller);
    assert_eq!(error_of(&mut r.app).await, io::ErrorKind::ConnectionReset);
    assert_eq!(ended(r.task).await.0.broken.unwrap().0, Side::Down);
}

#[tokio::test]
async fn an_app_s_reset_reaches_the_caller_as_a_reset() {
    let mut r = relay(PendingBytes::default(), true).await;
    r.app.write_all(b"half an answer").await.unwrap();
    let mut seen = [0; 14];
    r.caller.read_exact(&mut seen).await.unwrap();
    r.app.abort();
    drop(r.app);
    assert_eq!(
        error_of(&mut r.caller).await,
        io::ErrorKind::ConnectionReset
    );
    assert_eq!(ended(r.task).await.0.broken.unwrap().0, Side::Up);
}

#[tokio::test]
async fn an_app_that_stops_listening_resets_a_caller_that_keeps_sending() {
    let mut r = relay(PendingBytes::default(), true).await;
    r.caller.write_all(b"unread").await.unwrap();
    r.app.peek(&mut [0; 1]).await.unwrap();
    drop(r.app); // with unread bytes: the kernel resets
    let sent = timeout(WAIT_TIMEOUT, async {
        loop {
            if let Err(e) = r.caller.write_all(&[0; 1024]).await {
                return e.kind();
            }
            tokio::task::yield_now().await;
        }
    });
    let kind = sent.await.expect("the caller's writes fail");
    assert!(
        matches!(
            kind,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        ),
        "{kind:?}"
    );
    assert_eq!(ended(r.task).await.0.broken.unwrap().0, Side::Up);
}

#[tokio::test]
async fn an_app_that_resets_amid_bulk_resets_the_caller_behind_what_it_had_said() {
    for _ in 0..200 {
        let mut r = relay(PendingBytes::default(), true).await;
        let bulk = vec![7; 4 << 20];
        let (mut from_relay, mut to_relay) = r.caller.split();
        let sending = async {
            loop {
                if let Err(error) = to_relay.write_all(&bulk).await {
                    return error.kind();
                }
            }
        };
        let answering = async {
            let mut some = vec![0; 1 << 20];
            r.app.read_exact(&mut some).await.unwrap();
            r.app.write_all(b"no more").await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            drop(r.app);
        };
        let listening = async {
            let mut said = [0; 7];
            from_relay.read_exact(&mut said).await.unwrap();
            assert_eq!(&said, b"no more");
            from_relay.read(&mut said).await.map_err(|e| e.kind())
        };
        let (sent, _, heard) = timeout(WAIT_TIMEOUT, async {
            tokio::join!(sending, answering, listening)
        })
        .await
        .expect("an end");
        // The kernel tells of a reset once, whoever asks first.
        let reset = io::ErrorKind::ConnectionReset;
        assert!(sent == reset || heard == Err(reset), "{sent:?} {heard:?}");
        assert_eq!(ended(r.task).await.0.broken.unwrap().0, Side::Up);
    }
}

async fn bulk_both_ways(spliced: bool) -> u64 {
    const LEN: usize = 64 << 20;
    let r = relay(PendingBytes::default(), spliced).await;
    let (up, down) = (pattern(LEN, 1), pattern(LEN, 2));
    let run = |socket: TcpStream, send: Vec<u8>, want: Vec<u8>| async move {
        let (mut read, mut write) = socket.into_split();
        let sender = tokio::spawn(async move { write.write_all(&send).await });
        let mut seen = vec![0; LEN];
        read.read_exact(&mut seen).await.unwrap();
        assert!(seen == want, "the bytes arrive unchanged and in order");
        sender.await.unwrap().unwrap();
        assert_eq!(read.read(&mut [0; 1]).await.unwrap(), 0);
    };
    let both = async {
        tokio::join!(
            run(r.caller, up.clone(), down.clone()),
            run(r.app, down, up)
        );
    };
    timeout(2 * WAIT_TIMEOUT, both).await.expect("in time");
    let (relayed, spliced) = ended(r.task).await;
    assert_eq!(
        (relayed.bytes_in, relayed.bytes_out),
        (LEN as u64, LEN as u64)
    );
    spliced
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_between_sockets_is_spliced_both_ways_and_unchanged() {
    let spliced = bulk_both_ways(true).await;
    assert!(spliced > 100 << 20, "nearly all of 128 MiB, not {spliced}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_that_cannot_be_spliced_is_copied_unchanged() {
    assert_eq!(bulk_both_ways(false).await, 0);
}

#[tokio::test]
async fn small_messages_are_never_spliced() {
    let mut r = relay(PendingBytes::default(), true).await;
    let mut back = [0; 100];
    for _ in 0..1000 {
        r.caller.write_all(&[7; 100]).await.unwrap();
        r.app.read_exact(&mut back).await.unwrap();
        r.app.write_all(&back).await.unwrap();
        r.caller.read_exact(&mut back).await.unwrap();
    }
    drop((r.caller, r.app));
    assert_eq!(ended(r.task).await.1, 0);
}

/// What a stalled reader lets through before its sender is stopped: the kernel's socket buffers and
/// one hop.
async fn accepted_by_a_stalled_relay(spliced: bool) -> u64 {
    let ((caller, down), (up, app)) = (pair().await, pair().await);
    for socket in [&caller, &down, &up, &app] {
        SockRef::from(socket)
            .set_send_buffer_size(64 << 10)
            .unwrap();
        SockRef::from(socket)
            .set_recv_buffer_size(64 << 10)
            .unwrap();
    }
    let (mut down, mut up) = if spliced {
        (Conn::Tcp(down), Conn::Tcp(up))
    } else {
        (
            Conn::Other(Box::new(Plain(down))),
            Conn::Other(Box::new(Plain(up))),
        )
    };
    let task = tokio::spawn(async move {
        relay::both(
            &mut down,
            &mut up,
            PendingBytes::default(),
            &PortMetrics::default(),
        )
        .await;
    });
    let (mut caller_reads, mut caller_writes) = caller.into_split();
    let (mut app_reads, mut app_writes) = app.into_split();
    let chunk = vec![1; 64 << 10];
    let mut accepted = 0;
    while let Ok(n) = timeout(Duration::from_millis(500), caller_writes.write(&chunk)).await {
        accepted += n.unwrap() as u64;
        assert!(accepted < 64 << 20, "the sender is slowed");
    }
    // The other direction keeps its pace meanwhile.
    let mut back = vec![0; 64 << 10];
    for _ in 0..100 {
        app_writes.write_all(&chunk).await.unwrap();
        timeout(WAIT_TIMEOUT, caller_reads.read_exact(&mut back))
            .await
            .expect("not held up")
            .unwrap();
    }
    // And nothing of what was accepted is lost once the reader wakes up.
    drop(caller_writes);
    let mut all = Vec::new();
    timeout(WAIT_TIMEOUT, app_reads.read_to_end(&mut all))
        .await
        .expect("delivered")
        .unwrap();
    assert_eq!(all.len() as u64, accepted);
    task.abort();
    accepted
}

#[tokio::test]
async fn a_stalled_reader_stops_its_sender_after_a_bounded_amount_and_nobody_else() {
    let (spliced, copied) = tokio::join!(
        accepted_by_a_stalled_relay(true),
        accepted_by_a_stalled_relay(false)
    );
    assert!(spliced < 4 << 20, "{spliced}");
    assert!(copied < 4 << 20, "{copied}");
}

#[tokio::test]
async fn splice_exactly_moves_a_body_and_not_a_byte_more() {
    let ((mut caller, down), (up, mut app)) = (pair().await, pair().await);
    let body = pattern(3 << 20, 3);
    let sent = [&body[..], b"next head"].concat();
    let sender = tokio::spawn(async move {
        caller.write_all(&sent).await.unwrap();
        caller
    });
    let mut seen = vec![0; body.len()];
    let (moved, read) = tokio::join!(
        splice::exactly(&down, &up, body.len() as u64),
        app.read_exact(&mut seen)
    );
    moved.unwrap();
    read.unwrap();
    assert!(seen == body);
    drop(sender.await.unwrap());
    let mut down = down;
    assert_eq!(rest_of(&mut down).await.unwrap(), b"next head");
}

#[tokio::test]
async fn splice_exactly_says_how_far_a_source_came_that_ended_early() {
    let ((mut caller, down), (up, mut app)) = (pair().await, pair().await);
    caller.write_all(b"only this").await.unwrap();
    drop(caller);
    let short = splice::exactly(&down, &up, 100).await.unwrap_err();
    assert!(matches!(short, splice::Short::Ended(9)), "{short:?}");
    drop(up);
    assert_eq!(rest_of(&mut app).await.unwrap(), b"only this");
}
