//! A workstation in the test's own process, which may change its intercepts faster than a program
//! could be started for each: a session without a key, attached to the agent, that serves dials.

use std::time::Duration;

use harness::system::System;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use traffic_proto::ConnId;
use traffic_proto::agent::agent_client::AgentClient;
use traffic_proto::dialer::{self, DatagramObserver, Outgoing, Refused};
use traffic_proto::manager::manager_client::ManagerClient;
use traffic_proto::manager::{ClientInfo, DialRequest, RemainRequest, SessionInfo, TunnelMessage};
use traffic_proto::tunnel::{Message, StreamInfo, duration_from_nanos};

/// Name of its user.
pub(crate) const CLIENT: &str = "churn@box";
/// Messages held towards the agent.
const QUEUE_CAPACITY: usize = 8;
const REMAIN_INTERVAL: Duration = Duration::from_secs(3);

/// Begins a session, and serves its tunnels as long as the runtime lives.
pub(crate) async fn attach(system: &System, mut manager: ManagerClient<Channel>) -> SessionInfo {
    let client = ClientInfo {
        name: CLIENT.to_owned(),
        install_id: CLIENT.to_owned(),
        product: "telepresence".to_owned(),
        version: "v2.27.5".to_owned(),
        ..ClientInfo::default()
    };
    let session = manager.arrive_as_client(client).await.unwrap().into_inner();
    let agent = AgentClient::connect(format!("http://{}", system.agent.api()));
    let mut agent = agent.await.unwrap();
    // The session is present as long as it watches the manager too.
    let mut elsewhere = manager.watch_dial(session.clone()).await.unwrap();
    let mut dials = agent
        .watch_dial(session.clone())
        .await
        .unwrap()
        .into_inner();
    let id = session.session_id.clone();
    tokio::spawn(async move {
        while let Some(request) = dials.message().await.unwrap() {
            tokio::spawn(answer(agent.clone(), id.clone(), request));
        }
    });
    let own = session.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                dial = elsewhere.get_mut().message() => panic!("dialled by the manager: {dial:?}"),
                () = sleep(REMAIN_INTERVAL) => {}
            }
            let request = RemainRequest {
                session: Some(own.clone()),
                ..RemainRequest::default()
            };
            manager.remain(request).await.unwrap();
        }
    });
    session
}

/// Opens the tunnel that is asked for, dials, and copies.
async fn answer(mut agent: AgentClient<Channel>, session: String, request: DialRequest) {
    let conn = ConnId::parse(&request.conn_id).unwrap();
    let latency = duration_from_nanos(request.roundtrip_latency);
    let dial_timeout = duration_from_nanos(request.dial_timeout);
    let (tx, rx) = mpsc::channel(QUEUE_CAPACITY);
    let info = StreamInfo::new(conn, session, latency, dial_timeout);
    let first = TunnelMessage {
        payload: Message::StreamInfo(info).encode(),
    };
    tx.send(first).await.unwrap();
    let opened = agent.tunnel(ReceiverStream::new(rx)).await;
    // A caller may have left meanwhile.
    let Ok(opened) = opened else { return };
    let mut incoming = opened.into_inner();
    let Ok(Some(_stream_ok)) = incoming.message().await else {
        return;
    };
    let outgoing = Outgoing::caller(tx).announcing_life();
    let _ = dialer::serve(conn, dial_timeout, incoming, outgoing, &Silent).await;
}

/// Observer that ignores datagrams.
struct Silent;

impl DatagramObserver for Silent {
    fn refused(&self, _fate: Refused) {}

    fn answered(&self) {}
}
