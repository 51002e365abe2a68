//! Memory of connections that rest, to the byte: everything that the port's worker holds for one
//! more of them. A program of its own, because it counts all that is allocated in it.

#![allow(clippy::unwrap_used, missing_docs)]

use agent_testkit::port::PortFixture;
use agent_testkit::{eventually, soon};
use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::net::{TcpListener, TcpStream};

/// Connections that are there before, and those that are measured.
const BEFORE: usize = 20;
const MEASURED: usize = 100;

/// Bytes for each connection of HTTP/2 that has served requests and rests.
const MAX_HTTP2: usize = 8_000;

mod allocator {
    //! Counts what is allocated by threads that are not excepted. Unsafe, because an allocator is;
    //! it hands everything on to the system's.
    #![allow(unsafe_code)]

    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Counting;

    #[global_allocator]
    static COUNTING: Counting = Counting;
    static HELD: AtomicUsize = AtomicUsize::new(0);

    thread_local! {
        static EXCEPTED: Cell<bool> = const { Cell::new(false) };
    }

    /// Lets what this thread allocates and frees be left out.
    pub(super) fn except_this_thread() {
        EXCEPTED.set(true);
    }

    /// Bytes that are held.
    pub(super) fn held() -> usize {
        HELD.load(Ordering::SeqCst)
    }

    /// With what the C library adds to a block.
    fn cost(layout: Layout) -> usize {
        let counts = !EXCEPTED.try_with(Cell::get).unwrap_or(false);
        if counts {
            (layout.size() + 8).max(32).next_multiple_of(16)
        } else {
            0
        }
    }

    // SAFETY: every call goes to the system's allocator as it came.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            HELD.fetch_add(cost(layout), Ordering::SeqCst);
            // SAFETY: as asked of this one.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
            HELD.fetch_sub(cost(layout), Ordering::SeqCst);
            // SAFETY: it came from there.
            unsafe { System.dealloc(at, layout) }
        }
    }
}

/// A server that answers with some fields, as they are common.
async fn app() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((_request, mut respond))) = server.accept().await {
                    let answer = http::Response::builder()
                        .header("content-type", "application/json; charset=utf-8")
                        .header("date", "Sat, 28 Nov 2026 22:53:53 GMT")
                        .header("server", "app/1.2.3")
                        .header("x-request-id", "6b1f0c5e-2d6e-4a1c-9a61-0d1c7f1d2f11");
                    let mut body = respond
                        .send_response(answer.body(()).unwrap(), false)
                        .unwrap();
                    body.send_data(Bytes::from_static(b"an answer"), true)
                        .unwrap();
                }
            });
        }
    });
    address
}

/// A connection that has served some requests.
async fn used(fixture: &PortFixture) -> SendRequest<Bytes> {
    let socket = TcpStream::connect(fixture.addr).await.unwrap();
    let (send, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    for path in ["/api/v1/users/17", "/api/v1/orders?page=2", "/"] {
        let request = Request::get(format!("http://app.example{path}"))
            .header(
                "user-agent",
                "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101",
            )
            .header("accept", "application/json")
            .header("accept-encoding", "gzip, deflate, br")
            .header(
                "authorization",
                "Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.XmNK3",
            )
            .header("x-dev", "b");
        let mut ready = send.clone().ready().await.unwrap();
        let (response, _) = ready.send_request(request.body(()).unwrap(), true).unwrap();
        let mut body = soon(response).await.unwrap().into_body();
        while let Some(data) = soon(body.data()).await {
            body.flow_control()
                .release_capacity(data.unwrap().len())
                .unwrap();
        }
    }
    send
}

#[tokio::test]
async fn a_connection_of_http2_that_rests_holds_little() {
    allocator::except_this_thread();
    let app = app().await;
    for (how, rule) in [("no rule", false), ("a rule", true)] {
        let fixture = PortFixture::start(app);
        if rule {
            fixture.intercept();
        }
        let mut held = Vec::new();
        for _ in 0..BEFORE {
            held.push(used(&fixture).await);
        }
        let before = allocator::held();
        for _ in 0..MEASURED {
            held.push(used(&fixture).await);
        }
        let each = (allocator::held() - before) / MEASURED;
        println!("{how}: {each} bytes for each connection");
        assert!(each <= MAX_HTTP2, "{how}: {each} bytes");
        drop(held);
        let metrics = &fixture.port.metrics;
        eventually("the end of all connections", || metrics.active.get() == 0).await;
    }
}
