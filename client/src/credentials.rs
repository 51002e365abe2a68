//! The user's proof towards the manager: the bearer token by which the kubeconfig logs in. It goes to
//! a manager that asks for it and is reached through the API server, and nowhere else.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::time::sleep;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use traffic_proto::manager_token::MODE;
use traffic_proto::sync::lock;

use crate::Failure;
use crate::cluster::Login;

/// Interval at which the kubeconfig's login is asked again; it renews its token when that is near its
/// end.
const RENEW_INTERVAL: Duration = Duration::from_secs(30);

/// The token that calls carry.
#[derive(Clone, Default)]
pub(crate) struct Credentials {
    token: Arc<Mutex<Option<MetadataValue<Ascii>>>>,
}

impl Credentials {
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
        Ok(request)
    }
}
