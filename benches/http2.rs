//! HTTP/2 through a port: relayed frames, and streams that are routed one by one past a rule that
//! does not match. Client, agent and app share one thread, so a figure is the cost of all three.
#![allow(missing_docs)]

#[path = "support/port.rs"]
mod port;
#[path = "support/rules.rs"]
mod rules;

use std::net::SocketAddr;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::net::{TcpListener, TcpStream};
use traffic_core::routing::RouteTable;

const AT_ONCE: usize = 32;

/// An app that answers every request with 100 bytes.
async fn app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a loopback port");
    let addr = listener
        .local_addr()
        .expect("a bound listener has an address");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.expect("handshake");
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let mut body = respond
                        .send_response(http::Response::new(()), false)
                        .expect("head");
                    body.send_data(Bytes::from_static(&[b'x'; 100]), true)
                        .expect("body");
                }
            });
        }
    });
    addr
}

async fn client(routes: RouteTable) -> h2::client::SendRequest<Bytes> {
    let agent = port::serve(app().await, routes).await;
    let socket = TcpStream::connect(agent).await.expect("connect");
    socket.set_nodelay(true).expect("nodelay");
    let (client, connection) = h2::client::handshake(socket).await.expect("handshake");
    tokio::spawn(connection);
    client
}

async fn requests(client: &h2::client::SendRequest<Bytes>, n: usize) {
    let mut answers = Vec::with_capacity(n);
    for _ in 0..n {
        let mut ready = client.clone().ready().await.expect("ready");
        let request = http::Request::get("http://app.test/small")
            .header("user-agent", "bench")
            .header("accept", "*/*")
            .body(())
            .expect("a request");
        answers.push(ready.send_request(request, true).expect("sent").0);
    }
    for answer in answers {
        let mut body = answer.await.expect("an answer").into_body();
        while let Some(data) = body.data().await {
            let n = data.expect("data").len();
            body.flow_control().release_capacity(n).expect("capacity");
        }
    }
}

fn streams(c: &mut Criterion) {
    let runtime = port::runtime();
    let mut group = c.benchmark_group("http2");
    group.throughput(Throughput::Elements(AT_ONCE as u64));
    for (name, rules) in [
        ("32 requests, relayed", 0),
        ("32 requests, routed past 1 rule", 1),
    ] {
        let client = runtime.block_on(client(rules::table(rules, false)));
        group.bench_function(name, |b| {
            b.iter(|| runtime.block_on(requests(&client, AT_ONCE)))
        });
    }
}

criterion_group!(benches, streams);
criterion_main!(benches);
