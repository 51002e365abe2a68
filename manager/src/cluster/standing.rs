//! Proofs of agents that stand without another question: a token is as good as its pod and its own end,
//! and the watch of pods says when one is gone. Without this each agent would have the API server
//! asked about it for ever.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use traffic_proto::base64url;
use traffic_proto::sync::lock;

use super::caches::Caches;
use crate::identity::Identity;

/// Longest time without a question. Tokens of agents end sooner.
const MAX_TTL: Duration = Duration::from_secs(3600);
/// Proofs that are remembered; agents beyond that are asked about as users are.
const MAX_PROOFS: usize = 16 * 1024;

/// Proofs by the digests of their tokens.
pub(super) struct Standing {
    caches: Arc<Caches>,
    proofs: Mutex<HashMap<[u8; 32], Proof>>,
}

struct Proof {
    identity: Arc<Identity>,
    until: Instant,
}

/// The part of a token that is read here.
#[derive(Deserialize)]
struct Claims {
    /// Seconds since 1970.
    exp: u64,
}

impl Standing {
    pub(super) fn new(caches: Arc<Caches>) -> Self {
        Self {
            caches,
            proofs: Mutex::default(),
        }
    }

    /// Returns whose token it is, if that was proved and still stands.
    pub(super) fn get(&self, token: &str) -> Option<Arc<Identity>> {
        let proofs = lock(&self.proofs);
        let proof = proofs.get(&digest(token))?;
        self.stands(proof).then(|| proof.identity.clone())
    }

    /// Remembers what the API server has confirmed just now, if it can be told when it ends.
    pub(super) fn keep(&self, token: &str, identity: &Arc<Identity>) {
        let Some(left) = left(token) else { return };
        let proof = Proof {
            identity: identity.clone(),
            until: Instant::now() + left.min(MAX_TTL),
        };
        if !self.stands(&proof) {
            return;
        }
        let mut proofs = lock(&self.proofs);
        if proofs.len() >= MAX_PROOFS {
            proofs.retain(|_, proof| self.stands(proof));
        }
        if proofs.len() < MAX_PROOFS {
            proofs.insert(digest(token), proof);
        }
    }

    /// Its pod runs, as far as the watch of pods knows.
    fn stands(&self, proof: &Proof) -> bool {
        if !proof.identity.is_agent || proof.until <= Instant::now() {
            return false;
        }
        let Some((namespace, name, uid)) = proof.identity.pod() else {
            return false;
        };
        let pod = self.caches.pods.get(namespace, name);
        pod.is_some_and(|pod| pod.uid == uid && pod.is_live())
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// Time until a token's own end. It is not verified: the API server has done that.
fn left(token: &str) -> Option<Duration> {
    let claims = token.split('.').nth(1)?;
    let claims = base64url::decode(claims.as_bytes())?;
    let Claims { exp } = serde_json::from_slice(&claims).ok()?;
    let end = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(exp))?;
    end.duration_since(SystemTime::now()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::objects::{PodFacts, PodObject};
    use serde_json::json;

    fn pod(uid: &str, phase: &str, deleted: bool) -> PodFacts {
        let mut object = json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": uid},
            "spec": {"containers": []}, "status": {"phase": phase},
        });
        if deleted {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        PodFacts::from(&serde_json::from_value::<PodObject>(object).unwrap())
    }

    fn identity(is_agent: bool) -> Arc<Identity> {
        let extra = [("pod-name", "web-1"), ("pod-uid", "u1")];
        let extra = extra.map(|(key, value)| {
            let key = format!("authentication.kubernetes.io/{key}");
            (key, vec![value.to_owned()])
        });
        Arc::new(Identity {
            user: "system:serviceaccount:shop:default".to_owned(),
            extra: extra.into(),
            is_agent,
            ..Identity::default()
        })
    }

    /// A token that ends in so many seconds.
    fn token(seconds: u64) -> String {
        const LETTERS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let claims = json!({"exp": now + seconds}).to_string();
        let encode = |chunk: &[u8]| {
            let word = chunk
                .iter()
                .fold(0u32, |word, byte| word << 8 | u32::from(*byte));
            let word = word << (8 * (3 - chunk.len()));
            let sixes = (0..=chunk.len()).map(|at| LETTERS[(word >> (18 - 6 * at) & 63) as usize]);
            sixes.map(char::from).collect::<String>()
        };
        let claims: String = claims.as_bytes().chunks(3).map(encode).collect();
        format!("header.{claims}.signature")
    }

    fn standing() -> Standing {
        let caches = Caches::new(&[]);
        caches
            .pods
            .put("shop", "web-1", pod("u1", "Running", false));
        Standing::new(caches)
    }

    #[tokio::test(start_paused = true)]
    async fn a_proof_stands_until_its_token_ends() {
        let standing = standing();
        let (token, other) = (token(600), token(500));
        standing.keep(&token, &identity(true));
        assert_eq!(standing.get(&token), Some(identity(true)));
        assert_eq!(standing.get(&other), None);
        tokio::time::advance(Duration::from_secs(590)).await;
        assert!(standing.get(&token).is_some());
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(standing.get(&token), None);
    }

    #[tokio::test(start_paused = true)]
    async fn no_proof_stands_for_longer_than_an_hour() {
        let standing = standing();
        let token = token(365 * 24 * 3600);
        standing.keep(&token, &identity(true));
        assert!(standing.get(&token).is_some());
        tokio::time::advance(MAX_TTL).await;
        assert_eq!(standing.get(&token), None);
    }

    #[tokio::test]
    async fn a_proof_ends_with_its_pod() {
        let token = token(600);
        for gone in [
            pod("u1", "Running", true),
            pod("u1", "Succeeded", false),
            pod("u2", "Running", false),
        ] {
            let standing = standing();
            standing.keep(&token, &identity(true));
            assert!(standing.get(&token).is_some());
            standing.caches.pods.put("shop", "web-1", gone);
            assert_eq!(standing.get(&token), None);
        }
        let standing = standing();
        standing.keep(&token, &identity(true));
        standing.caches.pods.remove("shop", "web-1");
        assert_eq!(standing.get(&token), None);
    }

    #[tokio::test]
    async fn users_and_tokens_without_an_end_are_asked_about_again() {
        let standing = standing();
        let kept = |token: &str, identity: Arc<Identity>| {
            standing.keep(token, &identity);
            standing.get(token).is_some()
        };
        assert!(!kept(&token(600), identity(false)));
        for unreadable in ["", "secret", "a.!.c", "a.e30.c"] {
            assert!(!kept(unreadable, identity(true)), "{unreadable:?}");
        }
        assert!(kept(&token(600), identity(true)));
    }
}
