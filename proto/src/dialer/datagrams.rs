//! The datagrams of one flow, a message each.
//!
//! A target at whose port nothing listens answers with an ICMP error, which the kernel shows at the
//! socket's next call. The flow goes on: somebody may listen when the next datagram comes.

use std::io;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tonic::Status;

use super::{Activity, Broken, Carried, LINGER_TIMEOUT, Outgoing, give_up, next_data, until_ended};
use crate::manager::TunnelMessage;
use crate::tunnel::{MAX_DATAGRAM, UDP_IDLE_TIMEOUT, begin_normal};

/// Observer of what becomes of datagrams at their target.
pub trait DatagramObserver: Sync {
    /// Called for a datagram that was lost because nothing listens at the target's port.
    fn refused(&self) {}
    /// Called for a datagram of the target.
    fn answered(&self) {}
}

impl DatagramObserver for () {}

pub(super) async fn copy_udp<S, T>(
    socket: UdpSocket,
    incoming: &mut S,
    outgoing: &mut Outgoing<T>,
    observer: &impl DatagramObserver,
) -> Carried
where
    S: Stream<Item = Result<TunnelMessage, Status>> + Unpin,
{
    let activity = Activity::new(UDP_IDLE_TIMEOUT);
    let pulse = outgoing.pulse();
    let ended: Result<(), Broken> = {
        let send = async {
            while let Some(data) = next_data(&mut *incoming, &activity, &pulse).await? {
                send_datagram(&socket, &data, observer).await;
            }
            Ok(())
        };
        tokio::select! {
            ended = receive_datagrams(&socket, outgoing, &activity, observer) => ended,
            ended = send => ended,
            Err(idle) = activity.stale() => Err(idle),
        }
    };
    match ended {
        Ok(()) => {
            let _ = outgoing.finish().await;
            outgoing.close();
            until_ended(incoming, LINGER_TIMEOUT).await;
            Carried::Whole
        }
        Err(Broken::Tunnel) => Carried::TunnelLost,
        Err(Broken::Target) => {
            give_up(incoming, outgoing).await;
            Carried::TargetLost
        }
        Err(Broken::Idle) => {
            give_up(incoming, outgoing).await;
            Carried::Idle
        }
    }
}

/// Sends one datagram, or loses it, as any network may.
async fn send_datagram(socket: &UdpSocket, data: &[u8], observer: &impl DatagramObserver) {
    // An error that waits is about an earlier datagram, and would be the answer to this one.
    let _ = take_refusal(socket, observer);
    let Err(error) = socket.send(data).await else {
        return;
    };
    if is_refusal(&error) {
        // It came in between.
        observer.refused();
        let _ = socket.send(data).await;
    }
}

/// Sends what the target answers, one datagram a message, until one side is gone.
async fn receive_datagrams<T>(
    socket: &UdpSocket,
    outgoing: &Outgoing<T>,
    activity: &Activity,
    observer: &impl DatagramObserver,
) -> Result<(), Broken> {
    loop {
        // An error alone makes a socket not readable.
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await;
        if ready.map_err(|_| Broken::Target)?.is_error() {
            let _ = socket.try_io(Interest::ERROR, || take_refusal(socket, observer));
        }
        let place = outgoing.place().await?;
        // One byte of message code precedes the datagram.
        let mut message = BytesMut::with_capacity(MAX_DATAGRAM + 1);
        begin_normal(&mut message);
        if socket.try_recv_buf(&mut message).is_ok() {
            observer.answered();
            // Copied, because a datagram is mostly far smaller than the buffer.
            place.send((outgoing.wrap)(TunnelMessage {
                payload: Bytes::copy_from_slice(&message),
            }));
            activity.touch();
        }
    }
}

/// Takes the error of an earlier datagram; the result says that there is none any more.
fn take_refusal(socket: &UdpSocket, observer: &impl DatagramObserver) -> io::Result<()> {
    let error = socket.take_error().ok().flatten();
    if error.as_ref().is_some_and(is_refusal) {
        observer.refused();
    }
    Err(io::ErrorKind::WouldBlock.into())
}

fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}
