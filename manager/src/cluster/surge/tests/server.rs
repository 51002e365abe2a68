//! An API server of one ReplicaSet.

use super::*;

/// Requests of a manager to the API server, in the order of a surge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    WriteDown,
    Grow,
    Evict,
    Shrink,
    Forget,
}

pub(super) const STEPS: [Step; 5] = [
    Step::WriteDown,
    Step::Grow,
    Step::Evict,
    Step::Shrink,
    Step::Forget,
];

/// Far more than anything takes, on a clock that jumps.
pub(super) const STEP_TIMEOUT: Duration = Duration::from_secs(3600);

/// An API server with one ReplicaSet, its controller, and the manager's ConfigMap.
pub(super) struct Server {
    state: Mutex<State>,
    done: watch::Sender<Option<Step>>,
}

pub(super) struct State {
    pub(super) replicas: i32,
    pub(super) pods: Vec<PodFacts>,
    pub(super) config: BTreeMap<String, String>,
    pub(super) steps: Vec<Step>,
    /// Pods that were made.
    made: usize,
    /// Digest of pods that the webhook gives an agent; none: it is not there.
    pub(super) digest: Option<String>,
    /// New pods become ready.
    pub(super) serves: bool,
    /// Time from an eviction until the ReplicaSet's controller hears of it.
    pub(super) hears_after: Duration,
    has_heard: bool,
    /// Most pods that a quota allows, those included that end.
    pub(super) most: usize,
    /// Evictions that a disruption budget refuses from now on.
    pub(super) refusals: usize,
    /// Step after which the manager hears nothing more, and does nothing.
    pub(super) last: Option<Step>,
    /// Caches of the manager that lives.
    pub(super) caches: Arc<Caches>,
}

impl State {
    /// Does what the ReplicaSet's controller would, and shows it to the watches.
    pub(super) fn reconcile(&mut self) {
        let wanted = usize::try_from(self.replicas).unwrap();
        while self.pods.len() < wanted && self.made < self.most {
            self.made += 1;
            let mut pod = pod(self.made, self.digest.as_deref());
            pod.ready = self.serves;
            self.pods.push(pod);
        }
        while self.pods.len() > wanted {
            let idle = self.pods.iter().rposition(|pod| !pod.ready);
            let youngest = self.pods.len() - 1;
            self.pods.remove(idle.unwrap_or(youngest));
        }
        self.show();
    }

    pub(super) fn show(&self) {
        let pods = self.pods.iter();
        let pods = pods.map(|pod| ("n".to_owned(), pod.name.clone(), pod.clone()));
        self.caches.pods.replace(None, pods.collect());
        let sets = &self.caches.replica_sets;
        sets.put("n", "bare", replica_set(self.replicas));
        self.caches.touch("n");
    }

    fn answer(&mut self, path: &str, body: &Value) -> (u16, Option<Step>) {
        if path.ends_with("/configmaps/traffic-manager") {
            let data = body["data"].as_object().unwrap();
            for (key, value) in data {
                match value.as_str() {
                    Some(text) => self.config.insert(key.clone(), text.to_owned()),
                    None => self.config.remove(key),
                };
            }
            let step = match data.get(crate::cluster::saved_state::SURGES) {
                None => None,
                Some(Value::Null) => Some(Step::Forget),
                Some(_) => Some(Step::WriteDown),
            };
            return (200, step);
        }
        if path.ends_with("/replicasets/bare/scale") {
            assert_eq!(body[0]["value"], "uid");
            if body[1]["value"] != self.replicas {
                return (422, None);
            }
            let to = i32::try_from(body[2]["value"].as_i64().unwrap()).unwrap();
            let step = match to - self.replicas {
                0 => None,
                1 => Some(Step::Grow),
                _ => Some(Step::Shrink),
            };
            assert!(self.has_heard, "the controller takes the second pod away");
            self.replicas = to;
            self.reconcile();
            return (200, step);
        }
        if let Some(name) = path.strip_suffix("/eviction") {
            let ready = self.pods.iter().filter(|it| it.ready).count();
            assert!(ready > 1, "nobody serves: {:?}", self.steps);
            if let Some(left) = self.refusals.checked_sub(1) {
                self.refusals = left;
                return (429, None);
            }
            self.pods.retain(|pod| !name.ends_with(&pod.name));
            self.has_heard = self.hears_after.is_zero();
            match self.has_heard {
                true => self.reconcile(),
                false => self.show(),
            }
            return (201, Some(Step::Evict));
        }
        (201, None)
    }
}

