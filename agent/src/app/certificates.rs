//! Loaded certificates for the admin pages.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use crate::admin::{Certificate, Certificates};
use crate::app::ports::BoundPort;
use crate::telemetry::access_log::format::rfc3339;
use crate::tls;

/// Ports with secrets.
#[derive(Debug)]
pub(crate) struct LoadedCertificates(Vec<(u16, Arc<tls::server::accept::TlsPort>)>);

impl LoadedCertificates {
    pub(crate) fn of(ports: &[BoundPort]) -> Self {
        let with_tls = ports
            .iter()
            .filter_map(|p| Some((p.shared.container_port, p.shared.tls.clone()?)));
        Self(with_tls.collect())
    }
}

impl Certificates for LoadedCertificates {
    fn certificates(&self) -> Vec<Certificate> {
        let now = i64::try_from(traffic_proto::clock::now_unix()).unwrap_or(i64::MAX);
        let mut list = Vec::new();
        for (port, tls) in &self.0 {
            for store in tls.stores() {
                let Some(loaded) = store.current() else {
                    continue;
                };
                let Some(pair) = &loaded.pair else { continue };
                let facts = &pair.facts;
                list.push(Certificate {
                    source: store.source().value.clone(),
                    role: role(&store.source().annotation),
                    port: *port,
                    serial: facts.serial.clone(),
                    names: facts.dns_names.clone(),
                    valid_from: date(facts.not_before),
                    expires: date(facts.not_after),
                    seconds_until_expiry: facts.not_after - now,
                });
            }
        }
        list
    }
}

/// Returns the role of a secret by the annotation that named it.
fn role(annotation: &str) -> &'static str {
    if annotation.contains("terminating") || annotation.contains("downstream") {
        "terminating"
    } else {
        "originating"
    }
}

fn date(seconds: i64) -> String {
    rfc3339(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}
