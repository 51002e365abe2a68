//! Pooled read buffers: a connection holds one only while bytes are in it, so idle connections cost
//! none. Each worker thread keeps a small stock.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::io::eager;

/// Size of one buffer: room for any usual head, small enough for many connections at a time.
pub const SIZE: usize = 16 * 1024;
/// Size of a large buffer, for bulk transfers that cannot be spliced.
pub const LARGE: usize = 256 * 1024;
const MAX_POOLED: usize = 64;
const MAX_POOLED_LARGE: usize = 4;
/// Maximum of large buffers in use in each worker, so that many stalled readers cannot hold much
/// memory.
const MAX_LARGE_LOANS: usize = 16;

thread_local! {
    static POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static LARGE_POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static LARGE_LENT: Cell<usize> = const { Cell::new(0) };
}

/// Unread bytes of one direction; empty ones hold no memory.
#[derive(Debug, Default)]
pub struct Buf {
    store: Option<Box<[u8]>>,
    start: usize,
    end: usize,
    large: bool,
}

impl Buf {
    /// Selects the size of the next buffer: [`LARGE`] for a busy flow (while any are left), else
    /// [`SIZE`].
    pub fn prefer_large(&mut self, large: bool) {
        self.large = large;
    }

    /// Bytes read and not yet consumed.
    #[must_use]
    pub fn unread(&self) -> &[u8] {
        self.store
            .as_deref()
            .and_then(|s| s.get(self.start..self.end))
            .unwrap_or_default()
    }

    /// Number of unread bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Returns true if no byte is unread.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Marks `n` unread bytes as consumed; the buffer is returned with the last one.
    pub fn consume(&mut self, n: usize) {
        self.start = self.end.min(self.start.saturating_add(n));
        if self.is_empty() {
            self.release();
        }
    }

    /// Reads once. `Ok(0)` is the end of the stream, or a full buffer (see [`Self::is_full`]).
    ///
    /// # Errors
    /// The stream's error.
    pub fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        from: &mut R,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let large = self.large;
        let store = self.store.get_or_insert_with(|| borrow_from_pool(large));
        if self.end == store.len() && self.start > 0 {
            store.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let mut spare = ReadBuf::new(store.get_mut(self.end..).unwrap_or_default());
        let polled = Pin::new(from).poll_read(cx, &mut spare);
        let n = spare.filled().len();
        if polled.is_pending() && self.is_empty() {
            self.release();
        }
        ready!(polled)?;
        self.end += n;
        if self.is_empty() {
            self.release();
        }
        Poll::Ready(Ok(n))
    }

    /// Reads what the kernel already holds for this socket; `None` if that is nothing, `Some(0)` at
    /// the end of the stream or if the buffer is full.
    ///
    /// # Errors
    /// The connection failed.
    pub fn fill_now(&mut self, from: impl AsFd) -> io::Result<Option<usize>> {
        let store = self.store.get_or_insert_with(|| borrow_from_pool(false));
        let read = eager::read_now(from, store.get_mut(self.end..).unwrap_or_default());
        self.end += *read.as_ref().unwrap_or(&0);
        if self.is_empty() {
            self.release();
        }
        match read {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            read => read.map(Some),
        }
    }

    /// Makes room for `at_least` bytes in all, for heads larger than one buffer.
    pub fn grow(&mut self, at_least: usize) {
        if self.store.as_ref().map_or(0, |s| s.len()) >= at_least {
            return;
        }
        // A size unlike those of the pools, so that this buffer is never returned to one.
        let size = if at_least == LARGE {
            at_least + 1
        } else {
            at_least
        };
        let mut larger = vec![0; size].into_boxed_slice();
        let unread = self.unread();
        let len = unread.len();
        if let Some(room) = larger.get_mut(..len) {
            room.copy_from_slice(unread);
        }
        self.release();
        self.store = Some(larger);
        self.end = len;
    }

