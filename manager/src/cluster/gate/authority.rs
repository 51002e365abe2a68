//! The authority of users' client certificates: the one that the API server itself goes by, which it
//! publishes in a ConfigMap.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use tokio::time::{Instant, timeout};
use traffic_proto::client_certificate::{CertificateProof, PROOF, signed};
use traffic_proto::clock::now_unix;
use traffic_proto::sync::lock;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Identified, REVIEW_TIMEOUT};
use crate::cluster::certificates::pem_certificates;
use crate::identity::Identity;

/// Namespace, name and key of the API server's word.
const NAMESPACE: &str = "kube-system";
const CONFIG_MAP: &str = "extension-apiserver-authentication";
const KEY: &str = "client-ca-file";
/// Time that word is believed: authorities change within years.
const ANCHORS_TTL: Duration = Duration::from_secs(300);
/// The same where it is of no use, which somebody may just have remedied.
const NO_ANCHORS_TTL: Duration = Duration::from_secs(10);
const NOT_READABLE: &str = "the traffic-manager may not read ConfigMap \
    extension-apiserver-authentication in namespace kube-system, which says whose certificates count \
    (chart value security.authentication.x509.enabled)";
/// Greatest difference between a proof's time and ours, in seconds. A proof that somebody else has
/// seen is worth something for as long.
const MAX_AGE: u64 = 300;
/// Group of everybody whom the API server knows.
const AUTHENTICATED: &str = "system:authenticated";

type Anchors = Arc<Vec<TrustAnchor<'static>>>;

/// Checks proofs of users who log in by a client certificate.
pub(super) struct Authority {
    config_maps: Api<ConfigMap>,
    anchors: Mutex<Option<(Instant, Result<Anchors, String>)>>,
}

impl Authority {
    pub(super) fn new(client: Client) -> Self {
        Self {
            config_maps: Api::namespaced(client, NAMESPACE),
            anchors: Mutex::default(),
        }
    }

    /// Finds out whose certificate it is; a reason if it proves nothing. The error is that of the
    /// API server, which does not say whom it trusts.
    pub(super) async fn identify(&self, proof: &[u8]) -> kube::Result<Identified> {
        let Some(proof) = CertificateProof::decode(proof) else {
            return Ok(Err(format!("metadata {PROOF} cannot be read")));
        };
        let anchors = self.anchors().await?;
        Ok(anchors.and_then(|anchors| verified(&proof, &anchors, now_unix()).map(Arc::new)))
    }

    /// Returns the authorities; those of earlier while the API server does not answer.
    async fn anchors(&self) -> kube::Result<Result<Anchors, String>> {
        let known = lock(&self.anchors).clone();
        if let Some((read, anchors)) = &known {
            let ttl = match anchors {
                Ok(_) => ANCHORS_TTL,
                Err(_) => NO_ANCHORS_TTL,
            };
            if read.elapsed() < ttl {
                return Ok(anchors.clone());
            }
        }
        let read = timeout(REVIEW_TIMEOUT, self.config_maps.get(CONFIG_MAP)).await;
        let read = read.unwrap_or_else(|_| Err(kube::Error::Service("no answer in time".into())));
        let anchors = match (read, known) {
            (Ok(found), _) => {
                let pem = found.data.unwrap_or_default().remove(KEY);
                anchors(&pem.unwrap_or_default()).map(Arc::new)
            }
            (Err(kube::Error::Api(status)), _) if matches!(status.code, 403 | 404) => {
                Err(NOT_READABLE.to_owned())
            }
            (Err(_), Some((_, anchors))) => return Ok(anchors),
            (Err(error), None) => return Err(error),
        };
        *lock(&self.anchors) = Some((Instant::now(), anchors.clone()));
        Ok(anchors)
    }
}

fn anchors(pem: &str) -> Result<Vec<TrustAnchor<'static>>, String> {
    let place = format!("{KEY} of ConfigMap {NAMESPACE}/{CONFIG_MAP}");
    let certificates = pem_certificates(pem).map_err(|error| format!("{place}: {error}"))?;
    let anchors = certificates.iter().map(|certificate| {
        let anchor = anchor_from_trusted_cert(certificate);
        anchor.map(|anchor| anchor.to_owned())
    });
    let anchors: Result<Vec<_>, _> = anchors.collect();
    let anchors = anchors.map_err(|error| format!("{place} cannot be read: {error}"))?;
    match anchors.is_empty() {
        true => Err(format!(
            "{place} is empty: this API server takes no client certificates"
        )),
        false => Ok(anchors),
    }
}

/// Checks a proof at a time, in seconds since 1970.
fn verified(
    proof: &CertificateProof,
    anchors: &[TrustAnchor<'_>],
    now: u64,
) -> Result<Identity, String> {
    let age = now.abs_diff(proof.time);
    if age > MAX_AGE {
        return Err(format!(
            "its signature is {age} s off the manager's time, and {MAX_AGE} are allowed"
        ));
    }
    let chain: Vec<_> = proof.chain.iter().map(|it| der(it)).collect();
    let (own, intermediates) = chain.split_first().ok_or("it is missing")?;
    let algorithms = default_provider().signature_verification_algorithms;
    let certificate = EndEntityCert::try_from(own).map_err(|error| unreadable(&error))?;
    let time = UnixTime::since_unix_epoch(Duration::from_secs(now));
    let usage = KeyUsage::client_auth();
    certificate
        .verify_for_usage(
            algorithms.all,
            anchors,
            intermediates,
            time,
            usage,
            None,
            None,
        )
        .map_err(|error| {
            format!("{KEY} of ConfigMap {NAMESPACE}/{CONFIG_MAP} does not vouch for it: {error}")
        })?;
    let scheme = SignatureScheme::from(proof.scheme);
    let mut fitting = algorithms.mapping.iter().filter(|(it, _)| *it == scheme);
    let message = signed(proof.time);
    let holds = fitting.any(|(_, ways)| {
        let mut ways = ways.iter();
        ways.any(|way| {
            let verified = certificate.verify_signature(*way, &message, &proof.signature);
            verified.is_ok()
        })
    });
    if !holds {
        return Err("the signature is not by its key".to_owned());
    }
    subject(own)
}

fn der(bytes: &[u8]) -> CertificateDer<'_> {
    CertificateDer::from_slice(bytes)
}

/// The user that a certificate names, as the API server reads it: the last common name, and the
/// organisations as groups.
fn subject(certificate: &CertificateDer<'_>) -> Result<Identity, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| unreadable(&error))?;
    let subject = parsed.subject();
    let text = |it: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        let text = it.as_str().map(str::to_owned);
        text.map_err(|error| unreadable(&error))
    };
    let user = subject.iter_common_name().last().map(text).transpose()?;
    let groups: Result<Vec<_>, _> = subject.iter_organization().map(text).collect();
    let mut groups = groups?;
    groups.push(AUTHENTICATED.to_owned());
    match user {
        Some(user) if !user.is_empty() => Ok(Identity {
            user,
            groups,
            ..Identity::default()
        }),
        _ => Err("it names no user: it has no common name".to_owned()),
    }
}

fn unreadable(error: &dyn std::fmt::Display) -> String {
    format!("it cannot be read: {error}")
}

#[cfg(test)]
mod tests;
