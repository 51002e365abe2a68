//! Client configurations: TLS towards the app and workstations, with the client certificate the
//! port's annotations name. Built once for each secret in use and each ALPN, so that a rotation
//! takes effect with the next connection.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use rustls::ClientConfig;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{DnsName, ServerName};

use crate::tls::alpn::TlsInfo;
use crate::tls::client::verify::AppVerifier;
use crate::tls::secrets::annotations::PortPlan;
use crate::tls::secrets::secret::{LoadedSecret, Want};
use crate::tls::secrets::store::{Store, Stores};
use traffic_proto::sync::lock;

/// Cached ALPN variants; callers cannot create more than the app itself agrees to.
const MAX_VARIANTS: usize = 8;
/// Resumable sessions with the app: one for each server name callers use.
const MAX_SESSIONS: usize = 16;

/// Peer of an upstream TLS connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// The app, verified if a CA is available.
    App,
    /// A workstation, reached through an authenticated tunnel; not verified, because a developer's
    /// own process rarely has a certificate of the cluster's CA.
    Workstation,
}

/// Upstream TLS of one port.
#[derive(Debug)]
pub struct Client {
    store: Option<Arc<Store>>,
    skip_verify: bool,
    server_name: Option<String>,
    built: Mutex<ClientConfigs>,
}

#[derive(Debug, Default)]
struct ClientConfigs {
    of: Option<Arc<LoadedSecret>>,
    configs: HashMap<(Peer, Option<Vec<u8>>), Arc<ClientConfig>>,
}

impl Client {
    /// Opens the plan's secret.
    #[must_use]
    pub fn new(plan: &PortPlan, stores: &mut Stores) -> Self {
        let store = plan
            .originating
            .as_ref()
            .map(|source| stores.open(source, Want::Pair));
        let client = Self {
            store,
            skip_verify: plan.skip_verify,
            server_name: plan.server_name.clone(),
            built: Mutex::default(),
        };
        client.tell_verification(plan.container_port);
        client
    }

    /// Returns true if a client certificate is configured.
    #[must_use]
    pub fn has_certificate(&self) -> bool {
        self.store.is_some()
    }

    /// Returns the configuration for a connection on behalf of `hello`, with the caller's ALPN and
    /// no other.
    ///
    /// # Errors
    /// The error of rustls about the parts; none depends on callers.
    pub fn config(
        &self,
        peer: Peer,
        alpn: Option<&[u8]>,
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        self.config_offering(peer, alpn.as_slice(), alpn.map(<[u8]>::to_vec))
    }

    /// Builds an uncached configuration that offers several protocols, to learn the app's choice.
    ///
    /// # Errors
    /// As [`Self::config`].
    pub fn probe_config(&self, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, rustls::Error> {
        let loaded = self.store.as_ref().and_then(|store| store.current());
        // Only protocols are learned and no secret is sent, so the certificate need not be verified
        // here.
        build(loaded, None, alpn).map(|mut config| {
            config.resumption = Resumption::disabled();
            Arc::new(config)
        })
    }

    fn config_offering(
        &self,
        peer: Peer,
        alpn: &[&[u8]],
        key: Option<Vec<u8>>,
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let loaded = self.store.as_ref().and_then(|store| store.current());
        let mut built = lock(&self.built);
        let same = match (&built.of, &loaded) {
            // Every load makes a new value, so a rotation shows as another pointer.
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        // Starting over is simpler than evicting, and callers cannot cause it often.
        if !same || built.configs.len() >= MAX_VARIANTS {
            *built = ClientConfigs {
                of: loaded.clone(),
                configs: HashMap::new(),
            };
        }
        if let Some(config) = built.configs.get(&(peer, key.clone())) {
            return Ok(Arc::clone(config));
        }
        let trust = loaded
            .clone()
            .filter(|_| peer == Peer::App && !self.skip_verify);
        let mut config = build(loaded, trust, alpn)?;
        config.resumption = match peer {
            Peer::App => Resumption::in_memory_sessions(MAX_SESSIONS),
            // Workstations differ behind one name, so their sessions must not be mixed.
            Peer::Workstation => Resumption::disabled(),
        };
        let config = Arc::new(config);
        built.configs.insert((peer, key), Arc::clone(&config));
        Ok(config)
    }

    /// Returns the name to send and verify: the annotated one, else the caller's; without either
    /// the address, which is neither sent nor verified.
    #[must_use]
    pub fn name(&self, hello: Option<&TlsInfo>, app: IpAddr) -> ServerName<'static> {
        let callers = hello.and_then(|hello| hello.server_name.as_deref());
        let name = self.server_name.as_deref().or(callers);
        // rustls sends SNI only for DNS names (RFC 6066 section 3).
        name.and_then(|name| DnsName::try_from(name.to_owned()).ok())
            .map_or_else(|| ServerName::IpAddress(app.into()), ServerName::DnsName)
    }

    fn tell_verification(&self, port: u16) {
        let Some(loaded) = self.store.as_ref().and_then(|store| store.current()) else {
            return;
        };
        if self.skip_verify {
            tracing::info!(
                port,
                "the app's certificate is not verified: upstream-insecure-skip-verify is enabled"
            );
        } else if loaded.ca.is_none() {
            tracing::info!(
                port,
                "the app's certificate is not verified: the client certificate's secret has no \
                ca.crt or root-cert.pem"
            );
        }
    }
}

/// Builds a configuration without certificate, verification or session cache, for probing an
/// unknown app.
///
/// # Errors
/// The error of rustls about the parts.
pub fn anonymous(alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = build(None, None, alpn)?;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn build(
    certificate: Option<Arc<LoadedSecret>>,
    trust: Option<Arc<LoadedSecret>>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(crate::tls::alpn::provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        // Required by rustls for any custom verifier; `AppVerifier` checks signatures in every
        // case.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AppVerifier::new(trust)));
    let pair =
        certificate.and_then(|loaded| loaded.pair.as_ref().map(|pair| Arc::clone(&pair.certified)));
    let mut config = match pair {
        Some(certified) => builder.with_client_cert_resolver(Arc::new(Always(certified))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// Presents the certificate whichever CAs the peer names: the annotation decided.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(
        &self,
        _: &[&[u8]],
        schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.0
            .key
            .choose_scheme(schemes)
            .map(|_| Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
