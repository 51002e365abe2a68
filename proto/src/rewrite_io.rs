//! A byte stream whose reads pass through a rewriter, for servers that are stricter than their
//! callers: gRPC clients send authorities that the `http` crate refuses.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use crate::rewrite::Rewrite;

/// Bytes read from the peer at once, where they can't be read to where the server wants them.
const CHUNK: usize = 16 * 1024;
/// Room from which on they are: smaller reads would cost more than a copy.
const DIRECT: usize = 4 * 1024;

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

impl<I, R: Rewrite> RewriteReads<I, R> {
    /// Wraps a connection.
    pub fn new(io: I, rewrite: R) -> Self {
        Self {
            io,
            rewrite,
            ready: Vec::new(),
            taken: 0,
        }
    }
}

impl<I, R> RewriteReads<I, R>
where
    I: AsyncRead + Unpin,
    R: Rewrite,
{
    /// Reads to where the server wants the bytes, and leaves what passes as it is; true if something
    /// does, or the peer has ended.
    fn poll_direct(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<bool>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let received = buf.filled().get(before..).unwrap_or_default();
        let passed = self.rewrite.pass(received);
        let is_end = received.is_empty();
        if let Some(rest @ [_, ..]) = received.get(passed..) {
            self.rewrite.rewrite(rest, &mut self.ready);
            buf.set_filled(before + passed);
        }
        Poll::Ready(Ok(passed > 0 || is_end))
    }
}

impl<I, R> AsyncRead for RewriteReads<I, R>
where
    I: AsyncRead + Unpin,
    R: Rewrite + Unpin,
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
            this.rewrite.rewrite(&[], &mut this.ready);
            if !this.ready.is_empty() {
                break;
            }
            if buf.remaining() >= DIRECT {
                if ready!(this.poll_direct(cx, buf))? {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            let mut chunk = [0; CHUNK];
            let mut received = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut received))?;
            if received.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.rewrite.rewrite(received.filled(), &mut this.ready);
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

    /// Gives bytes out in pairs, in upper case, so that a single one waits for the next; digits pass.
    #[derive(Default)]
    struct Pairs(Vec<u8>);

    impl Rewrite for Pairs {
        fn pass(&mut self, received: &[u8]) -> usize {
            let digits = received.iter().take_while(|b| b.is_ascii_digit());
            if self.0.is_empty() { digits.count() } else { 0 }
        }

        fn rewrite(&mut self, received: &[u8], out: &mut Vec<u8>) {
            self.0.extend_from_slice(received);
            let whole = self.0.len() / 2 * 2;
            out.extend(self.0.drain(..whole).map(|b| b.to_ascii_uppercase()));
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn reads_are_rewritten_and_writes_pass() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut io = RewriteReads::new(near, Pairs::default());
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

    #[tokio::test(flavor = "current_thread")]
    async fn what_passes_is_read_in_place_up_to_what_does_not() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut io = RewriteReads::new(near, Pairs::default());
        let mut room = vec![0; DIRECT];
        far.write_all(b"123abc").await.unwrap();
        assert_eq!(io.read(&mut room).await.unwrap(), 3);
        assert_eq!(&room[..3], b"123");
        assert_eq!(io.read(&mut room).await.unwrap(), 2);
        assert_eq!(&room[..2], b"AB");
        // The byte that waits holds back what would pass by itself.
        far.write_all(b"45").await.unwrap();
        assert_eq!(io.read(&mut room).await.unwrap(), 2);
        assert_eq!(&room[..2], b"C4");
        drop(far);
        assert_eq!(io.read(&mut room).await.unwrap(), 0);
    }
}
