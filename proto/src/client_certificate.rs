//! Proof that a client's user has the key of a certificate by which the API server knows him. The
//! port-forward to the manager ends TLS at the API server and passes no certificate on, so each call
//! carries one, with a signature by its key.
//!
//! The signature covers the time, so that a proof that somebody sees is worth nothing minutes later.
//! It is the manager's time: the client learns it with the manager's first answer, and the clock of
//! a workstation may be wrong.

use bytes::Bytes;
use tonic::metadata::MetadataMap;

/// Metadata of a call: the encoded [`CertificateProof`].
pub const PROOF: &str = "traffic-certificate-bin";
/// Metadata of the manager's first answer, where it takes certificates: its time, in seconds since
/// 1970.
pub const TIME: &str = "x-traffic-manager-time";

/// Keeps these signatures apart from those of TLS, which the same key makes.
const CONTEXT: &[u8] = b"traffic-agent client certificate 1\0";
/// Longest proof that is read, in bytes: a few certificates with RSA keys.
pub const MAX_LENGTH: usize = 16 * 1024;
/// Most certificates of a proof.
const MAX_CERTIFICATES: usize = 8;

/// Certificates of a user, his own first, and a signature by the key of that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateProof {
    /// Time of the signature, in seconds since 1970, by the manager's clock.
    pub time: u64,
    /// Algorithm of the signature, as TLS numbers them (RFC 8446, section 4.2.3).
    pub scheme: u16,
    /// Signature of [`signed`].
    pub signature: Vec<u8>,
    /// Certificates in DER.
    pub chain: Vec<Vec<u8>>,
}

/// Returns the bytes that are signed.
#[must_use]
pub fn signed(time: u64) -> Vec<u8> {
    [CONTEXT, &time.to_be_bytes()].concat()
}

/// Returns the encoded proof that a call carries. One that cannot be read is empty: it is not the
/// same as none.
#[must_use]
pub fn given(metadata: &MetadataMap) -> Option<Bytes> {
    let value = metadata.get_bin(PROOF)?;
    // Base64 takes four bytes for three.
    let is_short = value.as_encoded_bytes().len() <= MAX_LENGTH.div_ceil(3) * 4;
    let bytes = is_short.then(|| value.to_bytes().ok()).flatten();
    Some(bytes.unwrap_or_default())
}

impl CertificateProof {
    /// Returns the bytes of the metadata: time, scheme, then signature and certificates, each
    /// behind its length. None: a part is too long for it.
    #[must_use]
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut bytes = self.time.to_be_bytes().to_vec();
        bytes.extend(self.scheme.to_be_bytes());
        for part in std::iter::once(&self.signature).chain(&self.chain) {
            bytes.extend(u16::try_from(part.len()).ok()?.to_be_bytes());
            bytes.extend(part);
        }
        let is_short = bytes.len() <= MAX_LENGTH && self.chain.len() <= MAX_CERTIFICATES;
        (is_short && !self.chain.is_empty()).then_some(bytes)
    }

    /// Reads what [`Self::encode`] wrote; none if it is anything else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_LENGTH {
            return None;
        }
        let (time, rest) = bytes.split_first_chunk()?;
        let (scheme, mut rest) = rest.split_first_chunk()?;
        let mut parts = Vec::new();
        while !rest.is_empty() {
            let (length, behind) = rest.split_first_chunk()?;
            let part = behind.split_at_checked(u16::from_be_bytes(*length).into())?;
            parts.push(part.0.to_vec());
            rest = part.1;
        }
        let is_complete = (2..=MAX_CERTIFICATES + 1).contains(&parts.len());
        is_complete.then(|| Self {
            time: u64::from_be_bytes(*time),
            scheme: u16::from_be_bytes(*scheme),
            signature: parts.remove(0),
            chain: parts,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tonic::metadata::MetadataValue;

    use super::*;

    fn proof(certificates: usize, length: usize) -> CertificateProof {
        CertificateProof {
            time: 1_700_000_000,
            scheme: 0x0403,
            signature: vec![7; 70],
            chain: vec![vec![8; length]; certificates],
        }
    }

    #[test]
    fn what_is_too_much_is_neither_written_nor_read() {
        let most = proof(MAX_CERTIFICATES, 1000);
        let bytes = most.encode().unwrap();
        assert_eq!(CertificateProof::decode(&bytes), Some(most));
        for wrong in [
            proof(0, 1),
            proof(MAX_CERTIFICATES + 1, 1),
            proof(1, MAX_LENGTH),
            proof(1, usize::from(u16::MAX) + 1),
        ] {
            assert_eq!(wrong.encode(), None, "{}", wrong.chain.len());
        }
        assert_eq!(CertificateProof::decode(&vec![0; MAX_LENGTH + 1]), None);
        let more = [&bytes[..], &[0, 1, 9]].concat();
        assert_eq!(CertificateProof::decode(&more), None, "a certificate more");
    }

    #[test]
    fn metadata_is_read_within_bounds() {
        let mut metadata = MetadataMap::new();
        assert_eq!(given(&metadata), None);
        let proof = proof(1, 900);
        let value = MetadataValue::from_bytes(&proof.encode().unwrap());
        metadata.insert_bin(PROOF, value);
        let read = CertificateProof::decode(&given(&metadata).unwrap());
        assert_eq!(read, Some(proof));
        metadata.insert_bin(PROOF, MetadataValue::from_bytes(&[0; MAX_LENGTH + 3]));
        assert_eq!(given(&metadata), Some(Bytes::new()));
        let mut headers = metadata.into_headers();
        headers.insert(PROOF, "?!".parse().unwrap());
        assert_eq!(
            given(&MetadataMap::from_headers(headers)),
            Some(Bytes::new())
        );
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read(
            time: u64,
            scheme: u16,
            signature in proptest::collection::vec(any::<u8>(), 0..600),
            chain in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..1500), 1..8),
        ) {
            let proof = CertificateProof { time, scheme, signature, chain };
            let bytes = proof.encode().unwrap();
            prop_assert_eq!(CertificateProof::decode(&bytes), Some(proof));
            // Nothing that breaks off is taken for another one.
            for end in 0..bytes.len() {
                let cut = CertificateProof::decode(&bytes[..end]);
                prop_assert!(cut.is_none_or(|cut| cut.encode().is_some_and(|it| it == bytes[..end])));
            }
        }

        #[test]
        fn anything_may_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            if let Some(proof) = CertificateProof::decode(&bytes) {
                prop_assert_eq!(proof.encode(), Some(bytes));
            }
        }
    }
}
