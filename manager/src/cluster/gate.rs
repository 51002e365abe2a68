//! The gate of the API: tokens and rights are asked of the API server, and remembered for seconds; an
//! agent's token for as long as its pod runs. Client certificates are checked against the authority
//! that the API server goes by.

mod authority;

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tonic::Status;
use traffic_proto::manager_token::AUDIENCE;
use traffic_proto::sync::lock;

use super::ClusterSettings;
use super::caches::Caches;
use super::env::AuthenticationMode;
use super::standing::Standing;
use crate::identity::{Credential, Identity};
use crate::rights::{GROUP, Right};
use authority::Authority;

/// Time an answer of the API server is believed.
const ANSWER_TTL: Duration = Duration::from_secs(10);
/// The same for a refusal, which somebody may just have remedied.
const REFUSAL_TTL: Duration = Duration::from_secs(2);
/// Time a party is still believed while the API server does not answer.
const AWAY_TTL: Duration = Duration::from_secs(3600);
/// Time for one answer.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval at which the same is said again.
const SAY_INTERVAL: Duration = Duration::from_secs(60);
/// Questions under way at once, so that a flood of calls does not become one of the API server.
const MAX_REVIEWS: usize = 16;
/// Answers that are remembered.
const MAX_ANSWERS: usize = 4096;
/// Longest token.
const MAX_TOKEN: usize = 16 * 1024;

/// Decides who may call, by the word of the API server.
pub(crate) struct Gate {
    client: Client,
    is_enforcing: bool,
    namespace: String,
    reviews: Semaphore,
    agents: Standing,
    authority: Authority,
    /// By the bytes of the credential.
    identities: Mutex<Answers<Vec<u8>, Identified>>,
    rights: Mutex<Answers<(String, String), Result<(), String>>>,
    said: Mutex<HashMap<String, Instant>>,
}

/// Whose a credential is, or the reason why it is nobody's.
type Identified = Result<Arc<Identity>, String>;

/// Answers with the time they were given.
struct Answers<K, V>(HashMap<K, (Instant, V)>);

impl<K, V> Default for Answers<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: std::hash::Hash + Eq, T: Clone> Answers<K, Result<T, String>> {
    /// Returns an answer that is still believed.
    fn get<Q: std::hash::Hash + Eq + ?Sized>(&self, key: &Q) -> Option<Result<T, String>>
    where
        K: Borrow<Q>,
    {
        let (at, answer) = self.0.get(key)?;
        let ttl = match answer {
            Ok(_) => ANSWER_TTL,
            Err(_) => REFUSAL_TTL,
        };
        (at.elapsed() < ttl).then(|| answer.clone())
    }

    /// Returns a good answer that would be asked for again, if anybody answered.
    fn older<Q: std::hash::Hash + Eq + ?Sized>(&self, key: &Q) -> Option<T>
    where
        K: Borrow<Q>,
    {
        let (at, answer) = self.0.get(key)?;
        let good = answer.as_ref().ok().cloned();
        good.filter(|_| at.elapsed() < AWAY_TTL)
    }

    fn keep(&mut self, key: K, answer: Result<T, String>) {
        if self.0.len() >= MAX_ANSWERS {
            self.0.retain(|_, (at, _)| at.elapsed() < ANSWER_TTL);
        }
        // A flood within seconds; asking again costs less than memory without a bound.
        if self.0.len() >= MAX_ANSWERS {
            self.0.clear();
        }
        self.0.insert(key, (Instant::now(), answer));
    }
}

impl Gate {
    /// Creates the gate that the settings ask for; none: everybody may call.
    pub(crate) fn new(
        settings: &ClusterSettings,
        client: Client,
        caches: Arc<Caches>,
    ) -> Option<Arc<Self>> {
        let is_enforcing = match settings.authentication {
            AuthenticationMode::Disabled => return None,
            AuthenticationMode::Permissive => false,
            AuthenticationMode::Enforcing => true,
        };
        Some(Arc::new(Self {
            authority: Authority::new(client.clone()),
            client,
            is_enforcing,
            namespace: settings.namespace.clone(),
            reviews: Semaphore::new(MAX_REVIEWS),
            agents: Standing::new(caches),
            identities: Mutex::default(),
            rights: Mutex::default(),
            said: Mutex::default(),
        }))
    }

