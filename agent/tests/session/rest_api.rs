//! The local REST API in front of the current intercepts.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use traffic_proto::manager::InterceptDispositionType as Disposition;

use crate::fake::{Fake, intercept};
use crate::pod::{Pod, free_ports};

async fn ask(port: u16, request: &str) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (head, body) = request.split_once("\n\n").unwrap_or((request, ""));
    let head = head.replace('\n', "\r\n");
    let length = body.len();
    let request =
        format!("{head}\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_learns_which_messages_an_intercept_takes() {
    let anywhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let (fake, _dialled) = Fake::start(anywhere).await;
    let [api] = free_ports();
    let pod = Pod::start(fake.address, &format!("apiPort: {api}")).await;
    let mine = "GET /consume-here?path=/ HTTP/1.1\nX-Dev: a";
    assert_eq!(ask(api, "GET /healthz HTTP/1.1").await, "");
    assert_eq!(ask(api, mine).await, "true\n");

    let mut info = intercept(
        "i",
        Disposition::Waiting,
        pod.app_port,
        Some(("x-dev", "a")),
    );
    if let Some(spec) = &mut info.spec {
        spec.metadata.insert("team".to_owned(), "blue".to_owned());
    }
    fake.show(std::slice::from_ref(&info));
    let review = fake
        .until("a review", |s| !s.reviews.is_empty())
        .await
        .reviews[0]
        .clone();
    assert_eq!(review.metadata["team"], "blue");
    let variable = |name: &str| review.environment[name].clone();
    assert_eq!(variable("TELEPRESENCE_API_PORT"), api.to_string());
    assert_eq!(variable("TELEPRESENCE_API_HOST"), "localhost");
    assert_eq!(ask(api, mine).await, "true\n", "not before it is active");

    info.set_disposition(Disposition::Active);
    fake.show(&[info]);
    pod.until_answered_by("x-dev: a\r\n", "workstation").await;
    let other = "GET /consume-here HTTP/1.1\nx-dev: b";
    let caller = "x-telepresence-caller-intercept-id";
    let form = "content-type: application/x-www-form-urlencoded";
    let port = pod.app_port;
    for (request, answer) in [
        (mine.to_owned(), "false\n"),
        (other.to_owned(), "true\n"),
        (format!("{mine}\n{caller}: client-1:i"), "false\n"),
        (format!("{mine}\n{caller}: client-2:j"), "true\n"),
        (
            format!("POST /consume-here HTTP/1.1\nx-dev: a\n{form}\n\ncontainerPort={port}"),
            "false\n",
        ),
        (
            "GET /consume-here?containerPort=1 HTTP/1.1\nx-dev: a".to_owned(),
            "true\n",
        ),
        (
            "GET /intercept-info HTTP/1.1\nx-dev: a".to_owned(),
            "{\"intercepted\":true,\"clientSide\":false,\"metadata\":{\"team\":\"blue\"}}\n",
        ),
        (
            "GET /intercept-info HTTP/1.1".to_owned(),
            "{\"intercepted\":false,\"clientSide\":false}\n",
        ),
    ] {
        assert_eq!(ask(api, &request).await, answer, "{request}");
    }
    let refused = ask(api, "GET /consume-here?containerPort=http HTTP/1.1").await;
    assert!(
        refused.starts_with("{\"error\":\"containerPort: "),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_costs_the_pod_no_more_than_the_api() {
    let anywhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let (fake, _dialled) = Fake::start(anywhere).await;
    let taken = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let api = taken.local_addr().unwrap().port();
    let pod = Pod::start(fake.address, &format!("apiPort: {api}")).await;
    pod.until("the port to be named", |pod| {
        !pod.lines(&format!("apiPort {api}: ")).is_empty()
    })
    .await;
    assert_eq!(pod.ask("").await.unwrap(), "app");
}
