//! Of several managers one leads; a Lease of the cluster says which.
//!
//! A manager of another revision asks the one that leads to hand over, so that a rolling update ends
//! with a new one leading and without a gap. One whose process has ended is replaced at once, one that
//! does not renew in time as well.

mod leader_connection;

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::replacing::said;
use leader_connection::LeaderConnection;

const NAME: &str = "traffic-manager";
/// Annotation with the address of the pod that leads.
const ADDRESS: &str = "telepresence.io/address";
/// Annotation by which another manager asks to take over.
const SUCCESSOR: &str = "telepresence.io/successor";
/// A holder that has not renewed for so long is gone.
const LEASE_TTL: Duration = Duration::from_secs(8);
/// Interval of the holder's renewals.
const RENEW_INTERVAL: Duration = Duration::from_secs(2);
/// Interval of the others' looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Time for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// What a manager knows while it waits for its turn.
struct Wait {
    /// Holder and time of the last renewal, and since when they have been the same.
    seen: Option<(Option<String>, Option<MicroTime>, Instant)>,
    asks: bool,
    connection: LeaderConnection,
    port: u16,
}

/// Part of a manager in the election.
#[derive(Clone)]
pub(crate) struct Candidate {
    api: Api<Lease>,
    namespace: String,
    identity: String,
    address: Option<IpAddr>,
    /// Address of another manager that leads.
    leader: watch::Sender<Option<IpAddr>>,
}

impl Candidate {
    pub(crate) fn new(
        client: &Client,
        namespace: &str,
        pod: &str,
        address: Option<IpAddr>,
    ) -> Self {
        // Two processes of one pod name, such as a restarted container, must differ.
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let pod = if pod.is_empty() {
            "traffic-manager"
        } else {
            pod
        };
        Self {
            api: Api::namespaced(client.clone(), namespace),
            namespace: namespace.to_owned(),
            identity: format!("{pod}_{}", &unique[..8]),
            address,
            leader: watch::Sender::new(None),
        }
    }

    /// Address of another manager that leads, while this one waits.
    pub(crate) fn leader(&self) -> watch::Receiver<Option<IpAddr>> {
        self.leader.subscribe()
    }

    /// Waits until this manager leads. `asks`: the holder is asked to hand over. `port` is that of the
    /// managers' API.
    ///
    /// Without the right to a lease there is nobody to agree with, and the manager leads.
    pub(crate) async fn acquire(&self, asks: bool, port: u16) -> Option<Lease> {
        let mut wait = Wait {
            seen: None,
            asks,
            connection: LeaderConnection::default(),
            port,
        };
        loop {
            match self.attempt(&mut wait).await {
                Ok(Some(lease)) => {
                    tracing::info!(identity = self.identity, "leading");
                    return Some(lease);
                }
                Ok(None) => {}
                Err(kube::Error::Api(status)) if status.code == 403 => {
                    let error = kube::Error::Api(status);
                    let problem = said(&error, "get, create and update", "leases", &self.namespace);
                    tracing::error!("{problem}; this manager takes itself for the only one");
                    return None;
                }
                Err(error) => tracing::debug!("lease: {error}"),
            }
            tokio::select! {
                () = sleep(LOOK_INTERVAL) => {}
                () = wait.connection.ended() => {}
            }
        }
    }

