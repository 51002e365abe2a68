//! The credential of a client's session: a key pair that its program makes and keeps in its memory.
//! The session's id holds the public half, so whoever learns the id, an agent or the next manager,
//! can check a proof without being told anything else, and only the program that began the session
//! can make one.
//!
//! A proof is a signature of the id for one peer. The same one goes with every call to that peer,
//! which costs a byte after the first; no clock is involved, because those of workstations are
//! wrong.

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use bytes::Bytes;
use tonic::Status;
use tonic::metadata::{Binary, MetadataMap, MetadataValue};

use crate::base64url;
use crate::proof::NoRandom;
use crate::sync::lock;

/// Metadata of a client's arrival: the public half of its key.
pub const KEY: &str = "traffic-session-key-bin";
/// Metadata of a call that names a session: the proof that the caller has its key.
pub const PROOF: &str = "traffic-session-proof-bin";

/// Ids of sessions that have a key begin with it. Managers without keys give UUIDs.
const PREFIX: &str = "key-";
/// Keeps proofs apart from other signatures that the key may once make.
const CONTEXT: &[u8] = b"traffic-agent session 1\0";
const KEY_LENGTH: usize = 32;
const PROOF_LENGTH: usize = 64;
/// Longest text of a proof that is decoded.
const MAX_PROOF_TEXT: usize = 2 * PROOF_LENGTH;
/// Proofs that are remembered for one peer.
pub const MAX_PROOFS: usize = 1024;

/// The key of one session.
pub struct SessionKey {
    pair: Ed25519KeyPair,
    id: String,
}

impl SessionKey {
    /// Makes a new one.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub fn generate() -> Result<Self, NoRandom> {
        let pair = Ed25519KeyPair::generate().map_err(|_| NoRandom)?;
        let id = id_of(pair.public_key().as_ref()).ok_or(NoRandom)?;
        Ok(Self { pair, id })
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// The id of its session.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the proof for a peer.
    #[must_use]
    pub fn prove(&self, peer: &Peer) -> Vec<u8> {
        let signature = self.pair.sign(&signed(peer, &self.id));
        signature.as_ref().to_vec()
    }

    /// Returns the same as metadata.
    #[must_use]
    pub fn metadata(&self, peer: &Peer) -> MetadataValue<Binary> {
        MetadataValue::from_bytes(&self.prove(peer))
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The private half is for nobody's log.
        f.debug_tuple("SessionKey").field(&self.id).finish()
    }
}

/// Recipient of a proof, which is worth nothing to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer(Vec<u8>);

impl Peer {
    /// Any manager of ours: a session goes on at the next one.
    #[must_use]
    pub fn manager() -> Self {
        Self(vec![1])
    }

    /// The same, for the removal of the session's intercepts and nothing else.
    #[must_use]
    pub fn manager_to_leave() -> Self {
        Self(vec![2])
    }

    /// The agent with this key, which it makes anew at each start. The manager announces it for
    /// each pod, so no agent can have a client make a proof for another one.
    #[must_use]
    pub fn agent(key: &[u8]) -> Self {
        let length = u8::try_from(key.len()).unwrap_or_default();
        match length {
            0 => Self(Vec::new()),
            _ => Self([&[3, length], key].concat()),
        }
    }

    /// Returns true for an agent without a key: nobody can prove anything to it.
    fn is_nobody(&self) -> bool {
        self.0.is_empty()
    }
}

fn signed(peer: &Peer, id: &str) -> Vec<u8> {
    [CONTEXT, &peer.0, id.as_bytes()].concat()
}

/// Returns the id of the session that has a key; none if it is not the public half of one.
#[must_use]
pub fn id_of(public: &[u8]) -> Option<String> {
    (public.len() == KEY_LENGTH).then(|| format!("{PREFIX}{}", base64url::encode(public)))
}

/// Returns true if a session has a key, or claims to.
#[must_use]
pub fn is_keyed(id: &str) -> bool {
    id.starts_with(PREFIX)
}

/// Returns the public half in an id; none if the id could not be that of a key.
fn public_half(id: &str) -> Option<Vec<u8>> {
    let text = id.strip_prefix(PREFIX)?;
    // Before it is decoded: ids are as long as a peer likes.
    let length = (KEY_LENGTH * 4).div_ceil(3);
    let key = (text.len() == length).then(|| base64url::decode(text.as_bytes()))??;
    // One key has one id.
    (id_of(&key).as_deref() == Some(id)).then_some(key)
}

