//! A steady stream of requests from a pod, and what came of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use harness::wait::until;
use serde::{Deserialize, Deserializer};

use crate::namespace::Namespace;

/// A pod that sends requests at a steady rate, late answers or not.
#[derive(Debug)]
pub struct Load<'a> {
    namespace: &'a Namespace<'a>,
    pod: String,
}

/// What came of the requests so far.
#[derive(Clone, Debug, Deserialize)]
pub struct Tally {
    /// Requests that have ended, one way or the other.
    pub sent: u64,
    /// Good answers, by the name of the app that gave them.
    pub answers: BTreeMap<String, u64>,
    /// Requests without a good answer, by what was wrong.
    pub failures: BTreeMap<String, u64>,
    /// Times at which the first 200 failed ones began.
    #[serde(deserialize_with = "times")]
    pub failed_begins: Vec<SystemTime>,
    /// Longest time from a request to its whole answer.
    pub slowest_ms: u64,
    done: bool,
}

/// Reads times in milliseconds since 1970.
fn times<'a, D: Deserializer<'a>>(list: D) -> Result<Vec<SystemTime>, D::Error> {
    let list = Vec::<u64>::deserialize(list)?;
    let time = |&at: &u64| SystemTime::UNIX_EPOCH + Duration::from_millis(at);
    Ok(list.iter().map(time).collect())
}

impl Namespace<'_> {
    /// A pod that sends requests at a steady rate until told to stop.
    pub fn load(&self, url: &str, rate: u32, options: &[&str]) -> Load<'_> {
        Load::start(self, url, rate, options)
    }
}

impl<'a> Load<'a> {
    fn start(namespace: &'a Namespace<'a>, url: &str, rate: u32, options: &[&str]) -> Self {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let pod = format!("load-{}", STARTED.fetch_add(1, Ordering::Relaxed));
        let rate = rate.to_string();
        let mut arguments = vec!["load", url, "-rate", &rate];
        arguments.extend(options);
        let arguments = serde_json::to_string(&arguments).unwrap();
        namespace.apply(&format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: {pod}, labels: {{app: load}}}}
spec:
  restartPolicy: Never
  containers:
    - name: box
      image: localhost/rig/box:1
      imagePullPolicy: Never
      command: [app]
      args: {arguments}
"
        ));
        namespace.ready_pod(&pod);
        Self { namespace, pod }
    }

    /// The count of the last full second.
    pub fn tally(&self) -> Option<Tally> {
        let logs = self.namespace.logs(&self.pod, "box");
        logs.lines()
            .rev()
            .find_map(|line| serde_json::from_str(line).ok())
    }

    /// Waits until so many requests more have ended.
    pub fn goes_on_for(&self, requests: u64) -> Tally {
        let sent = |tally: Option<Tally>| tally.map_or(0, |tally| tally.sent);
        let goal = sent(self.tally()) + requests;
        until("the load to go on", || {
            self.tally().filter(|tally| tally.sent >= goal)
        })
    }

    /// Ends it and returns what came of all its requests.
    pub fn stop(self) -> Tally {
        let stopped = self
            .namespace
            .exec(&self.pod, Some("box"), &["sh", "-c", "kill -TERM 1"]);
        // The command may end with its container, before it can say that it succeeded.
        let what = format!("the load to end: {}", stopped.stderr);
        until(&what, || self.tally().filter(|tally| tally.done))
    }
}

impl Tally {
    /// Requests that failed.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Good answers of one app.
    pub fn answered_by(&self, name: &str) -> u64 {
        self.answers.get(name).copied().unwrap_or(0)
    }
}
