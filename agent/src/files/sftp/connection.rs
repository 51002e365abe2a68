//! One SFTP connection: packets are cut from its bytes, and answers are collected.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;

use traffic_core::sftp::MAX_PACKET;

use super::Session;
use crate::files::export::Exports;

/// Bytes of answers that are collected before they are written.
const MAX_BATCH: usize = 256 * 1024;

/// Answers the requests of one connection in order. Answers are written when no whole request is
/// waiting, so that pipelined requests share a write.
pub(crate) fn serve(mut socket: TcpStream, exports: &Exports) -> io::Result<()> {
    let mut session = Session::new(exports);
    let (mut unread, mut answers) = (Vec::new(), Vec::new());
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let n = socket.read(&mut chunk)?;
        if n == 0 {
            return Ok(());
        }
        unread.extend_from_slice(chunk.get(..n).unwrap_or_default());
        let mut done = 0;
        while let Some(packet) = whole_packet(unread.get(done..).unwrap_or_default())? {
            session.answer(packet, &mut answers);
            done += 4 + packet.len();
            if answers.len() >= MAX_BATCH {
                socket.write_all(&answers)?;
                answers.clear();
            }
        }
        unread.drain(..done);
        socket.write_all(&answers)?;
        answers.clear();
    }
}

/// Returns the first packet without its length field, if it is whole.
///
/// # Errors
/// Its length is none that the protocol allows; what follows cannot be told apart.
fn whole_packet(bytes: &[u8]) -> io::Result<Option<&[u8]>> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if length == 0 || length > MAX_PACKET {
        let text = format!("SFTP packet of {length} bytes; 1 to {MAX_PACKET} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(rest.get(..length))
}
