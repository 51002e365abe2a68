//! The datagrams of one flow, a message each.
//!
//! A target at whose port nothing listens answers with an ICMP error, which the kernel shows at the
//! socket's next call. A peer that has sent a keep-alive ahead of its first datagram is told by a
//! rejection, which ends the flow: it has somebody else to give the datagrams to. For any other
//! peer the flow goes on, since somebody may listen when the next datagram comes.

use std::io;
use std::sync::OnceLock;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tonic::Status;

use super::{
    Activity, Broken, Carried, LINGER_TIMEOUT, Outgoing, give_up, next_data, reject_rest,
    until_ended,
};
use crate::manager::TunnelMessage;
use crate::tunnel::{MAX_DATAGRAM, UDP_IDLE_TIMEOUT, begin_normal};

/// Observer of what becomes of datagrams at their target.
pub trait DatagramObserver: Sync {
    /// Called for a datagram that was refused because nothing listens at the target's port, with
    /// what becomes of it.
    fn refused(&self, _fate: Refused) {}
    /// Called for a datagram of the target.
    fn answered(&self) {}
}

impl DatagramObserver for () {}

/// Fate of a refused datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Lost; its flow goes on.
    Lost,
    /// Rejected: its flow ends, and the peer has another use for it.
    Rejected,
}

/// Carries datagrams; `may_reject` where the socket was dialled for the peer.
pub(super) async fn copy_udp<S, T>(
    socket: UdpSocket,
    incoming: &mut S,
    outgoing: &mut Outgoing<T>,
    observer: &impl DatagramObserver,
    may_reject: bool,
) -> Carried
where
    S: Stream<Item = Result<TunnelMessage, Status>> + Unpin,
{
    let activity = Activity::new(UDP_IDLE_TIMEOUT);
    let pulse = outgoing.pulse();
    let refusals = Refusals {
        observer,
        rejects: OnceLock::new(),
    };
    let ended: Result<(), Broken> = {
        let send = async {
            while let Some(data) = next_data(&mut *incoming, &activity, &pulse).await? {
                // A keep-alive between datagrams says nothing but that the peer waits for life.
                let _ = refusals.rejects.set(may_reject && pulse.was_asked());
                send_datagram(&socket, &data, &refusals).await?;
            }
            Ok(())
        };
        tokio::select! {
            ended = receive_datagrams(&socket, outgoing, &activity, &refusals) => ended,
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
        Err(Broken::Refused) => {
            reject_rest(incoming, outgoing).await;
            Carried::Refused
        }
        Err(Broken::Idle) => {
            give_up(incoming, outgoing).await;
            Carried::Idle
        }
    }
}

/// Handling of refused datagrams.
struct Refusals<'a, O> {
    observer: &'a O,
    /// The flow ends by a rejection; unset before the first datagram.
    rejects: OnceLock<bool>,
}

impl<O: DatagramObserver> Refusals<'_, O> {
    fn refused(&self) -> Result<(), Broken> {
        if self.rejects.get() == Some(&true) {
            self.observer.refused(Refused::Rejected);
            return Err(Broken::Refused);
        }
        self.observer.refused(Refused::Lost);
        Ok(())
    }

    /// Takes the error of an earlier datagram.
    fn take(&self, socket: &UdpSocket) -> Result<(), Broken> {
        let error = socket.take_error().ok().flatten();
        if error.as_ref().is_some_and(is_refusal) {
            return self.refused();
        }
        Ok(())
    }
}

/// Sends one datagram, or loses it, as any network may.
async fn send_datagram(
    socket: &UdpSocket,
    data: &[u8],
    refusals: &Refusals<'_, impl DatagramObserver>,
) -> Result<(), Broken> {
    // An error that waits is about an earlier datagram, and would be the answer to this one.
    refusals.take(socket)?;
    let Err(error) = socket.send(data).await else {
        return Ok(());
    };
    if is_refusal(&error) {
        // It came in between.
        refusals.refused()?;
        let _ = socket.send(data).await;
    }
    Ok(())
}

/// Sends what the target answers, one datagram a message, until one side is gone.
async fn receive_datagrams<T>(
    socket: &UdpSocket,
    outgoing: &Outgoing<T>,
    activity: &Activity,
    refusals: &Refusals<'_, impl DatagramObserver>,
) -> Result<(), Broken> {
    loop {
        // An error alone makes a socket not readable.
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await;
        if ready.map_err(|_| Broken::Target)?.is_error() {
            let mut taken = Ok(());
            // It has to be said that there is no error any more.
            let _ = socket.try_io(Interest::ERROR, || {
                taken = refusals.take(socket);
                Err::<(), _>(io::ErrorKind::WouldBlock.into())
            });
            taken?;
        }
        let place = outgoing.place().await?;
        // One byte of message code precedes the datagram.
        let mut message = BytesMut::with_capacity(MAX_DATAGRAM + 1);
        begin_normal(&mut message);
        match socket.try_recv_buf(&mut message) {
            Ok(_) => {
                refusals.observer.answered();
                // Copied, because a datagram is mostly far smaller than the buffer.
                place.send((outgoing.wrap)(TunnelMessage {
                    payload: Bytes::copy_from_slice(&message),
                }));
                activity.touch();
            }
            // It came in between.
            Err(error) if is_refusal(&error) => refusals.refused()?,
            Err(_) => {}
        }
    }
}

fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}
