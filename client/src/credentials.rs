//! Proofs of a client towards the manager: who its user is, by the bearer token by which the
//! kubeconfig logs in, and that its session is its own, by the key that the session was begun with.
//! The token goes to a manager that asks for it and is reached through the API server, and nowhere
//! else.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::time::sleep;
use tonic::Status;
use tonic::metadata::{Ascii, Binary, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use traffic_proto::manager_token::MODE;
use traffic_proto::session_key::{self, Peer, SessionKey};
use traffic_proto::sync::lock;

use crate::Failure;
use crate::cluster::Login;

/// Interval at which the kubeconfig's login is asked again; it renews its token when that is near
/// its end.
const RENEW_INTERVAL: Duration = Duration::from_secs(30);

/// The proofs that calls carry.
#[derive(Clone, Default)]
pub(crate) struct Credentials {
    token: Arc<Mutex<Option<MetadataValue<Ascii>>>>,
    session: Arc<Mutex<Option<Held>>>,
}

/// The key of the present session.
struct Held {
    key: Arc<SessionKey>,
    proof: MetadataValue<Binary>,
}

impl Credentials {
    /// Has further calls prove that a session is this client's; none has a key under managers of
    /// others.
    pub(crate) fn hold(&self, key: Option<Arc<SessionKey>>) {
        *lock(&self.session) = key.map(|key| Held {
            proof: key.metadata(&Peer::manager()),
            key,
        });
    }

    /// Returns the key of the present session.
    pub(crate) fn key(&self) -> Option<Arc<SessionKey>> {
        lock(&self.session).as_ref().map(|held| held.key.clone())
    }

    /// Gives the manager what its first answer asks for.
    pub(crate) async fn answer(
        &self,
        asked: &MetadataMap,
        login: Option<&Login>,
    ) -> Result<(), Failure> {
        let (Some(mode), Some(login)) = (asked.get(MODE), login) else {
            return Ok(());
        };
        let is_enforcing = mode == "enforcing";
        match login.token().await {
            Ok(Some(token)) => {
                *lock(&self.token) = Some(token);
                self.renewed_by(login.clone());
                Ok(())
            }
            Ok(None) if is_enforcing => Err(Failure::Failed(
                "the traffic-manager asks who you are (security.authentication.mode=enforcing), and \
                 the kubeconfig's user has no token: a client certificate proves nothing to it, \
                 because the API server's port-forward passes none on. Use a user with a token, \
                 for example kubectl config set-credentials ME --token=$(kubectl create token \
                 SERVICEACCOUNT)"
                    .into(),
            )),
            Err(error) if is_enforcing => Err(Failure::Failed(format!(
                "the kubeconfig's login fails: {error}"
            ))),
            Ok(None) | Err(_) => Ok(()),
        }
    }
}

impl Credentials {
    #[expect(
        clippy::disallowed_methods,
        reason = "it ends with the last user of the token"
    )]
    fn renewed_by(&self, login: Login) {
        tokio::spawn(renew(Arc::downgrade(&self.token), login));
    }
}

/// Keeps the token fresh as long as somebody uses it.
async fn renew(token: Weak<Mutex<Option<MetadataValue<Ascii>>>>, login: Login) {
    loop {
        sleep(RENEW_INTERVAL).await;
        if token.strong_count() == 0 {
            return;
        }
        // One that cannot be renewed now may still be good.
        if let (Ok(Some(fresh)), Some(token)) = (login.token().await, token.upgrade()) {
            *lock(&token) = Some(fresh);
        }
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if let Some(token) = &*lock(&self.token) {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        let metadata = request.metadata_mut();
        // A call may prove something else, such as the one that begins the next session.
        if let (Some(held), None) = (&*lock(&self.session), metadata.get_bin(session_key::PROOF)) {
            metadata.insert_bin(session_key::PROOF, held.proof.clone());
        }
        Ok(request)
    }
}
