//! What clients ask about the cluster: its workloads, names and networks.

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use tonic::{Request, Response};
use traffic_proto::manager as pb;

use super::{Answer, Service, id};
use crate::callers::Caller;
use crate::connection::ConnectionEnd;
use crate::registry::Registry;
use crate::snapshots;
use crate::watch_body;
use crate::watch_body::Messages;
use crate::watches::{follow, follow_both, latest};

impl Service {
    pub(super) async fn workloads(
        &self,
        request: Request<pb::WorkloadEventsRequest>,
    ) -> Answer<Messages<pb::WorkloadEventsDelta>> {
        let (connection, caller) = (ConnectionEnd::of(&request), Caller::of(&request));
        let request = request.into_inner();
        let session = id(request.session_info);
        let end = self.end_of(&session, connection, &caller)?;
        let presence = self.presence(&session);
        if let Some(cluster) = &self.cluster {
            let also = Some(cluster.changes());
            let cluster = cluster.clone();
            let view = move |registry: &Registry| {
                let own = snapshots::namespace_of(registry, &session, &request.namespace);
                cluster.workload_infos(registry, &own)
            };
            let events = follow_both(&self.shared, also, end, view, snapshots::workload_events);
            return Ok(watch_body::answer(presence.hold(events)));
        }
        let view =
            move |registry: &Registry| snapshots::workloads(registry, &session, &request.namespace);
        let messages = follow(&self.shared, end, view, snapshots::workload_events);
        Ok(watch_body::answer(presence.hold(messages)))
    }

    pub(super) async fn cluster_info(
        &self,
        request: Request<pb::SessionInfo>,
    ) -> Answer<Messages<pb::ClusterInfo>> {
        let (session, end) = self.session(request)?;
        let presence = self.presence(&session);
        if let Some(cluster) = &self.cluster {
            return Ok(Response::new(presence.hold(latest(cluster.info(), end))));
        }
        let ip = Bytes::from(match self.address.ip() {
            std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
            std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
        });
        let dns = pb::Dns {
            cluster_domain: "cluster.local.".into(),
            ..pb::Dns::default()
        };
        let info = pb::ClusterInfo {
            manager_pod_ip: ip,
            manager_pod_port: self.address.port().into(),
            dns: Some(dns),
            ..pb::ClusterInfo::default()
        };
        // There is no cluster whose facts could change; the stream only has to last as long as the
        // session.
        let quiet = stream::once(async move { end.cancelled().await }).filter_map(async |()| None);
        let messages = stream::once(async { Ok(info) }).chain(quiet).boxed();
        Ok(Response::new(presence.hold(messages)))
    }
}
