//! Lines cut from the bytes of a control connection.

use super::MAX_LINE;

/// Bytes that arrived and were not taken as lines yet; fewer than [`MAX_LINE`] once all whole
/// lines are taken.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
    taken: usize,
}

/// More bytes than a line may have, and no end of line among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("FTP command of more than {MAX_LINE} bytes")]
pub struct LineTooLong;

impl Lines {
    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next whole line, its end removed: a line feed, with or without a carriage return.
    ///
    /// # Errors
    /// The line is longer than [`MAX_LINE`]; what follows cannot be told apart.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, LineTooLong> {
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        let Some(end) = rest.iter().take(MAX_LINE).position(|b| *b == b'\n') else {
            return if rest.len() < MAX_LINE {
                Ok(None)
            } else {
                Err(LineTooLong)
            };
        };
        self.taken += end + 1;
        let line = rest.get(..end).unwrap_or_default();
        Ok(Some(line.strip_suffix(b"\r").unwrap_or(line)))
    }
}
