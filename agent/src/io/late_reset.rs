//! Detects a reset after a half-close: once a peer has ended its side, reads report the end
//! forever, and only the socket's error state shows a later reset, which goes unnoticed while the
//! other direction has nothing to write.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::net::TcpStream;

/// Watches one socket for a reset, from the first poll on; costs nothing before.
#[derive(Default)]
pub(crate) enum LateReset {
    #[default]
    Unwatched,
    Watched(Pin<Box<dyn Future<Output = io::Error> + Send>>),
    /// Out of descriptors: a reset shows at the next write.
    Unwatchable,
}

impl LateReset {
    /// Ready when the socket has failed. One value must always get the same socket.
    pub(crate) fn poll_broken(
        &mut self,
        socket: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Error> {
        if matches!(self, Self::Unwatched) {
            *self = match copy(socket) {
                Ok(copy) => Self::Watched(Box::pin(broken(copy))),
                Err(_) => Self::Unwatchable,
            };
        }
        match self {
            Self::Watched(watch) => watch.as_mut().poll(cx),
            Self::Unwatched | Self::Unwatchable => Poll::Pending,
        }
    }
}

/// Duplicates the descriptor, because the runtime keeps only one reader and writer for the first
/// one.
fn copy(socket: &TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(socket.as_fd().try_clone_to_owned()?.into())
}

async fn broken(socket: TcpStream) -> io::Error {
    loop {
        if let Err(error) = socket.ready(Interest::ERROR).await {
            return error;
        }
        match socket.take_error() {
            Ok(Some(error)) | Err(error) => return error,
            // No error is pending: clear readiness and wait for the next event.
            Ok(None) => {
                let _ = socket.try_io(Interest::ERROR, || {
                    Err::<(), _>(io::ErrorKind::WouldBlock.into())
                });
            }
        }
    }
}