/// Reason why a caller is not taken for the one whose session he names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The call carries no proof.
    #[error(
        "the session has a key and the call carries no proof of it: only the program that began the \
         session has the key; connect with a session of your own"
    )]
    Missing,
    /// The proof is not one of this session for this peer.
    #[error(
        "the session has a key and the proof that the call carries is not of it, or not for this peer: \
         attach again with the program that began the session, which makes a proof for each start of an \
         agent, or connect with a session of your own"
    )]
    Wrong,
    /// The session's id says that it has a key, and holds none.
    #[error(
        "the session's id begins with \"key-\" and is not that of a key: connect with a session of your \
         own"
    )]
    Malformed,
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Missing => Self::unauthenticated(refusal.to_string()),
            Refusal::Wrong | Refusal::Malformed => Self::permission_denied(refusal.to_string()),
        }
    }
}

/// Returns the proof that a call carries. One that cannot be read is empty: it is not the same as
/// none.
#[must_use]
pub fn given(metadata: &MetadataMap) -> Option<Bytes> {
    let value = metadata.get_bin(PROOF)?;
    let is_short = value.as_encoded_bytes().len() <= MAX_PROOF_TEXT;
    let bytes = is_short.then(|| value.to_bytes().ok()).flatten();
    Some(bytes.unwrap_or_default())
}

/// Checks that a proof is one of the session's key for a peer. Sessions without a key need none.
///
/// # Errors
/// The proof is missing, or is not one.
pub fn check(peer: &Peer, id: &str, proof: Option<&[u8]>) -> Result<(), Refusal> {
    if !is_keyed(id) {
        return Ok(());
    }
    let key = public_half(id).ok_or(Refusal::Malformed)?;
    let proof = proof.ok_or(Refusal::Missing)?;
    if peer.is_nobody() || proof.len() != PROOF_LENGTH {
        return Err(Refusal::Wrong);
    }
    let key = UnparsedPublicKey::new(&ED25519, key);
    let holds = key.verify(&signed(peer, id), proof);
    holds.map_err(|_| Refusal::Wrong)
}

/// The proofs for one peer; each is checked once and remembered.
#[derive(Debug)]
pub struct Proofs {
    peer: Peer,
    good: Mutex<HashMap<String, [u8; PROOF_LENGTH]>>,
}

impl Proofs {
    /// Creates an instance that remembers none.
    #[must_use]
    pub fn new(peer: Peer) -> Self {
        Self {
            peer,
            good: Mutex::default(),
        }
    }

    /// Checks a proof as [`check`] does.
    ///
    /// # Errors
    /// The proof is missing, or is not the session's.
    pub fn check(&self, id: &str, proof: Option<&[u8]>) -> Result<(), Refusal> {
        if !is_keyed(id) || proof.is_some_and(|proof| self.is_remembered(id, proof)) {
            return Ok(());
        }
        check(&self.peer, id, proof)?;
        let Some(Ok(proof)) = proof.map(<[u8; PROOF_LENGTH]>::try_from) else {
            return Ok(());
        };
        let mut good = lock(&self.good);
        // A crowd, or somebody who makes keys: checking again costs less than memory without a
        // bound.
        if good.len() >= MAX_PROOFS && !good.contains_key(id) {
            good.clear();
        }
        good.insert(id.to_owned(), proof);
        Ok(())
    }