impl Server {
    /// One pod, without an agent.
    pub(super) fn new() -> Arc<Self> {
        let state = State {
            replicas: 1,
            pods: Vec::new(),
            config: BTreeMap::new(),
            steps: Vec::new(),
            made: 0,
            digest: None,
            serves: true,
            refusals: 0,
            hears_after: Duration::ZERO,
            has_heard: true,
            most: usize::MAX,
            last: None,
            caches: Caches::new(&[Kind::ReplicaSet]),
        };
        let server = Arc::new(Self {
            state: Mutex::new(state),
            done: watch::Sender::new(None),
        });
        server.change(State::reconcile);
        server
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut lock(&self.state))
    }

    pub(super) fn client(self: &Arc<Self>) -> Client {
        let this = self.clone();
        let service = tower::service_fn(move |request| this.clone().serve(request));
        Client::new(service, "n")
    }

    async fn serve(self: Arc<Self>, request: Request<Body>) -> Result<Response<Body>, kube::Error> {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect_bytes().await?;
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let (code, step, is_last) = self.change(|state| {
            let (code, step) = state.answer(&path, &body);
            state.steps.extend(step);
            (code, step, step.is_some() && step == state.last)
        });
        if step.is_some() {
            self.done.send_replace(step);
        }
        if step == Some(Step::Evict) {
            let this = self.clone();
            tokio::spawn(async move {
                sleep(this.change(|state| state.hears_after)).await;
                this.change(|state| {
                    state.has_heard = true;
                    state.reconcile();
                });
            });
        }
        if is_last {
            std::future::pending::<()>().await;
        }
        let status = json!({"kind": "Status", "status": "Failure", "code": code, "message": "no"});
        let answer = if code < 300 { json!({}) } else { status };
        let response = Response::builder().status(code);
        Ok(response
            .body(Body::from(answer.to_string().into_bytes()))
            .unwrap())
    }

    pub(super) async fn has_done(&self, step: Step) {
        let mut done = self.done.subscribe();
        let done = timeout(STEP_TIMEOUT, done.wait_for(|it| *it == Some(step))).await;
        assert!(
            done.is_ok(),
            "{step:?} never came: {:?}",
            self.change(|state| state.steps.clone())
        );
    }
}

pub(super) fn replica_set(replicas: i32) -> WorkloadFacts {
    let object = json!({
        "metadata": {"name": "bare", "namespace": "n", "uid": "uid"},
        "spec": {"replicas": replicas, "template": {"metadata": {"labels": {"app": "bare"}},
            "spec": {"containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]}}},
    });
    WorkloadFacts::new(Kind::ReplicaSet, &serde_json::from_value(object).unwrap())
}

fn pod(number: usize, digest: Option<&str>) -> PodFacts {
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "bare",
        "uid": "uid", "controller": true});
    let mut object = json!({
        "metadata": {"name": format!("bare-{number}"), "namespace": "n",
            "uid": format!("pod-{number}"), "ownerReferences": [owner]},
        "spec": {"containers": [{"name": "app"}]},
    });
    if let Some(digest) = digest {
        object["metadata"]["annotations"] = json!({injector::annotations::DIGEST: digest});
        object["spec"]["containers"] = json!([{"name": "app"}, {"name": "traffic-agent"}]);
    }
    PodFacts::from(&serde_json::from_value::<PodObject>(object).unwrap())
}
