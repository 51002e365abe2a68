#![no_main]
//! A request that the `h2` crate's server understands has the same fields for us.
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use traffic_core::http2::frames::{PREFACE, settings};
use traffic_core::http2::hpack::{Decoder, FieldList};
use traffic_core::http2::section;

/// Bytes that are there to be read, and a sink.
struct Wire(Vec<u8>, usize);

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let rest = &self.0[self.1..];
        if rest.is_empty() {
            return Poll::Pending;
        }
        let n = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..n]);
        self.1 += n;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn theirs(blocks: &[&[u8]]) -> Vec<http::Request<()>> {
    let mut wire = PREFACE.to_vec();
    settings(&[], &mut wire);
    for (n, block) in blocks.iter().enumerate() {
        section::write(2 * n as u32 + 1, true, block, &mut wire);
    }
    let mut cx = Context::from_waker(Waker::noop());
    let mut handshake = Box::pin(h2::server::Builder::new().handshake::<_, Bytes>(Wire(wire, 0)));
    let Poll::Ready(Ok(mut connection)) = handshake.as_mut().poll(&mut cx) else {
        return Vec::new();
    };
    let mut requests = Vec::new();
    while let Poll::Ready(Some(Ok((request, _respond)))) = connection.poll_accept(&mut cx) {
        requests.push(request.map(drop));
    }
    requests
}

fuzz_target!(|blocks: Vec<&[u8]>| {
    if blocks.len() > 4 {
        return;
    }
    let mut requests = theirs(&blocks).into_iter();
    let mut decoder = Decoder::default();
    for block in blocks {
        let mut list = FieldList::default();
        if decoder.decode(block, &mut list).is_err() {
            break;
        }
        let regular: Vec<_> = list
            .iter()
            .filter(|f| !f.name.starts_with(b":"))
            .map(|f| (f.name.to_vec(), f.value.to_vec()))
            .collect();
        // The library refuses much that is decodable; what it takes must be this one, or a later.
        let Some(request) = requests.as_slice().first() else { break };
        let mut known: Vec<_> = request
            .headers()
            .iter()
            .map(|(n, v)| (n.as_str().as_bytes().to_vec(), v.as_bytes().to_vec()))
            .collect();
        let mut ours = regular;
        known.sort();
        ours.sort();
        if known == ours {
            requests.next();
        }
    }
    assert!(requests.next().is_none(), "a request that we did not decode");
});