    fn is_remembered(&self, id: &str, proof: &[u8]) -> bool {
        let good = lock(&self.good);
        let known = good.get(id);
        known.is_some_and(|known| verify_slices_are_equal(known, proof).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of_agent() -> Peer {
        Peer::agent(&[7; 32])
    }

    #[test]
    fn only_the_sessions_key_proves_it_and_to_one_peer_alone() {
        let (key, other) = (
            SessionKey::generate().unwrap(),
            SessionKey::generate().unwrap(),
        );
        let (peer, id) = (of_agent(), key.id());
        let good = key.prove(&peer);
        let mut flipped = good.clone();
        flipped[40] ^= 1;
        for (what, peer, id, proof, wanted) in [
            ("its own", &peer, id, Some(&good[..]), Ok(())),
            ("none", &peer, id, None, Err(Refusal::Missing)),
            ("nothing in it", &peer, id, Some(&[]), Err(Refusal::Wrong)),
            ("half", &peer, id, Some(&good[..32]), Err(Refusal::Wrong)),
            (
                "one bit off",
                &peer,
                id,
                Some(&flipped),
                Err(Refusal::Wrong),
            ),
            (
                "more behind it",
                &peer,
                id,
                Some(&[&good[..], b"x"].concat()),
                Err(Refusal::Wrong),
            ),
            (
                "another key's",
                &peer,
                id,
                Some(&other.prove(&peer)),
                Err(Refusal::Wrong),
            ),
            (
                "another session's",
                &peer,
                other.id(),
                Some(&good),
                Err(Refusal::Wrong),
            ),
            (
                "for another agent",
                &Peer::agent(&[8; 32]),
                id,
                Some(&good),
                Err(Refusal::Wrong),
            ),
            (
                "for the manager",
                &peer,
                id,
                Some(&key.prove(&Peer::manager())),
                Err(Refusal::Wrong),
            ),
            (
                "for leaving alone",
                &Peer::manager(),
                id,
                Some(&key.prove(&Peer::manager_to_leave())),
                Err(Refusal::Wrong),
            ),
            (
                "to an agent without a key",
                &Peer::agent(&[]),
                id,
                Some(&key.prove(&Peer::agent(&[]))),
                Err(Refusal::Wrong),
            ),
            ("of a stock session", &peer, "a-uuid", None, Ok(())),
            (
                "an id without a key",
                &peer,
                "key-",
                Some(&good),
                Err(Refusal::Malformed),
            ),
            (
                "an id that is longer",
                &peer,
                &format!("{id}A"),
                Some(&good),
                Err(Refusal::Malformed),
            ),
            (
                "an id in another alphabet",
                &peer,
                &format!("key-{}", "+".repeat(43)),
                Some(&good),
                Err(Refusal::Malformed),
            ),
        ] {
            assert_eq!(check(peer, id, proof), wanted, "{what}");
            let proofs = Proofs::new(peer.clone());
            for time in ["first", "again"] {
                assert_eq!(proofs.check(id, proof), wanted, "{what}, {time}");
            }
        }
    }

    #[test]
    fn what_was_good_once_makes_nothing_else_good() {
        let key = SessionKey::generate().unwrap();
        let proofs = Proofs::new(of_agent());
        let good = key.prove(&of_agent());
        assert_eq!(proofs.check(key.id(), Some(&good)), Ok(()));
        assert!(proofs.is_remembered(key.id(), &good));
        assert_eq!(proofs.check(key.id(), None), Err(Refusal::Missing));
        assert_eq!(proofs.check(key.id(), Some(&[0; 64])), Err(Refusal::Wrong));
        assert_eq!(proofs.check(key.id(), Some(&[])), Err(Refusal::Wrong));
    }

    #[test]
    fn remembered_proofs_are_bounded() {
        let proofs = Proofs::new(of_agent());
        for number in 0..MAX_PROOFS {
            lock(&proofs.good).insert(number.to_string(), [0; 64]);
        }
        let key = SessionKey::generate().unwrap();
        let good = key.prove(&of_agent());
        assert_eq!(proofs.check(key.id(), Some(&good)), Ok(()));
        assert_eq!(lock(&proofs.good).len(), 1);
    }

    #[test]
    fn metadata_is_read_within_bounds_and_what_is_none_is_no_proof() {
        let key = SessionKey::generate().unwrap();
        let mut metadata = MetadataMap::new();
        assert_eq!(given(&metadata), None);
        metadata.insert_bin(PROOF, key.metadata(&of_agent()));
        let proof = given(&metadata).unwrap();
        assert_eq!(check(&of_agent(), key.id(), Some(&proof)), Ok(()));
        metadata.insert_bin(PROOF, MetadataValue::from_bytes(&[0; 1024]));
        assert_eq!(given(&metadata), Some(Bytes::new()));
        let mut headers = metadata.into_headers();
        headers.insert(PROOF, "?!".parse().unwrap());
        let metadata = MetadataMap::from_headers(headers);
        assert_eq!(given(&metadata), Some(Bytes::new()));
    }

    #[test]
    fn the_private_half_is_in_no_log() {
        let key = SessionKey::generate().unwrap();
        assert_eq!(format!("{key:?}"), format!("SessionKey({:?})", key.id()));
    }

    proptest! {
        #[test]
        fn each_public_half_has_one_id(public: [u8; 32]) {
            let id = id_of(&public).unwrap();
            prop_assert_eq!(id.len(), 47);
            prop_assert!(is_keyed(&id));
            prop_assert_eq!(public_half(&id).unwrap(), public);
        }

        #[test]
        fn no_other_text_is_an_id(text in "(key-)?[A-Za-z0-9_+/= -]{40,46}") {
            if let Some(key) = public_half(&text) {
                prop_assert_eq!(id_of(&key).unwrap(), text);
            }
        }

        #[test]
        fn anything_may_be_given_and_is_refused(
            id in prop_oneof![".*", "key-.*", "key-[A-Za-z0-9_-]{43}"],
            proof: Option<Vec<u8>>,
            peer: Vec<u8>,
        ) {
            let checked = check(&Peer::agent(&peer), &id, proof.as_deref());
            prop_assert_eq!(checked.is_ok(), !is_keyed(&id));
        }

        #[test]
        fn no_changed_proof_holds(at in 0..64usize, change in 1..=255u8) {
            let key = SessionKey::generate().unwrap();
            let mut proof = key.prove(&of_agent());
            proof[at] ^= change;
            prop_assert_eq!(check(&of_agent(), key.id(), Some(&proof)), Err(Refusal::Wrong));
        }
    }
}
