//! Follows a body to its end without changing it: by length, by chunks (RFC 9112 section 7.1) or
//! until close.

use crate::http1::head::{Framing, Head, Method};

/// Framing state of the rest of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// No bytes are left.
    Done,
    /// Number of bytes left.
    Length(u64),
    /// Chunked, with the place of the reader in the grammar.
    Chunked(Chunk),
    /// Ends when the sender closes.
    UntilClose,
}

/// A place in the chunked grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Start of a chunk size, before its first digit.
    Start,
    /// Digits of a chunk size.
    Size {
        /// Value so far.
        value: u64,
        /// Digits so far.
        digits: u8,
    },
    /// White space after the size; only an extension may follow.
    Space(u64),
    /// Inside a chunk extension.
    Extension(u64),
    /// CR of a size line was read.
    SizeLf(u64),
    /// Inside chunk data.
    Data(u64),
    /// Data is complete; CR expected.
    DataCr,
    /// CR after the data was read.
    DataLf,
    /// Start of a trailer line.
    Trailer,
    /// Inside a trailer line.
    TrailerText,
    /// CR of a trailer line was read.
    TrailerLf,
    /// CR of the final empty line was read.
    EndLf,
}

/// Maximum of digits in a chunk size; more could overflow another parser's integer, and leading
/// zeros have no use.
const MAX_SIZE_DIGITS: u8 = 15;

/// Error: a byte that the chunked grammar does not allow at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Number of valid bytes before it.
    pub sound: usize,
}

impl Body {
    /// Returns the body of a request with this head.
    #[must_use]
    pub fn of_request(head: &Head) -> Self {
        match head.framing {
            // RFC 9112 section 6.3, rule 7: a request without framing has no body.
            Framing::Unsaid | Framing::Length(0) => Self::Done,
            Framing::Length(n) => Self::Length(n),
            Framing::Chunked => Self::Chunked(Chunk::Start),
        }
    }

    /// Returns the body of a final response with this head to a request with this method (RFC 9112
    /// section 6.3).
    #[must_use]
    pub fn of_response(head: &Head, method: Method) -> Self {
        // RFC 9112 section 6.3, rule 1: these never have a body, whatever their fields say.
        let bodyless = method == Method::Head || matches!(head.status(), 100..=199 | 204 | 304);
        match head.framing {
            _ if bodyless => Self::Done,
            Framing::Length(0) => Self::Done,
            Framing::Length(n) => Self::Length(n),
            Framing::Chunked => Self::Chunked(Chunk::Start),
            // RFC 9112 section 6.3, rule 8.
            Framing::Unsaid => Self::UntilClose,
        }
    }

    /// Returns true if the message is complete.
    #[must_use]
    pub fn is_done(&self) -> bool {
        *self == Self::Done
    }

    /// Number of bytes certain to follow as plain content; decides if a large buffer pays off.
    #[must_use]
    pub fn plain_ahead(&self) -> u64 {
        match self {
            Self::Length(n) | Self::Chunked(Chunk::Data(n)) => *n,
            Self::Chunked(_) | Self::Done => 0,
            Self::UntilClose => u64::MAX,
        }
    }

    /// Advances over `n` bytes of plain content that were not parsed, at most
    /// [`Self::plain_ahead`].
    pub fn pass(&mut self, n: u64) {
        match self {
            Self::Length(left) => {
                *left = left.saturating_sub(n);
                if *left == 0 {
                    *self = Self::Done;
                }
            }
            Self::Chunked(Chunk::Data(left)) => {
                *left = left.saturating_sub(n);
                if *left == 0 {
                    *self = Self::Chunked(Chunk::DataCr);
                }
            }
            Self::Done | Self::Chunked(_) | Self::UntilClose => {}
        }
    }

    /// Advances over `bytes` and returns the number of bytes that belong to this body; fewer than
    /// all only when it is done.
    ///
    /// # Errors
    /// A byte that breaks the chunked grammar.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        match self {
            Self::Done => Ok(0),
            Self::UntilClose => Ok(bytes.len()),
            Self::Length(left) => {
                let n = bytes
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= n as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(n)
            }
            Self::Chunked(_) => self.advance_chunks(bytes),
        }
    }

    fn advance_chunks(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut at = 0;
        while let (Self::Chunked(chunk), Some(byte)) = (&mut *self, bytes.get(at)) {
            // Data is skipped in one step; only the framing around it is parsed byte by byte.
            if let Chunk::Data(left) = chunk {
                let n = (bytes.len() - at).min(usize::try_from(*left).unwrap_or(usize::MAX));
                at += n;
                *left -= n as u64;
                if *left == 0 {
                    *chunk = Chunk::DataCr;
                }
                continue;
            }
            match chunk.follow(*byte) {
                Some(Some(next)) => *chunk = next,
                Some(None) => *self = Self::Done,
                None => return Err(Malformed { sound: at }),
            }
            at += 1;
        }
        Ok(at)
    }
}

impl Chunk {
    /// Advances over one byte outside of data: the next place, `Some(None)` at the end of the body,
    /// `None` for a byte that is not allowed here.
    fn follow(self, byte: u8) -> Option<Option<Self>> {
        let next = match (self, byte) {
            (Self::Start, _) => Self::Size {
                value: 0,
                digits: 0,
            }
            .digit(byte)?,
            (Self::Size { .. }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => self.digit(byte)?,
            (Self::Size { value, .. }, b'\r') => Self::SizeLf(value),
            (Self::Size { value, .. } | Self::Space(value), b';') => Self::Extension(value),
            (Self::Size { value, .. } | Self::Space(value), b' ' | b'\t') => Self::Space(value),
            (Self::Extension(size), b'\r') => Self::SizeLf(size),
            (Self::Extension(size), _) if is_text(byte) => Self::Extension(size),
            // The last chunk has size 0 and is followed by trailers (RFC 9112 section 7.1.2).
            (Self::SizeLf(0), b'\n') => Self::Trailer,
            (Self::SizeLf(size), b'\n') => Self::Data(size),
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Start,
            (Self::Trailer, b'\r') => Self::EndLf,
            (Self::Trailer, _) if is_text(byte) => Self::TrailerText,
            (Self::TrailerText, b'\r') => Self::TrailerLf,
            (Self::TrailerText, _) if is_text(byte) => Self::TrailerText,
            (Self::TrailerLf, b'\n') => Self::Trailer,
            (Self::EndLf, b'\n') => return Some(None),
            _ => return None,
        };
        Some(Some(next))
    }

    fn digit(self, byte: u8) -> Option<Self> {
        let Self::Size { value, digits } = self else {
            return None;
        };
        let digit = char::from(byte)
            .to_digit(16)
            .filter(|_| digits < MAX_SIZE_DIGITS)?;
        Some(Self::Size {
            // 15 digits are 60 bits, so the shift cannot overflow.
            value: value << 4 | u64::from(digit),
            digits: digits + 1,
        })
    }
}

fn is_text(byte: u8) -> bool {
    // HTAB, visible characters and obs-text (RFC 9110 section 5.5).
    byte == b'\t' || byte >= 0x20 && byte != 0x7f
}

#[cfg(test)]
mod tests;
