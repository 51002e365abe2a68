//! Proof that an agent is the one that the manager announced. The agent gives the manager a key when
//! it arrives, and the manager gives it to workstations, which have whoever answers on the agent's
//! address prove that he has it before they tell him their session.

use aws_lc_rs::{hmac, rand};

/// Metadata of a `Version` call: bytes that were never used before.
pub const CHALLENGE: &str = "traffic-agent-challenge-bin";
/// Metadata of its answer.
pub const PROOF: &str = "traffic-agent-proof-bin";

const LENGTH: usize = 32;
/// Keeps answers apart from those of other uses that the key may once have.
const CONTEXT: &[u8] = b"traffic-agent proof 1\0";

/// Returns random bytes for a key or a challenge.
///
/// # Errors
/// The system has no random bytes.
pub fn random() -> Result<[u8; LENGTH], NoRandom> {
    let mut bytes = [0; LENGTH];
    rand::fill(&mut bytes).map_err(|_| NoRandom)?;
    Ok(bytes)
}

/// Error: the system has no random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system has no random bytes")]
pub struct NoRandom;

/// Returns the proof for a challenge.
#[must_use]
pub fn answer(key: &[u8], challenge: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, &signed(challenge)).as_ref().to_vec()
}

/// Returns true if `proof` answers a challenge.
#[must_use]
pub fn holds(key: &[u8], challenge: &[u8], proof: &[u8]) -> bool {
    let key_value = hmac::Key::new(hmac::HMAC_SHA256, key);
    !key.is_empty() && hmac::verify(&key_value, &signed(challenge), proof).is_ok()
}

fn signed(challenge: &[u8]) -> Vec<u8> {
    [CONTEXT, challenge].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_answers_and_only_its_challenge() {
        let (key, other) = (random().unwrap(), random().unwrap());
        let (challenge, later) = (random().unwrap(), random().unwrap());
        let proof = answer(&key, &challenge);
        assert!(holds(&key, &challenge, &proof));
        assert!(!holds(&other, &challenge, &proof));
        assert!(!holds(&key, &later, &proof));
        assert!(!holds(&key, &challenge, b""));
        assert!(!holds(b"", &challenge, &answer(b"", &challenge)));
    }
}
