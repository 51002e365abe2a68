//! A byte stream whose reads pass through a rewriter, for servers that are stricter than their
//! callers: gRPC clients send authorities that the `http` crate refuses.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// Bytes read from the peer at once.
const CHUNK: usize = 16 * 1024;

/// A connection whose received bytes are rewritten before the server reads them. Writes pass as
/// they are.
#[derive(Debug)]
pub struct RewriteReads<I, R> {
    io: I,
    rewrite: R,
    /// Rewritten bytes, and how many of them have been read.
    ready: Vec<u8>,
    taken: usize,
}

impl<I, R> RewriteReads<I, R>
where
    R: FnMut(&[u8], &mut Vec<u8>),
{
    /// Wraps a connection. `rewrite` takes received bytes and appends what the server shall read; it
    /// may keep some back, and is called without any before more are read.
    pub fn new(io: I, rewrite: R) -> Self {
        Self {
            io,
            rewrite,
            ready: Vec::new(),
            taken: 0,
        }
    }
}

impl<I, R> AsyncRead for RewriteReads<I, R>
where
    I: AsyncRead + Unpin,
    R: FnMut(&[u8], &mut Vec<u8>) + Unpin,
{
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // A part of a header section may give nothing to read yet.
        while this.taken == this.ready.len() {
            // A connection that waits holds no buffer.
            this.ready = Vec::new();
            this.taken = 0;
            (this.rewrite)(&[], &mut this.ready);
            if !this.ready.is_empty() {
                break;
            }
            let mut chunk = [0; CHUNK];
            let mut received = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut received))?;
            if received.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            (this.rewrite)(received.filled(), &mut this.ready);
        }
        let rest = this.ready.get(this.taken..).unwrap_or_default();
        let (now, _) = rest.split_at(rest.len().min(buf.remaining()));
        buf.put_slice(now);
        this.taken += now.len();
        Poll::Ready(Ok(()))
    }
}

impl<I, R> AsyncWrite for RewriteReads<I, R>
where
    I: AsyncWrite + Unpin,
    R: Unpin,
{
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

impl<I: Connected, R> Connected for RewriteReads<I, R> {
    type ConnectInfo = I::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn reads_are_rewritten_and_writes_pass() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut held = Vec::new();
        // Gives bytes out in pairs, so that a single one waits for the next.
        let mut io = RewriteReads::new(near, move |input: &[u8], out: &mut Vec<u8>| {
            held.extend_from_slice(input);
            let whole = held.len() / 2 * 2;
            out.extend(held.drain(..whole).map(|b| b.to_ascii_uppercase()));
        });
        far.write_all(b"a").await.unwrap();
        far.write_all(b"bcd").await.unwrap();
        let mut read = [0; 4];
        io.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"ABCD");
        io.write_all(b"back").await.unwrap();
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"back");
        drop(far);
        assert_eq!(io.read(&mut read).await.unwrap(), 0);
    }
}