    async fn attempt(&self, wait: &mut Wait) -> kube::Result<Option<Lease>> {
        let Some(lease) = self.api.get_opt(NAME).await? else {
            let made = self.api.create(&PostParams::default(), &self.fresh()).await;
            return match made {
                Ok(lease) => Ok(Some(lease)),
                Err(error) if is_conflict(&error) => Ok(None),
                Err(error) => Err(error),
            };
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().filter(|it| !it.is_empty());
        let state = (holder.clone(), spec.renew_time.clone());
        let seen = &mut wait.seen;
        let same = seen
            .as_ref()
            .is_some_and(|it| (&it.0, &it.1) == (&state.0, &state.1));
        if !same {
            // The clocks of two machines may differ: what counts is how long nothing has changed.
            *seen = Some((state.0, state.1, Instant::now()));
        }
        let expired = seen.as_ref().is_some_and(|it| it.2.elapsed() > LEASE_TTL);
        let free = holder
            .as_ref()
            .is_none_or(|it| *it == self.identity || self.was_of_this_pod(it, &lease));
        let other = address_of(&lease).filter(|it| !free && !expired && Some(*it) != self.address);
        self.leader.send_if_modified(|known| {
            let is_new = *known != other;
            *known = other;
            is_new
        });
        if free || expired {
            return self.take(lease).await;
        }
        if wait.connection.follow(other, wait.port).await {
            tracing::info!(?holder, "the leading manager is gone");
            return self.take(lease).await;
        }
        let is_older = holder
            .as_deref()
            .is_some_and(|it| revision(it) != revision(&self.identity));
        if std::mem::take(&mut wait.asks) && is_older {
            let patch = Patch::Merge(json!({"metadata": {"annotations": {
                SUCCESSOR: self.identity,
            }}}));
            self.api
                .patch(NAME, &PatchParams::default(), &patch)
                .await?;
            tracing::info!(holder, "asking the leading manager to hand over");
        }
        Ok(None)
    }

    /// Returns true for an earlier process of this pod, which has ended, or this one would not run.
    fn was_of_this_pod(&self, holder: &str, lease: &Lease) -> bool {
        let is_here = self.address.is_some() && address_of(lease) == self.address;
        is_here && pod(holder) == pod(&self.identity)
    }

    /// Renews until this manager leads no more.
    pub(crate) async fn hold(&self, mut lease: Lease) {
        let mut renewed = Instant::now();
        loop {
            sleep(RENEW_INTERVAL).await;
            if let Some(successor) = self.successor(&lease) {
                tracing::info!(successor, "handing over");
                self.give(&lease, &successor).await;
                return;
            }
            match timeout(REQUEST_TIMEOUT, self.renew(&lease)).await {
                Ok(Ok(Some(next))) => {
                    lease = next;
                    renewed = Instant::now();
                }
                Ok(Ok(None)) => {
                    tracing::warn!("another manager leads");
                    return;
                }
                Ok(Err(error)) => tracing::warn!("lease not renewed: {error}"),
                Err(_) => tracing::warn!("lease not renewed: no answer"),
            }
            if renewed.elapsed() > LEASE_TTL {
                tracing::error!("the lease could not be renewed in time");
                return;
            }
        }
    }

    /// Lets others lead at once.
    pub(crate) async fn release(&self) {
        let Ok(Ok(Some(lease))) = timeout(REQUEST_TIMEOUT, self.api.get_opt(NAME)).await else {
            return;
        };
        let spec = lease.spec.as_ref();
        if spec.and_then(|it| it.holder_identity.as_deref()) == Some(&self.identity) {
            self.give(&lease, "").await;
        }
    }

    /// A conflict may come from somebody who asks to take over.
    async fn renew(&self, lease: &Lease) -> kube::Result<Option<Lease>> {
        match self.take(lease.clone()).await? {
            Some(lease) => Ok(Some(lease)),
            None => {
                let lease = self.api.get(NAME).await?;
                let holder = lease
                    .spec
                    .as_ref()
                    .and_then(|it| it.holder_identity.clone());
                Ok((holder.as_ref() == Some(&self.identity)).then_some(lease))
            }
        }
    }

    fn successor(&self, lease: &Lease) -> Option<String> {
        let annotations = lease.metadata.annotations.as_ref()?;
        let successor = annotations.get(SUCCESSOR)?;
        (*successor != self.identity).then(|| successor.clone())
    }

    async fn give(&self, lease: &Lease, successor: &str) {
        let mut lease = lease.clone();
        if let Some(annotations) = &mut lease.metadata.annotations {
            annotations.remove(SUCCESSOR);
        }
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(successor.to_owned());
        spec.renew_time = Some(now());
        let parameters = PostParams::default();
        let given = self.api.replace(NAME, &parameters, &lease);
        if !matches!(timeout(REQUEST_TIMEOUT, given).await, Ok(Ok(_))) {
            tracing::debug!("the lease was not handed over; it expires");
        }
    }

    async fn take(&self, mut lease: Lease) -> kube::Result<Option<Lease>> {
        if let Some(annotations) = &mut lease.metadata.annotations
            && annotations.get(SUCCESSOR) == Some(&self.identity)
        {
            annotations.remove(SUCCESSOR);
        }
        let spec = lease.spec.get_or_insert_default();
        let changes = spec.holder_identity.as_ref() != Some(&self.identity);
        if changes {
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0) + 1);
            spec.acquire_time = Some(now());
        }
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = Some(ttl_seconds());
        spec.renew_time = Some(now());
        self.sign(&mut lease.metadata);
        match self.api.replace(NAME, &PostParams::default(), &lease).await {
            Ok(lease) => Ok(Some(lease)),
            Err(error) if is_conflict(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Says where the one that leads is.
    fn sign(&self, metadata: &mut ObjectMeta) {
        let annotations = metadata.annotations.get_or_insert_default();
        match self.address {
            Some(address) => annotations.insert(ADDRESS.to_owned(), address.to_string()),
            None => annotations.remove(ADDRESS),
        };
    }

    fn fresh(&self) -> Lease {
        let mut metadata = ObjectMeta {
            name: Some(NAME.to_owned()),
            ..ObjectMeta::default()
        };
        self.sign(&mut metadata);
        Lease {
            metadata,
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: Some(ttl_seconds()),
                acquire_time: Some(now()),
                renew_time: Some(now()),
                ..LeaseSpec::default()
            }),
        }
    }
}

/// Name of a manager's pod.
fn pod(identity: &str) -> &str {
    identity.rsplit_once('_').map_or(identity, |(pod, _)| pod)
}

/// Name of the ReplicaSet that a manager's pod belongs to.
fn revision(identity: &str) -> &str {
    let pod = pod(identity);
    pod.rsplit_once('-').map_or(pod, |(set, _)| set)
}

fn address_of(lease: &Lease) -> Option<IpAddr> {
    let annotations = lease.metadata.annotations.as_ref()?;
    annotations.get(ADDRESS)?.parse().ok()
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

fn ttl_seconds() -> i32 {
    i32::try_from(LEASE_TTL.as_secs()).unwrap_or(i32::MAX)
}

fn now() -> MicroTime {
    MicroTime(Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_of_one_revision_are_told_from_others() {
        let (one, other) = (
            "traffic-manager-69bc9fd947-kkbcg_0a1b2c3d",
            "traffic-manager-69bc9fd947-t9znp_ffffffff",
        );
        assert_eq!(revision(one), revision(other));
        assert_ne!(
            revision(one),
            revision("traffic-manager-5d4f8c7b6d-kkbcg_0a1b2c3d")
        );
        assert_eq!(revision("traffic-manager_0a1b2c3d"), "traffic");
    }
}