    pub(crate) fn is_enforcing(&self) -> bool {
        self.is_enforcing
    }

    /// The mode's name.
    pub(crate) fn mode(&self) -> &'static str {
        match self.is_enforcing {
            true => "enforcing",
            false => "permissive",
        }
    }

    /// Refuses, or only says so.
    pub(crate) fn refuse(&self, status: Status) -> Result<(), Status> {
        let verb = match self.is_enforcing {
            true => "refused",
            false => "would be refused if enforcing",
        };
        let text = status.message();
        let mut said = lock(&self.said);
        said.retain(|_, at| at.elapsed() < SAY_INTERVAL);
        if said.len() < MAX_ANSWERS && !said.contains_key(text) {
            said.insert(text.to_owned(), Instant::now());
            tracing::warn!("authentication: {verb}: {text}");
        }
        match self.is_enforcing {
            true => Err(status),
            false => Ok(()),
        }
    }

    /// Finds out whose credential it is.
    pub(crate) async fn identify(
        &self,
        credential: Credential<'_>,
    ) -> Result<Arc<Identity>, Status> {
        match credential {
            Credential::Token(token) => self.identify_token(token).await,
            Credential::Certificate(proof) => self.identify_certificate(proof).await,
        }
    }

    async fn identify_certificate(&self, proof: &[u8]) -> Result<Arc<Identity>, Status> {
        let known = lock(&self.identities).get(proof);
        let answer = match known {
            Some(answer) => answer,
            None => {
                let answer = self.authority.identify(proof).await;
                let answer = answer.map_err(|error| {
                    Status::unavailable(format!(
                        "the API server does not say whose client certificates it accepts: {error}; \
                         try again"
                    ))
                })?;
                lock(&self.identities).keep(proof.to_vec(), answer.clone());
                answer
            }
        };
        answer.map_err(|why| {
            Status::unauthenticated(format!(
                "the caller's client certificate does not prove who calls: {why}; get a new kubeconfig, \
                 or use a user with a token"
            ))
        })
    }

    async fn identify_token(&self, token: &str) -> Result<Arc<Identity>, Status> {
        if token.len() > MAX_TOKEN {
            return Err(Status::unauthenticated("the token is too long"));
        }
        if let Some(agent) = self.agents.get(token) {
            return Ok(agent);
        }
        let key = token.as_bytes();
        let known = lock(&self.identities).get(key);
        let answer = match known {
            Some(answer) => answer,
            None => match self.review(token).await {
                Ok(answer) => {
                    if let Ok(identity) = &answer {
                        self.agents.keep(token, identity);
                    }
                    lock(&self.identities).keep(key.to_vec(), answer.clone());
                    answer
                }
                Err(error) => match lock(&self.identities).older(key) {
                    Some(identity) => Ok(identity),
                    None => return Err(unanswered("tokenreviews", &error)),
                },
            },
        };
        answer.map_err(|why| {
            Status::unauthenticated(format!(
                "the API server does not accept the caller's token: {why}; log in again"
            ))
        })
    }

    /// Asks whose token it is: an agent's, else a user's.
    async fn review(&self, token: &str) -> kube::Result<Identified> {
        let mut why = String::new();
        for audiences in [Some(vec![AUDIENCE.to_owned()]), None] {
            let review = TokenReview {
                spec: TokenReviewSpec {
                    audiences,
                    token: Some(token.to_owned()),
                },
                ..TokenReview::default()
            };
            let status = self.ask(&review).await?.status.unwrap_or_default();
            if status.authenticated == Some(true) {
                // An authenticator that knows no audiences names none; the token is a user's then.
                let audiences = status.audiences.unwrap_or_default();
                let is_agent = audiences.iter().any(|it| it == AUDIENCE);
                let identity = identity(status.user.unwrap_or_default(), is_agent);
                return Ok(Ok(Arc::new(identity)));
            }
            why = status.error.unwrap_or_else(|| "it is unknown".to_owned());
        }
        Ok(Err(why))
    }

    /// Checks a user's right.
    pub(crate) async fn may(&self, identity: &Identity, right: Right) -> Result<(), Status> {
        let right = right.within(&self.namespace);
        let key = (
            format!("{}\n{}", identity.user, identity.uid),
            format!("{right:?}"),
        );
        let known = lock(&self.rights).get(&key);
        let answer = match known {
            Some(answer) => answer,
            None => match self.ask(&access_review(identity, &right)).await {
                Ok(review) => {
                    let status = review.status.unwrap_or_default();
                    let answer = match status.allowed {
                        true => Ok(()),
                        false => Err(status.reason.unwrap_or_default()),
                    };
                    lock(&self.rights).keep(key, answer.clone());
                    answer
                }
                Err(error) => match lock(&self.rights).older(&key) {
                    Some(()) => Ok(()),
                    None => return self.refuse(unanswered("subjectaccessreviews", &error)),
                },
            },
        };
        let Err(reason) = answer else { return Ok(()) };
        let reason = match reason.as_str() {
            "" => String::new(),
            reason => format!(" ({reason})"),
        };
        self.refuse(Status::permission_denied(format!(
            "user {:?} may not {right}{reason}; {}",
            identity.user,
            right.remedy()
        )))
    }

    async fn ask<K>(&self, review: &K) -> kube::Result<K>
    where
        K: kube::Resource<Scope = k8s_openapi::ClusterResourceScope>
            + Clone
            + fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::all(self.client.clone());
        // The semaphore is never closed.
        let _place = self.reviews.acquire().await;
        match timeout(REVIEW_TIMEOUT, api.create(&PostParams::default(), review)).await {
            Ok(answer) => answer,
            Err(_) => Err(kube::Error::Service("no answer in time".into())),
        }
    }
}

