//! Proofs of a client towards the manager: who its user is, by the bearer token or the client
//! certificate by which the kubeconfig logs in, and that its session is its own, by the key that the
//! session was begun with. The user's proof goes to a manager that asks for it and is reached
//! through the API server, and nowhere else.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::time::sleep;
use tonic::Status;
use tonic::metadata::{Ascii, Binary, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use traffic_proto::client_certificate;
use traffic_proto::manager_token::MODE;
use traffic_proto::session_key::{self, Peer, SessionKey};
use traffic_proto::sync::lock;

use crate::Failure;
use crate::cluster::{Certificate, Login};

/// Interval at which the kubeconfig's login is asked again; it renews its token when that is near
/// its end.
const RENEW_INTERVAL: Duration = Duration::from_secs(30);

/// The proofs that calls carry.
#[derive(Clone, Default)]
pub(crate) struct Credentials {
    user: Arc<Mutex<Option<UserProof>>>,
    session: Arc<Mutex<Option<Held>>>,
}

/// The proof of who the user is.
enum UserProof {
    Token(MetadataValue<Ascii>),
    Certificate(Certificate),
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
        match self.log_in(asked, login).await {
            Ok(true) => Ok(()),
            Ok(false) if is_enforcing => Err(Failure::Failed(
                "the traffic-manager asks who you are (security.authentication.mode=enforcing), and \
                 the kubeconfig's user has neither a token nor a client certificate that it takes. \
                 Use a user with a token, for example kubectl config set-credentials ME \
                 --token=$(kubectl create token SERVICEACCOUNT)"
                    .into(),
            )),
            Err(error) if is_enforcing => Err(Failure::Failed(format!(
                "the kubeconfig's login fails: {error}"
            ))),
            Ok(false) | Err(_) => Ok(()),
        }
    }

    /// Takes the user's proof from the kubeconfig; returns false if he has none.
    async fn log_in(&self, asked: &MetadataMap, login: &Login) -> Result<bool, String> {
        if let Some(token) = login.token().await? {
            *lock(&self.user) = Some(UserProof::Token(token));
            self.renewed_by(login.clone());
            return Ok(true);
        }
        // Managers of an earlier version take no certificates, and do not tell their time.
        let time = asked.get(client_certificate::TIME);
        let time = time.and_then(|it| it.to_str().ok()?.parse().ok());
        let certificate = match time {
            Some(time) => login.certificate(time)?,
            None => None,
        };
        let certificate = certificate.filter(|it| it.proof().is_some());
        let has_one = certificate.is_some();
        *lock(&self.user) = certificate.map(UserProof::Certificate);
        Ok(has_one)
    }
}

impl Credentials {
    #[expect(
        clippy::disallowed_methods,
        reason = "it ends with the last user of the token"
    )]
    fn renewed_by(&self, login: Login) {
        tokio::spawn(renew(Arc::downgrade(&self.user), login));
    }
}

/// Keeps the token fresh as long as somebody uses it.
async fn renew(user: Weak<Mutex<Option<UserProof>>>, login: Login) {
    loop {
        sleep(RENEW_INTERVAL).await;
        if user.strong_count() == 0 {
            return;
        }
        // One that cannot be renewed now may still be good.
        if let (Ok(Some(fresh)), Some(user)) = (login.token().await, user.upgrade()) {
            *lock(&user) = Some(UserProof::Token(fresh));
        }
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        let metadata = request.metadata_mut();
        match &*lock(&self.user) {
            Some(UserProof::Token(token)) => {
                metadata.insert("authorization", token.clone());
            }
            Some(UserProof::Certificate(certificate)) => {
                if let Some(proof) = certificate.proof() {
                    metadata.insert_bin(client_certificate::PROOF, proof);
                }
            }
            None => {}
        }
        // A call may prove something else, such as the one that begins the next session.
        if let (Some(held), None) = (&*lock(&self.session), metadata.get_bin(session_key::PROOF)) {
            metadata.insert_bin(session_key::PROOF, held.proof.clone());
        }
        Ok(request)
    }
}