    /// Inserts `bytes` among the unread ones, before index `at`.
    pub fn insert(&mut self, at: usize, bytes: &[u8]) {
        let len = self.len();
        let room = self.store.as_ref().map_or(0, |s| s.len());
        if room < len + bytes.len() {
            self.grow(len + bytes.len());
        }
        let at = at.min(len);
        let Some(store) = self.store.as_deref_mut() else {
            return;
        };
        if store.len() - self.end < bytes.len() {
            store.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, len);
        }
        let at = self.start + at;
        store.copy_within(at..self.end, at + bytes.len());
        if let Some(gap) = store.get_mut(at..at + bytes.len()) {
            gap.copy_from_slice(bytes);
        }
        self.end += bytes.len();
    }

    /// Returns true if no room is left after the unread bytes, which start at the front.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.start == 0 && self.store.as_ref().is_some_and(|s| s.len() == self.end)
    }

    fn release(&mut self) {
        self.start = 0;
        self.end = 0;
        if let Some(store) = self.store.take() {
            let (pool, stock) = match store.len() {
                SIZE => (&POOL, MAX_POOLED),
                LARGE => {
                    let _ = LARGE_LENT.try_with(|lent| lent.set(lent.get().saturating_sub(1)));
                    (&LARGE_POOL, MAX_POOLED_LARGE)
                }
                _ => return,
            };
            // The pool of a thread that is ending is gone already.
            let _ = pool.try_with(|pool| {
                let mut pool = pool.borrow_mut();
                if pool.len() < stock {
                    pool.push(store);
                }
            });
        }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        self.release();
    }
}

fn borrow_from_pool(large: bool) -> Box<[u8]> {
    let (pool, size) = if large && LARGE_LENT.get() < MAX_LARGE_LOANS {
        LARGE_LENT.set(LARGE_LENT.get() + 1);
        (&LARGE_POOL, LARGE)
    } else {
        (&POOL, SIZE)
    };
    pool.with_borrow_mut(Vec::pop)
        .unwrap_or_else(|| vec![0; size].into_boxed_slice())
}

impl From<&[u8]> for Buf {
    /// Copies `bytes` into a new buffer.
    fn from(bytes: &[u8]) -> Self {
        let mut buf = Self::default();
        if !bytes.is_empty() {
            buf.grow(bytes.len());
            if let Some(room) = buf.store.as_mut().and_then(|s| s.get_mut(..bytes.len())) {
                room.copy_from_slice(bytes);
            }
            buf.end = bytes.len();
        }
        buf
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test]
    async fn bytes_stay_in_order_across_growth_and_an_empty_buffer_holds_no_memory() {
        let data: Vec<u8> = (0..40_000u32).map(|i| i as u8).collect();
        let mut from = &data[..];
        let mut buf = Buf::default();
        let mut seen = Vec::new();
        while poll_fn(|cx| buf.poll_fill(&mut from, cx)).await.unwrap() > 0 {
            if buf.is_full() {
                buf.grow(3 * SIZE);
                continue;
            }
            let half = buf.len() / 2 + 1;
            seen.extend_from_slice(&buf.unread()[..half.min(buf.len())]);
            buf.consume(half);
        }
        seen.extend_from_slice(buf.unread());
        buf.consume(usize::MAX / 2);
        assert_eq!(seen, data);
        assert!(buf.store.is_none());
    }

    #[tokio::test]
    async fn bytes_can_be_put_between_others_wherever_there_is_room() {
        for (size, consumed) in [(10, 0), (10, 4), (SIZE, 0), (SIZE, 4), (SIZE - 1, 2)] {
            let data: Vec<u8> = (0..size).map(|i| i as u8).collect();
            let mut from = &data[..];
            let mut buf = Buf::default();
            poll_fn(|cx| buf.poll_fill(&mut from, cx)).await.unwrap();
            buf.consume(consumed);
            buf.insert(3, b"between");
            let mut want = data[consumed..].to_vec();
            want.splice(3..3, *b"between");
            assert_eq!(buf.unread(), want, "{size} {consumed}");
        }
    }

    #[tokio::test]
    async fn large_buffers_are_lent_up_to_a_number_and_come_back() {
        let data = vec![7u8; LARGE];
        let mut held = Vec::new();
        for _ in 0..MAX_LARGE_LOANS + 2 {
            let mut buf = Buf::default();
            buf.prefer_large(true);
            poll_fn(|cx| buf.poll_fill(&mut &data[..], cx))
                .await
                .unwrap();
            held.push(buf);
        }
        assert_eq!(
            held.iter().filter(|b| b.len() == LARGE).count(),
            MAX_LARGE_LOANS
        );
        drop(held);
        let mut buf = Buf::default();
        buf.prefer_large(true);
        poll_fn(|cx| buf.poll_fill(&mut &data[..], cx))
            .await
            .unwrap();
        assert_eq!(buf.len(), LARGE);
    }
}
