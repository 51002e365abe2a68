//! Log lines on their way to a reader that may stall: a bounded queue with a writer thread of its
//! own. Whoever logs never waits; lines that find no room are dropped and counted, and writing goes
//! on as soon as the reader does, after a failed write too.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use crate::printable::{Notation, escaped};

/// Lines that wait for the writer.
pub const MAX_LINES: usize = 4096;
/// Bytes of lines that wait for the writer.
pub const MAX_BYTES: usize = 2 << 20;
/// Bytes of one write, unless a single line is longer.
const MAX_BATCH: usize = 64 * 1024;
/// Pause after a failed write: first and longest.
const RETRY_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Something to say about the queue, outside of it.
#[derive(Debug)]
pub enum LogEvent<'a> {
    /// The reader stalls: from here on lines are dropped.
    Dropping,
    /// Writing failed; it is tried again.
    Failed(&'a io::Error),
    /// Lines are written again, after as many had been dropped.
    Resumed(u64),
}

/// Handle on the queue; share it by `Arc`. Dropping the last one ends the writer once all lines are
/// written.
#[derive(Debug)]
pub struct LogQueue {
    items: SyncSender<Item>,
    notation: Option<Notation>,
    shared: Arc<Shared>,
}

type Said = Box<dyn Fn(LogEvent<'_>) + Send + Sync>;

#[derive(Debug)]
enum Item {
    Line(Vec<u8>),
    /// Asks for a word when everything before is written.
    Flush(SyncSender<()>),
}

struct Shared {
    waiting_bytes: AtomicUsize,
    dropped: AtomicU64,
    /// Value of `dropped` when the writer last said so.
    told: AtomicU64,
    said: Said,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl LogQueue {
    /// Starts the writer to `out` as thread `name`. With a `notation`, unprintable characters of a
    /// line are escaped, all but its end. `said` is called from any thread and must not wait.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        name: &str,
        out: impl Write + Send + 'static,
        notation: Option<Notation>,
        said: impl Fn(LogEvent<'_>) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (items, queue) = sync_channel(MAX_LINES);
        let shared = Arc::new(Shared {
            waiting_bytes: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
            told: AtomicU64::new(0),
            said: Box::new(said),
        });
        let writer = Writer {
            out,
            shared: Arc::clone(&shared),
            failing: false,
        };
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || writer.run(&queue))?;
        Ok(Self {
            items,
            notation,
            shared,
        })
    }

    /// Adds a line, which ends with its line end, or drops and counts it if there is no room.
    pub fn push(&self, line: Vec<u8>) {
        let line = match self.notation {
            Some(notation) => one_line(line, notation),
            None => line,
        };
        let size = line.len();
        let waiting = self.shared.waiting_bytes.fetch_add(size, Ordering::Relaxed);
        // A single line longer than the limit passes where nothing else waits.
        let fits = waiting == 0 || waiting.saturating_add(size) <= MAX_BYTES;
        if fits && self.items.try_send(Item::Line(line)).is_ok() {
            return;
        }
        self.shared.waiting_bytes.fetch_sub(size, Ordering::Relaxed);
        let before = self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        if before == self.shared.told.load(Ordering::Relaxed) {
            (self.shared.said)(LogEvent::Dropping);
        }
    }

    /// Lines dropped so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Waits until all lines are written, at most for `limit`; before the process ends.
    pub fn flush(&self, limit: Duration) {
        let (done_tx, done_rx) = sync_channel(1);
        match self.items.try_send(Item::Flush(done_tx)) {
            Ok(()) => drop(done_rx.recv_timeout(limit)),
            // A full queue belongs to a reader that stalls.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
    }
}

/// Takes one record for each write, as the log's formatter makes them.
impl Write for &LogQueue {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        self.push(record.to_vec());
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes one line of a record, whatever its values contain.
fn one_line(record: Vec<u8>, notation: Notation) -> Vec<u8> {
    let (body, end) = match record.strip_suffix(b"\n") {
        Some(body) => (body, true),
        None => (record.as_slice(), false),
    };
    if body.iter().all(|byte| (0x20..0x7f).contains(byte)) {
        return record;
    }
    let mut line = escaped(&String::from_utf8_lossy(body), notation)
        .into_owned()
        .into_bytes();
    if end {
        line.push(b'\n');
    }
    line
}

struct Writer<W> {
    out: W,
    shared: Arc<Shared>,
    failing: bool,
}

impl<W: Write> Writer<W> {
    fn run(mut self, queue: &Receiver<Item>) {
        while let Ok(first) = queue.recv() {
            let mut batch = Vec::new();
            let mut flushed = None;
            let mut next = Some(first);
            // One write for all lines that wait, which keeps up with bursts.
            while let Some(item) = next.take() {
                match item {
                    Item::Line(line) if batch.is_empty() => batch = line,
                    Item::Line(line) => batch.extend_from_slice(&line),
                    Item::Flush(done) => flushed = Some(done),
                }
                if batch.len() < MAX_BATCH && flushed.is_none() {
                    next = queue.try_recv().ok();
                }
            }
            self.write_all(&batch);
            // Room only now: what is being written still takes memory.
            let waiting = &self.shared.waiting_bytes;
            waiting.fetch_sub(batch.len(), Ordering::Relaxed);
            self.tell_dropped();
            if let Some(done) = flushed {
                let _ = done.try_send(());
            }
        }
    }

    /// Writes until all is written, however often that fails.
    fn write_all(&mut self, mut rest: &[u8]) {
        let mut pause = RETRY_BACKOFF.0;
        while !rest.is_empty() {
            match self.out.write(rest).and_then(|n| {
                self.out.flush()?;
                Ok(n)
            }) {
                Ok(n) if n > 0 => {
                    rest = rest.get(n..).unwrap_or_default();
                    self.failing = false;
                    pause = RETRY_BACKOFF.0;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                failed => {
                    let error = failed
                        .err()
                        .unwrap_or_else(|| io::ErrorKind::WriteZero.into());
                    if !std::mem::replace(&mut self.failing, true) {
                        (self.shared.said)(LogEvent::Failed(&error));
                    }
                    // A thread of its own, so nobody else waits.
                    std::thread::park_timeout(pause);
                    pause = (pause * 2).min(RETRY_BACKOFF.1);
                }
            }
        }
    }

    fn tell_dropped(&self) {
        let dropped = self.shared.dropped.load(Ordering::Relaxed);
        let told = self.shared.told.swap(dropped, Ordering::Relaxed);
        if dropped > told {
            (self.shared.said)(LogEvent::Resumed(dropped - told));
        }
    }
}

#[cfg(test)]
mod tests;
