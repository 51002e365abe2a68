//! The API server's audit log: who asked for what, and whether it was granted. The cluster's own
//! parts are left out of it, see `conf/audit.yaml`.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::PathBuf;

use harness::wait::until;
use serde::Deserialize;

use crate::cluster::Cluster;

/// One request to the API server.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// `get`, `list`, `watch`, `create` …
    pub verb: String,
    /// Path with its query.
    #[serde(rename = "requestURI")]
    pub uri: String,
    /// Name of the caller and its groups.
    pub user: Asker,
    /// Program that asked.
    #[serde(default)]
    pub user_agent: String,
    /// Object that it was about, unless the path names none.
    #[serde(rename = "objectRef")]
    pub object: Option<Object>,
    /// Answer, in the stages that have one.
    #[serde(rename = "responseStatus")]
    pub status: Option<Status>,
}

/// Who asked.
#[derive(Clone, Debug, Deserialize)]
pub struct Asker {
    /// `system:serviceaccount:NAMESPACE:NAME` for programs in pods.
    pub username: String,
    /// Groups that rights may come from.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// What a rule of RBAC is about.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase", default)]
pub struct Object {
    /// Empty for the core group.
    pub api_group: String,
    /// Plural name of the kind.
    pub resource: String,
    /// Such as `exec` or `eviction`; empty for the object itself.
    pub subresource: String,
    /// Empty for objects of the whole cluster and for lists over all namespaces.
    pub namespace: String,
    /// Empty for lists.
    pub name: String,
}

/// An HTTP status.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// 403 for what the caller's rights don't cover.
    pub code: u16,
}

impl Request {
    /// True for one that the caller had no right to.
    pub fn is_refused(&self) -> bool {
        self.status
            .as_ref()
            .is_some_and(|status| status.code == 403)
    }
}

/// A reader of the log, from some moment on.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    offset: u64,
}

impl Log {
    /// From the cluster's start.
    pub fn whole(cluster: &Cluster) -> Self {
        Self {
            path: cluster.folder().join("log/audit.jsonl"),
            offset: 0,
        }
    }

    /// From now on.
    pub fn from_now(cluster: &Cluster) -> Self {
        let mut log = Self::whole(cluster);
        log.offset = std::fs::metadata(&log.path).unwrap().len();
        log
    }

    /// Requests that came since the last call.
    pub fn read(&mut self) -> Vec<Request> {
        let mut file = BufReader::new(File::open(&self.path).unwrap());
        file.seek(SeekFrom::Start(self.offset)).unwrap();
        let mut requests = Vec::new();
        let mut line = String::new();
        // A line that has no end yet is read the next time.
        while file.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
            self.offset += line.len() as u64;
            let request = serde_json::from_str(&line);
            requests.push(request.unwrap_or_else(|error| panic!("audit log: {error}: {line}")));
            line.clear();
        }
        requests
    }

    /// Waits for a request; those before it are forgotten.
    pub fn wait(&mut self, what: &str, mut wanted: impl FnMut(&Request) -> bool) -> Request {
        until(what, || self.read().into_iter().find(&mut wanted))
    }
}
