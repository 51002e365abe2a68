//! gRPC channels of Go's library, with calls at full work: the program `tests/grpc_go` makes them
//! and tells how each ended.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use harness::programs;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::load::{Answer, Tally, Work, length};

/// Calls of a channel at a time.
const CALLS: u64 = 8;

/// Calls whose results are awaited, by id.
type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Value>>>>;

/// The program with its channels.
pub(crate) struct GoChannels {
    child: Child,
    orders: Mutex<ChildStdin>,
    waiting: Waiting,
    /// Reads results; returns what was said last.
    reader: JoinHandle<Value>,
    newest: AtomicU64,
}

impl GoChannels {
    /// Starts it with a channel to each address.
    pub(crate) fn start(addresses: &[SocketAddr]) -> Self {
        let mut child = Command::new(programs::go("grpc_go"))
            .arg("load")
            .args(addresses.iter().map(SocketAddr::to_string))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = Mutex::new(child.stdin.take().unwrap());
        let results = BufReader::new(child.stdout.take().unwrap());
        let waiting = Waiting::default();
        let waits = Arc::clone(&waiting);
        let reader = std::thread::spawn(move || {
            let mut last = Value::Null;
            for line in results.lines() {
                last = serde_json::from_str(&line.unwrap()).unwrap();
                let id = last["id"].as_u64().unwrap();
                if let Some(waits) = waits.lock().unwrap().remove(&id) {
                    // A call that nobody waits for any more has been counted as failed.
                    let _ = waits.send(last.clone());
                }
            }
            last
        });
        Self {
            child,
            orders,
            waiting,
            reader,
            newest: AtomicU64::new(0),
        }
    }

    /// Keeps calls under way on a channel until the tally is stopped.
    pub(crate) async fn grpc(self: Arc<Self>, channel: usize, work: Work, number: u64) {
        let calls = (0..CALLS).map(|call| self.calls(channel, &work, number + call));
        futures_util::future::join_all(calls).await;
    }

    async fn calls(&self, channel: usize, work: &Work, mut number: u64) {
        while !work.tally.stopped() {
            number += 1;
            let asked = work.rules.ask(number);
            let sent = length(number);
            let answer = self.call(channel, asked.dev.as_deref(), sent).await;
            work.judge("gRPC of Go", &asked, answer, sent);
        }
    }

    async fn call(&self, channel: usize, dev: Option<&str>, size: usize) -> Result<Answer, String> {
        let id = self.newest.fetch_add(1, Ordering::Relaxed) + 1;
        let (done, result) = oneshot::channel();
        self.waiting.lock().unwrap().insert(id, done);
        let order = json!({
            "ID": id, "Channel": channel, "Method": "/test.Echo/Unary",
            "Dev": dev.unwrap_or_default(), "Size": size,
        });
        writeln!(self.orders.lock().unwrap(), "{order}").unwrap();
        // It has a deadline of its own.
        let result = result
            .await
            .map_err(|_| "the program has ended".to_owned())?;
        let text = |name: &str| result[name].as_str().unwrap_or_default().to_owned();
        match text("error").as_str() {
            "" => Ok(Answer {
                by: text("by"),
                connection: text("connection"),
                size: usize::try_from(result["size"].as_u64().unwrap()).unwrap(),
            }),
            error => Err(error.to_owned()),
        }
    }

    /// Ends it, and notes how many connections it has made and what was given back unsent.
    pub(crate) fn end(self, tally: &Tally) {
        drop(self.orders);
        let last = self.reader.join().unwrap();
        let mut child = self.child;
        assert!(child.wait().unwrap().success());
        let count = |name: &str| last[name].as_u64().unwrap();
        tally
            .connections
            .store(count("connections"), Ordering::Relaxed);
        tally.unsent.store(count("unsent"), Ordering::Relaxed);
    }
}
