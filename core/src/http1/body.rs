//! Follows a body to its end without changing it: by length, by chunks (RFC 9112 section 7.1) or
//! until close.

use crate::http1::head::{Framing, Head, Method};

/// How the rest of a message ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing is left.
    Done,
    /// This many bytes are left.
    Length(u64),
    /// Chunks, and where in them the reader stands.
    Chunked(Chunk),
    /// Everything until the sender closes.
    UntilClose,
}

/// A place in the chunked grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Before the first digit of a size.
    Start,
    /// Behind a number of digits.
    Size {
        /// The value so far.
        value: u64,
        /// How many digits there were.
        digits: u8,
    },
    /// White space behind the size, which only an extension may follow.
    Space(u64),
    /// In an extension.
    Extension(u64),
    /// Behind the CR of a size line.
    SizeLf(u64),
    /// In the data.
    Data(u64),
    /// Behind the data.
    DataCr,
    /// Behind the CR after the data.
    DataLf,
    /// At the start of a trailer line.
    Trailer,
    /// In a trailer line.
    TrailerText,
    /// Behind the CR of a trailer line.
    TrailerLf,
    /// Behind the CR of the empty line.
    EndLf,
}

/// The most digits of a chunk size; more could overflow somebody's integer, and leading zeros serve
/// no one.
const MAX_SIZE_DIGITS: u8 = 15;

/// A byte that the chunked grammar does not allow where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// How many bytes before it are sound.
    pub sound: usize,
}

impl Body {
    /// The body of a request with this head.
    #[must_use]
    pub fn of_request(head: &Head) -> Self {
        match head.framing {
            Framing::Unsaid | Framing::Length(0) => Self::Done,
            Framing::Length(n) => Self::Length(n),
            Framing::Chunked => Self::Chunked(Chunk::Start),
        }
    }

    /// The body of a final response with this head to a request with this method (RFC 9112 section
    /// 6.3).
    #[must_use]
    pub fn of_response(head: &Head, method: Method) -> Self {
        let bodyless = method == Method::Head || matches!(head.status(), 100..=199 | 204 | 304);
        match head.framing {
            _ if bodyless => Self::Done,
            Framing::Length(0) => Self::Done,
            Framing::Length(n) => Self::Length(n),
            Framing::Chunked => Self::Chunked(Chunk::Start),
            Framing::Unsaid => Self::UntilClose,
        }
    }

    /// Whether the message is complete.
    #[must_use]
    pub fn is_done(&self) -> bool {
        *self == Self::Done
    }

    /// How many bytes are certain to follow as plain content; what makes a large buffer worth
    /// while.
    #[must_use]
    pub fn plain_ahead(&self) -> u64 {
        match self {
            Self::Length(n) | Self::Chunked(Chunk::Data(n)) => *n,
            Self::Chunked(_) | Self::Done => 0,
            Self::UntilClose => u64::MAX,
        }
    }

    /// Follows `n` bytes of plain content that were not looked at, at most [`Self::plain_ahead`]
    /// many.
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

    /// Follows `bytes` and says how many of them belong to this body; fewer than all only when it
    /// is done.
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
    /// One byte outside of data: the next place, `Some(None)` at the end of the body, `None` for a
    /// byte that may not stand here.
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
            value: value << 4 | u64::from(digit),
            digits: digits + 1,
        })
    }
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || byte >= 0x20 && byte != 0x7f
}

#[cfg(test)]
mod tests;
