//! The task of a lane: a connection to the workstation, and one copy after the other on it.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::addr::Caller;
use crate::io::buffers::Buf;
use crate::io::conn::Conn;
use crate::proxy::context::ConnContext;
use crate::proxy::wiretap::answer::Answer;
use crate::proxy::wiretap::copy::CopyReader;
use crate::proxy::wiretap::slots::{LaneSlot, Overdue, next_source_port};
use crate::proxy::wiretap::speech::Speech;
use crate::telemetry::metrics::CopyEnd;
use crate::upstream::copy_memory::CopiedBytes;
use crate::upstream::workstation::FirstWrite;
use traffic_core::routing::Intercept;
use traffic_proto::clock::now_unix;

/// Time without a copy after which a lane ends.
pub(super) const LANE_IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time without a byte taken after which a workstation counts as stalled.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for an answer before the next copy gets a connection of its own.
const ANSWER_DELAY: Duration = Duration::from_secs(1);
/// Time a connection is kept for an answer, so that whoever works on it is not cut off.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The lane from one caller's connection to one wiretap's workstation.
pub(super) struct LaneTask {
    wiretap: Arc<Intercept>,
    pub(super) context: ConnContext,
    /// The address under which the workstation sees this lane.
    source: Caller,
    pub(super) waiting: mpsc::Receiver<CopyReader>,
    conn: Option<Conn>,
    _slot: LaneSlot,
}

/// How the writing of a copy ended.
enum WriteEnd {
    All,
    Failed,
    Stalled,
}

impl LaneTask {
    pub(super) fn new(
        wiretap: Arc<Intercept>,
        context: ConnContext,
        waiting: mpsc::Receiver<CopyReader>,
        slot: LaneSlot,
    ) -> Self {
        let source = SocketAddr::new(context.caller.0.ip(), next_source_port());
        Self {
            wiretap,
            context,
            source: Caller::new(source),
            waiting,
            conn: None,
            _slot: slot,
        }
    }

    /// Carries copies until the caller's connection is over, or none has come for a while.
    pub(super) async fn run(mut self) {
        loop {
            match timeout(LANE_IDLE_TIMEOUT, self.waiting.recv()).await {
                Ok(Some(copy)) => self.deliver(copy).await,
                Ok(None) => return,
                // What came just now is still taken.
                Err(_) => self.waiting.close(),
            }
        }
    }

    async fn deliver(&mut self, mut copy: CopyReader) {
        let given_up = copy.given_up();
        let end = tokio::select! {
            biased;
            end = self.carry(&mut copy) => end,
            () = given_up => CopyEnd::Broken,
        };
        copy.end(end);
        if end != CopyEnd::Sent
            && let Some(mut conn) = self.conn.take()
        {
            // The workstation must not take what it has got for the whole.
            conn.abort();
        }
    }

    async fn carry(&mut self, copy: &mut CopyReader) -> CopyEnd {
        if self.conn.as_mut().is_some_and(has_ended) {
            self.conn = None;
        }
        let conn = match self.conn.take() {
            Some(conn) => conn,
            None => match self.connect().await {
                Some(conn) => conn,
                None => return CopyEnd::Unreachable,
            },
        };
        let conn = self.conn.insert(conn);
        let mut writing = Writing::new(copy.speech.clone());
        match writing.run(copy, conn).await {
            WriteEnd::Stalled => return CopyEnd::Slow,
            // It has said what it thinks of the request, and reads no more of it.
            WriteEnd::Failed if writing.answered_early() => {}
            WriteEnd::Failed => return CopyEnd::Lost,
            WriteEnd::All if !copy.is_complete() => return CopyEnd::Broken,
            WriteEnd::All => {}
        }
        copy.end(CopyEnd::Sent);
        self.finish(writing.answer, &copy.speech).await;
        CopyEnd::Sent
    }

    /// Connects to the workstation.
    pub(super) async fn connect(&mut self) -> Option<Conn> {
        let port = &self.context.port;
        let hello = self.context.hello.as_deref();
        let way = port.workstations();
        let dial = way.connect(&self.wiretap, self.source, hello, FirstWrite::AfterDial);
        dial.await.ok()
    }

    /// Waits for the answer, not for long: the next copy may be waiting.
    async fn finish(&mut self, mut answer: Answer, speech: &Speech) {
        let Some(mut conn) = self.conn.take() else {
            return;
        };
        if matches!(speech, Speech::Unread) {
            let _ = timeout(ANSWER_DELAY, conn.shutdown()).await;
        }
        match timeout(ANSWER_DELAY, poll_fn(|cx| answer.poll(&mut conn, cx))).await {
            Ok(reusable) => {
                self.wiretap.stats.copy_pause.keeps_up();
                self.conn = reusable.then_some(conn);
            }
            Err(_) => self.wait_aside(conn, answer),
        }
    }

    /// Waits for a late answer in a task of its own, for a few of them.
    fn wait_aside(&self, mut conn: Conn, mut answer: Answer) {
        let stats = &self.wiretap.stats;
        let Some(overdue) = Overdue::begin(stats) else {
            stats.copy_pause.begin(now_unix());
            return;
        };
        let drain = self.context.port.drain.clone();
        self.context.port.drain.spawn(async move {
            let _overdue = overdue;
            tokio::select! {
                _ = poll_fn(|cx| answer.poll(&mut conn, cx)) => {}
                () = tokio::time::sleep(ANSWER_TIMEOUT) => {}
                () = drain.draining() => {}
            }
        });
    }
}

/// Returns true if a kept connection has ended, or has said something unasked.
fn has_ended(conn: &mut Conn) -> bool {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    Buf::default().poll_fill(conn, &mut cx).is_ready()
}

/// A copy that is being written, and the answer that may come meanwhile.
struct Writing {
    piece: Option<(CopiedBytes, usize)>,
    written: u64,
    answer: Answer,
    speech: Speech,
}

impl Writing {
    fn new(speech: Speech) -> Self {
        Self {
            piece: None,
            written: 0,
            answer: Answer::to(speech.clone()),
            speech,
        }
    }

    async fn run(&mut self, copy: &mut CopyReader, conn: &mut Conn) -> WriteEnd {
        let mut before = 0;
        loop {
            let written = poll_fn(|cx| self.poll(copy, conn, cx));
            match timeout(STALL_TIMEOUT, written).await {
                Ok(Ok(())) => return WriteEnd::All,
                Ok(Err(_)) => return WriteEnd::Failed,
                // Nothing to write is the caller's pause.
                Err(_) if self.piece.is_none() || self.written != before => before = self.written,
                Err(_) => return WriteEnd::Stalled,
            }
        }
    }

    fn poll(
        &mut self,
        copy: &mut CopyReader,
        conn: &mut Conn,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let _ = self.answer.poll(conn, cx);
        if self.answer.is_over() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        loop {
            if let Some((piece, at)) = &mut self.piece {
                let rest = piece.as_ref().get(*at..).unwrap_or_default();
                if !rest.is_empty() {
                    let n = ready!(Pin::new(&mut *conn).poll_write(cx, rest))?;
                    if n == 0 {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    *at += n;
                    self.written += n as u64;
                    continue;
                }
                self.piece = None;
            }
            match ready!(copy.pieces.poll_recv(cx)) {
                Some(piece) => {
                    copy.took(piece.as_ref().len());
                    self.piece = Some((piece, 0));
                }
                None => return Pin::new(conn).poll_flush(cx),
            }
        }
    }

    fn answered_early(&self) -> bool {
        matches!(self.speech, Speech::Http1 { .. }) && self.answer.is_over()
    }
}
