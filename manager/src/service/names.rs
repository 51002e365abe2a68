//! Names that workstations look up, by the agents of their namespace or by the manager.

use tonic::{Request, Response, Status};
use traffic_proto::manager as pb;
use traffic_proto::system_dns::LookupError;

use super::{Answer, Service, id};
use crate::callers::Caller;
use crate::dns;
use crate::snapshots;
use crate::watch_body::Messages;
use crate::watches::deliver;

impl Service {
    pub(super) async fn resolve(
        &self,
        request: Request<pb::DnsRequest>,
    ) -> Answer<pb::DnsResponse> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        self.own_or_new(&caller, &id(request.session.clone()))?;
        let Ok(_place) = self.names.place(&request.name) else {
            return Ok(Response::new(dns::failure()));
        };
        let resolving = self
            .names
            .resolve(&self.shared, request, self.settings.lookup);
        Ok(Response::new(resolving.await))
    }

    pub(super) async fn take_answer(&self, request: Request<pb::DnsAgentResponse>) -> Answer<()> {
        let caller = Caller::of(&request);
        let answer = request.into_inner();
        self.own_or_new(&caller, &id(answer.session.clone()))?;
        self.names.answer(answer);
        Ok(Response::new(()))
    }

    pub(super) async fn questions(
        &self,
        request: Request<pb::SessionInfo>,
    ) -> Answer<Messages<pb::DnsRequest>> {
        let (session, end) = self.session(request)?;
        let names = self
            .shared
            .read(|registry| registry.sessions.get(&session).map(|it| it.names.clone()))?;
        Ok(Response::new(deliver(names, end)))
    }

    pub(super) async fn look_up(
        &self,
        request: Request<pb::LookupRequest>,
    ) -> Answer<pb::LookupResponse> {
        let name = request.into_inner().name;
        let _place = self.names.place(&name)?;
        if name.len() < 2 || !name.ends_with('.') {
            return Err(Status::invalid_argument(format!(
                "name {name:?} must have a label and end with a dot"
            )));
        }
        let found = self.names.addresses(&name).await;
        let addresses = found.map_err(|error| match error {
            LookupError::NotFound => Status::not_found(format!("{name} has no address")),
            LookupError::Timeout => Status::deadline_exceeded(format!("{name}: {error}")),
            error => Status::unavailable(format!("{name}: {error}")),
        })?;
        let canonical = addresses.into_iter().map(|ip| ip.to_canonical());
        Ok(Response::new(pb::LookupResponse {
            ips: canonical.map(snapshots::ip_bytes).collect(),
        }))
    }
}
