//! Rules that come and go, and what a request may expect of them.
//!
//! Every rule takes one value of `x-dev`. `always` is in force on the first port all the time. The
//! slow rule of a port is put in force and taken back with the agent's word for it, so that between
//! two changes it is known exactly who answers. Quick rules come and go twenty times a second, each
//! with a value of its own, without waiting for anybody; a slow rule that is in force proves that
//! the agent has heard of everything that was done before it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use harness::caller;
use harness::system::System;
use harness::wait::until;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::transport::Channel;
use traffic_proto::manager::manager_client::ManagerClient;
use traffic_proto::manager::{
    CreateInterceptRequest, InterceptSpec, RemoveInterceptRequest2, SessionInfo,
};

use crate::workstation;

/// Expected servers of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    App,
    Workstation,
    Either,
}

/// The rules of one port.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    /// The rule `always` is in force.
    always: bool,
    /// Phase: off, coming, on, going.
    slow: AtomicU64,
    /// The newest quick rule.
    newest: AtomicU64,
    /// Quick rules up to this one are no longer in force.
    gone: AtomicU64,
}

/// A request's value of `x-dev` with the state known when it was sent.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) dev: Option<String>,
    slow: Option<u64>,
    expected: Expected,
}

impl Rules {
    /// Rules of a port where `always` is in force, or is not.
    pub(crate) fn of(always: bool) -> Arc<Self> {
        Arc::new(Self {
            always,
            ..Self::default()
        })
    }

    /// Returns the header value of request number `number`.
    pub(crate) fn ask(&self, number: u64) -> Asked {
        let sure = |dev: Option<String>, expected| Asked {
            dev,
            slow: None,
            expected,
        };
        match number % 6 {
            0 => sure(None, Expected::App),
            1 if self.always => sure(Some("always".into()), Expected::Workstation),
            1 => sure(Some("always".into()), Expected::App),
            2 => {
                let slow = self.slow.load(Ordering::SeqCst);
                Asked {
                    dev: Some("slow".into()),
                    slow: Some(slow),
                    expected: Expected::Either,
                }
            }
            3 => sure(
                Some(quick(self.newest.load(Ordering::SeqCst))),
                Expected::Either,
            ),
            4 => sure(Some(quick(self.gone.load(Ordering::SeqCst))), Expected::App),
            _ => sure(Some("nobody's".into()), Expected::App),
        }
    }

    /// Returns the expected server, as known when the response has arrived.
    pub(crate) fn expected(&self, asked: &Asked) -> Expected {
        let Some(before) = asked.slow else {
            return asked.expected;
        };
        let unchanged = self.slow.load(Ordering::SeqCst) == before;
        match before % 4 {
            0 if unchanged => Expected::App,
            2 if unchanged => Expected::Workstation,
            _ => Expected::Either,
        }
    }

    /// Returns the number of quick rules so far.
    pub(crate) fn quick(&self) -> u64 {
        self.newest.load(Ordering::SeqCst)
    }

    /// Returns how often the slow rule was in force.
    pub(crate) fn slow(&self) -> u64 {
        (self.slow.load(Ordering::SeqCst) + 2) / 4
    }
}

fn quick(number: u64) -> String {
    format!("quick-{number}-")
}

/// Creates and removes intercepts in the name of a workstation that serves them.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    manager: ManagerClient<Channel>,
    session: SessionInfo,
    /// A spec that is in force, to be varied.
    spec: InterceptSpec,
    admin: SocketAddr,
}

impl Control {
    /// Acts as a workstation beside the one whose intercept `name` the agent serves, with the same
    /// local server.
    pub(crate) async fn beside(system: &System, name: &str) -> Self {
        let endpoint = format!("http://{}", system.manager_address);
        let mut manager = ManagerClient::connect(endpoint).await.unwrap();
        // Without a session all intercepts are shown.
        let mut snapshots = manager
            .watch_intercepts(SessionInfo::default())
            .await
            .unwrap()
            .into_inner();
        let first = snapshots.message().await.unwrap().unwrap();
        let spec = first
            .intercepts
            .into_iter()
            .find_map(|it| it.spec.filter(|spec| spec.name == name))
            .unwrap();
        let session = workstation::attach(system, manager.clone()).await;
        Self {
            manager,
            session,
            spec: InterceptSpec {
                client: workstation::CLIENT.to_owned(),
                ..spec
            },
            admin: system.agent.admin(),
        }
    }

    async fn create(&self, name: &str, container_port: u16, dev: &str) {
        let mut spec = self.spec.clone();
        spec.name = name.to_owned();
        spec.container_port = container_port.into();
        spec.port_identifier = format!("{container_port}/TCP");
        spec.header_filters = [("x-dev".to_owned(), dev.to_owned())].into();
        let session = Some(self.session.clone());
        let request = CreateInterceptRequest {
            session,
            intercept_spec: Some(spec),
            ..Default::default()
        };
        self.manager
            .clone()
            .create_intercept(request)
            .await
            .unwrap();
    }

    async fn remove(&self, name: &str) {
        let request = RemoveInterceptRequest2 {
            session: Some(self.session.clone()),
            name: name.to_owned(),
        };
        self.manager
            .clone()
            .remove_intercept(request)
            .await
            .unwrap();
    }

    /// Waits until the agent serves the intercept, or no longer does.
    async fn until_served(&self, name: &str, serves: bool) {
        let (admin, name) = (self.admin, name.to_owned());
        let served = move || {
            let page = caller::get(admin, "/intercepts", &[]).unwrap();
            let page: serde_json::Value = serde_json::from_slice(&page.body).unwrap();
            let ports = page["ports"].as_array().unwrap();
            let mut all = ports
                .iter()
                .flat_map(|port| port["intercepts"].as_array().unwrap());
            all.any(|intercept| intercept["name"] == *name && intercept["state"] == "active")
        };
        let wait = move || until("the agent to follow", || (served() == serves).then_some(()));
        tokio::task::spawn_blocking(wait).await.unwrap();
    }

    /// Quick rules on a port: one comes and goes every 50 ms.
    pub(crate) async fn quick(self, container_port: u16, rules: Arc<Rules>, until: Instant) {
        let mut tick = tokio::time::interval(Duration::from_millis(25));
        // A machine that is late catches up.
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        while Instant::now() < until {
            tick.tick().await;
            let number = rules.newest.fetch_add(1, Ordering::SeqCst) + 1;
            let name = format!("{container_port}-{number}");
            self.create(&name, container_port, &quick(number)).await;
            tick.tick().await;
            self.remove(&name).await;
        }
    }

    /// The slow rule of a port: half a second on, half a second off.
    pub(crate) async fn slow(self, container_port: u16, rules: Arc<Rules>, until: Instant) {
        let name = format!("{container_port}-slow");
        let pause = Duration::from_millis(500);
        while Instant::now() < until {
            // Those before the newest have been removed; the newest itself may just be there.
            let gone = rules.newest.load(Ordering::SeqCst).saturating_sub(1);
            rules.slow.fetch_add(1, Ordering::SeqCst);
            self.create(&name, container_port, "slow").await;
            self.until_served(&name, true).await;
            rules.gone.store(gone, Ordering::SeqCst);
            rules.slow.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(pause).await;
            rules.slow.fetch_add(1, Ordering::SeqCst);
            self.remove(&name).await;
            self.until_served(&name, false).await;
            rules.slow.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(pause).await;
        }
    }
}
