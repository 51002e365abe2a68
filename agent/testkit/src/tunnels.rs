//! Tunnels to a workstation that behaves as told.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use traffic_agent::addr::Caller;
use traffic_agent::upstream::{OpenTunnel, Role, Transport, TunnelError, TunnelIo};
use traffic_core::routing::Intercept;
use traffic_proto::tunnel::Message;
use traffic_proto::tunnel::frame::Frame;

/// Behaviour of the workstation when a tunnel is opened.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// Not connected: no tunnel opens.
    Away,
    /// Dials this address and moves bytes; rejects if nothing listens there.
    Dials(SocketAddr),
    /// Answers the dial with a rejection.
    Rejects,
    /// Never answers the dial.
    Silent,
    /// Leaves the far end to the test.
    Scripted(mpsc::Sender<FarEnd>),
}

/// The workstation's end of a tunnel.
#[derive(Debug)]
pub struct FarEnd {
    /// Payloads of the agent.
    pub from_agent: mpsc::Receiver<Frame>,
    /// Payloads to the agent.
    pub to_agent: mpsc::Sender<Result<Bytes, TunnelError>>,
    /// The caller the tunnel was opened for.
    pub caller: Caller,
    /// TCP or UDP.
    pub transport: Transport,
    /// The rule that sent it here.
    pub intercept: Arc<Intercept>,
}

/// Opens tunnels to a workstation of the given behaviour.
#[derive(Debug)]
pub struct FakeTunnels {
    behaviour: Mutex<Behaviour>,
    opened: AtomicUsize,
    breaks: watch::Sender<()>,
}

impl FakeTunnels {
    /// Begins with this behaviour.
    pub fn new(behaviour: Behaviour) -> Arc<Self> {
        Arc::new(Self {
            behaviour: Mutex::new(behaviour),
            opened: AtomicUsize::new(0),
            breaks: watch::Sender::new(()),
        })
    }

    /// Tunnels to a workstation that is not connected.
    pub fn away() -> Arc<Self> {
        Self::new(Behaviour::Away)
    }

    /// Tunnels whose far ends the test receives.
    pub fn scripted() -> (Arc<Self>, mpsc::Receiver<FarEnd>) {
        let (opened_tx, opened) = mpsc::channel(4096);
        (Self::new(Behaviour::Scripted(opened_tx)), opened)
    }

    /// Changes the behaviour for tunnels opened from now on.
    pub fn becomes(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    /// Number of tunnels that were asked for.
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }

    /// Breaks every open tunnel.
    pub fn break_tunnels(&self) {
        self.breaks.send_replace(());
    }
}

impl OpenTunnel for FakeTunnels {
    fn open(
        &self,
        intercept: Arc<Intercept>,
        caller: Caller,
        transport: Transport,
    ) -> BoxFuture<'static, Result<TunnelIo, TunnelError>> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let behaviour = self.behaviour.lock().unwrap().clone();
        let mut breaks = self.breaks.subscribe();
        Box::pin(async move {
            if matches!(behaviour, Behaviour::Away) {
                return Err(TunnelError::NoPath("it is away".to_owned()));
            }
            let (tx, from_agent) = mpsc::channel(50);
            let (to_agent, rx) = mpsc::channel(50);
            let broken = to_agent.clone();
            let far = FarEnd {
                from_agent,
                to_agent,
                caller,
                transport,
                intercept,
            };
            if let Behaviour::Scripted(opened_tx) = behaviour {
                drop(broken);
                opened_tx.send(far).await.unwrap();
            } else {
                tokio::spawn(async move {
                    tokio::select! {
                        () = far.behave(behaviour) => {}
                        _ = breaks.changed() => {
                            let _ = broken.send(Err(TunnelError::Broken("cut".to_owned()))).await;
                        }
                    }
                });
            }
            let rx = ReceiverStream::new(rx);
            Ok(TunnelIo::of_payloads(tx, rx, Role::Server))
        })
    }
}

impl FarEnd {
    /// Sends a message to the agent; false if it no longer listens.
    pub async fn send(&self, message: Message) -> bool {
        self.to_agent.send(Ok(message.encode())).await.is_ok()
    }

    /// Acts until the agent drops the tunnel.
    pub async fn behave(mut self, behaviour: Behaviour) {
        match behaviour {
            Behaviour::Dials(target) => match TcpStream::connect(target).await {
                Ok(socket) => return self.carry(socket).await,
                Err(_) => self.send(Message::DialReject).await,
            },
            Behaviour::Rejects => self.send(Message::DialReject).await,
            _ => true,
        };
        while self.from_agent.recv().await.is_some() {}
    }

    /// Moves bytes between the agent and the target, half-closes included.
    async fn carry(self, socket: TcpStream) {
        let _ = socket.set_nodelay(true);
        let (mut read, mut write) = socket.into_split();
        self.send(Message::DialOk).await;
        let (mut from_agent, to_agent) = (self.from_agent, self.to_agent);
        let inward = async {
            while let Some(frame) = from_agent.recv().await {
                match Message::decode(frame.payload()).unwrap() {
                    Message::Normal(data) => write.write_all(&data).await.unwrap_or_default(),
                    Message::CloseSend => write.shutdown().await.unwrap_or_default(),
                    Message::Disconnect => return,
                    _ => {}
                }
            }
        };
        let outward = async {
            let mut buf = vec![0; 64 * 1024];
            while let Ok(n @ 1..) = read.read(&mut buf).await {
                let data = Message::Normal(Bytes::copy_from_slice(&buf[..n]));
                let _ = to_agent.send(Ok(data.encode())).await;
            }
            let _ = to_agent.send(Ok(Message::CloseSend.encode())).await;
            // The tunnel stays open until the agent drops it.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = inward => {}
            () = outward => {}
        }
    }
}