fn identity(user: UserInfo, is_agent: bool) -> Identity {
    Identity {
        user: user.username.unwrap_or_default(),
        uid: user.uid.unwrap_or_default(),
        groups: user.groups.unwrap_or_default(),
        extra: user.extra.unwrap_or_default(),
        is_agent,
    }
}

fn access_review(identity: &Identity, right: &Right) -> SubjectAccessReview {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(identity.user.clone()),
            uid: text(&identity.uid),
            groups: Some(identity.groups.clone()),
            extra: Some(identity.extra.clone()),
            resource_attributes: Some(ResourceAttributes {
                group: Some(GROUP.to_owned()),
                resource: Some(right.resource.to_owned()),
                subresource: text(&right.subresource),
                verb: Some(right.verb.to_owned()),
                namespace: text(&right.namespace),
                name: text(&right.name),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    }
}

/// The status where the API server does not say what was asked.
fn unanswered(resource: &str, error: &kube::Error) -> Status {
    match error {
        kube::Error::Api(status) if status.code == 403 => Status::unavailable(format!(
            "the traffic-manager may not create {resource}: let the chart make its rights \
             (managerRbac.create), or switch authentication off (security.authentication.mode)"
        )),
        error => Status::unavailable(format!(
            "the API server does not say who calls and what he may do ({resource}): {error}; try \
             again"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn answers_are_believed_for_seconds_and_good_ones_longer_without_an_api_server() {
        let mut answers: Answers<&str, Result<u8, String>> = Answers::default();
        answers.keep("good", Ok(1));
        answers.keep("bad", Err("no".to_owned()));
        assert_eq!(answers.get(&"good"), Some(Ok(1)));
        assert!(answers.get(&"bad").is_some());
        tokio::time::advance(REFUSAL_TTL).await;
        assert!(answers.get(&"bad").is_none() && answers.get(&"good").is_some());
        tokio::time::advance(ANSWER_TTL).await;
        assert!(answers.get(&"good").is_none());
        assert_eq!(
            (answers.older(&"good"), answers.older(&"bad")),
            (Some(1), None)
        );
        tokio::time::advance(AWAY_TTL).await;
        assert_eq!(answers.older(&"good"), None);
        for number in 0..MAX_ANSWERS * 2 {
            let key: &'static str = Box::leak(number.to_string().into_boxed_str());
            answers.keep(key, Ok(0));
            assert!(answers.0.len() <= MAX_ANSWERS);
        }
    }
}
