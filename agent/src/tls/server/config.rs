//! Server configurations: certificate by name, ALPN, and client certificates. Built once for each
//! set of secrets in use, so that a rotation takes effect with the next handshake.

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;

use crate::tls::alpn::{AlpnOffer, H2, HTTP1};
use crate::tls::secrets::annotations::{CallerAuth, PortPlan};
use crate::tls::secrets::secret::{LoadedSecret, Want};
use crate::tls::secrets::store::{Store, Stores};

/// Certificates of one port.
#[derive(Debug)]
pub struct ServerCertificates {
    certificates: Vec<Arc<Store>>,
    callers: Option<(Arc<Store>, CallerAuth)>,
    built: ArcSwapOption<ServerConfigs>,
}

impl ServerCertificates {
    /// Opens the stores; `None` if the plan has no certificate.
    #[must_use]
    pub fn new(plan: &PortPlan, stores: &mut Stores) -> Option<Self> {
        let certificates: Vec<_> = plan
            .terminating
            .iter()
            .map(|source| stores.open(source, Want::Pair))
            .collect();
        let callers = plan
            .caller_ca
            .as_ref()
            .map(|(source, auth)| (stores.open(source, Want::Ca), *auth));
        (!certificates.is_empty()).then(|| Self {
            certificates,
            callers,
            built: ArcSwapOption::empty(),
        })
    }

    /// Returns the configurations for the secrets in use; `None` while one of them has never been
    /// valid.
    pub fn current(&self) -> Option<Arc<ServerConfigs>> {
        let certificates: Vec<_> = self
            .certificates
            .iter()
            .map(|store| store.current())
            .collect::<Option<_>>()?;
        let callers = match &self.callers {
            Some((store, auth)) => Some((store.current()?, *auth)),
            None => None,
        };
        if let Some(built) = self
            .built
            .load_full()
            .filter(|built| built.is_of(&certificates, &callers))
        {
            return Some(built);
        }
        match ServerConfigs::new(certificates, callers) {
            Ok(built) => {
                let built = Arc::new(built);
                self.built.store(Some(Arc::clone(&built)));
                Some(built)
            }
            Err(error) => {
                tracing::error!(%error,
                "TLS cannot be terminated with the current secrets and is relayed unchanged");
                None
            }
        }
    }
}

/// A server configuration with one variant for each ALPN offer.
#[derive(Debug)]
pub struct ServerConfigs {
    certificates: Vec<Arc<LoadedSecret>>,
    callers: Option<(Arc<LoadedSecret>, CallerAuth)>,
    base: ServerConfig,
    variants: [OnceLock<Arc<ServerConfig>>; 4],
}

impl ServerConfigs {
    fn new(
        certificates: Vec<Arc<LoadedSecret>>,
        callers: Option<(Arc<LoadedSecret>, CallerAuth)>,
    ) -> Result<Self, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(crate::tls::alpn::provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
        let builder = match callers
            .as_ref()
            .and_then(|(loaded, auth)| Some((loaded.ca.as_ref()?, *auth)))
        {
            None => builder.with_no_client_auth(),
            Some((ca, auth)) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(
                    Arc::clone(&ca.roots),
                    crate::tls::alpn::provider(),
                );
                let verifier = match auth {
                    CallerAuth::Required => verifier,
                    CallerAuth::Optional => verifier.allow_unauthenticated(),
                };
                let verifier = verifier
                    .build()
                    .map_err(|error| rustls::Error::General(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut base = builder.with_cert_resolver(Arc::new(BySni {
            certificates: certificates.clone(),
        }));
        // All offered suites are strong; our order puts AES first, which machines that run pods
        // have in hardware.
        base.ignore_client_order = true;
        // Resumption uses tickets stored by callers, so it costs no memory here. Tickets belong to
        // this configuration: a caller verified against other secrets is verified again.
        base.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
        base.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self {
            certificates,
            callers,
            base,
            variants: Default::default(),
        })
    }

    fn is_of(
        &self,
        certificates: &[Arc<LoadedSecret>],
        callers: &Option<(Arc<LoadedSecret>, CallerAuth)>,
    ) -> bool {
        let same_callers = match (&self.callers, callers) {
            (Some((a, _)), Some((b, _))) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        same_callers
            && self
                .certificates
                .iter()
                .zip(certificates)
                .all(|(a, b)| Arc::ptr_eq(a, b))
    }

    /// Returns true if callers are asked for a certificate.
    #[must_use]
    pub fn verifies_callers(&self) -> bool {
        self.callers.is_some()
    }

    /// Returns the configuration that offers what the app offers.
    pub fn config(&self, offer: AlpnOffer) -> Arc<ServerConfig> {
        let at = usize::from(offer.h2) * 2 + usize::from(offer.http1);
        // Two booleans make four variants.
        let variant = self.variants[at].get_or_init(|| {
            let mut config = self.base.clone();
            let offered = [(offer.h2, H2), (offer.http1, HTTP1)]
                .into_iter()
                .filter(|(yes, _)| *yes);
            config.alpn_protocols = offered.map(|(_, name)| name.to_vec()).collect();
            Arc::new(config)
        });
        Arc::clone(variant)
    }
}

/// Selects a certificate by server name, else the first one; among those of one name, the first
/// whose key the caller can verify.
#[derive(Debug)]
struct BySni {
    certificates: Vec<Arc<LoadedSecret>>,
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let pairs = || {
            self.certificates
                .iter()
                .filter_map(|loaded| loaded.pair.as_ref())
        };
        let wanted = hello.server_name().map(str::to_ascii_lowercase);
        let named = |names: &[String]| {
            wanted
                .as_ref()
                .is_some_and(|w| names.iter().any(|name| covers(name, w)))
        };
        let usable =
            |key: &Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        let matching = pairs().filter(|pair| named(&pair.facts.dns_names));
        let chosen = matching
            .clone()
            .chain(pairs())
            .find(|pair| usable(&pair.certified));
        chosen
            .or_else(|| pairs().next())
            .map(|pair| Arc::clone(&pair.certified))
    }
}

/// Matches a name as RFC 6125 section 6.4.3: a wildcard stands for the whole leftmost label and
/// nothing else.
fn covers(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(parent) => name
            .split_once('.')
            .is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use crate::tls::server::config::covers;

    #[test]
    fn a_wildcard_stands_for_one_label() {
        for (pattern, name, expected) in [
            ("a.example", "a.example", true),
            ("a.example", "b.example", false),
            ("*.example", "a.example", true),
            ("*.example", "a.b.example", false),
            ("*.example", "example", false),
            ("*.example", ".example", false),
        ] {
            assert_eq!(covers(pattern, name), expected, "{pattern} {name}");
        }
    }
}
