//! The proof of a user whose kubeconfig logs in by a client certificate.

use std::sync::{Arc, Mutex};

use kube::Config;
use kube::client::ConfigExt as _;
use rustls::SignatureScheme;
use rustls::sign::CertifiedKey;
use tonic::metadata::{Binary, MetadataValue};
use traffic_proto::client_certificate::{CertificateProof, signed};
use traffic_proto::clock::now_unix;
use traffic_proto::sync::lock;

/// Age at which a proof is made anew, in seconds; managers believe them for minutes.
const RENEW_AGE: u64 = 60;
/// Ways to sign, the preferred one first. None of them is TLS 1.2's alone.
const SCHEMES: [SignatureScheme; 7] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// Certificate and key of the user, and the manager's time.
pub(crate) struct Certificate {
    key: Arc<CertifiedKey>,
    /// What the manager's clock is ahead of this machine's, in seconds.
    ahead: i64,
    last: Mutex<Option<(u64, MetadataValue<Binary>)>>,
}

impl Certificate {
    /// Reads that of the kubeconfig's user; none if he has none. `manager_time` is what the manager
    /// has just said, in seconds since 1970.
    pub(super) fn read(config: &Config, manager_time: u64) -> Result<Option<Self>, String> {
        let tls = config.rustls_client_config();
        let tls = tls.map_err(|error| error.to_string())?;
        let key = tls.client_auth_cert_resolver.resolve(&[], &SCHEMES);
        Ok(key.map(|key| Self {
            key,
            ahead: manager_time
                .cast_signed()
                .wrapping_sub(now_unix().cast_signed()),
            last: Mutex::default(),
        }))
    }

    /// Returns the proof, which is made anew about every minute. None: the key cannot sign.
    pub(crate) fn proof(&self) -> Option<MetadataValue<Binary>> {
        let time = now_unix().saturating_add_signed(self.ahead);
        let mut last = lock(&self.last);
        if let Some((made, proof)) = &*last
            && time.abs_diff(*made) < RENEW_AGE
        {
            return Some(proof.clone());
        }
        let signer = self.key.key.choose_scheme(&SCHEMES)?;
        let proof = CertificateProof {
            time,
            scheme: signer.scheme().into(),
            signature: signer.sign(&signed(time)).ok()?,
            chain: self.key.cert.iter().map(|it| it.to_vec()).collect(),
        };
        let mut proof = MetadataValue::from_bytes(&proof.encode()?);
        proof.set_sensitive(true);
        *last = Some((time, proof.clone()));
        Some(proof)
    }
}
