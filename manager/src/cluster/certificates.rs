//! The webhook's certificate: made and renewed here, or read from a Secret or a directory that
//! somebody else fills.
//!
//! A renewed certificate is served only when the API server has had time to learn its authority, and
//! the old authority stays in the bundle, so no call is refused while one takes over from the other.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use kube::Client;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::time::sleep;
use traffic_proto::duration::GoDuration;

use super::env::{CertificateMethod, ClusterSettings};

mod authority;
mod objects;

use authority::make;

/// Interval between looks at a mounted certificate.
const MOUNT_INTERVAL: Duration = Duration::from_secs(10);
/// Time for the API server to learn a changed bundle.
const BUNDLE_DELAY: Duration = Duration::from_secs(5);
/// Pause after an error.
const RETRY_DELAY: Duration = Duration::from_secs(5);
/// Life of what is made here, where nothing else is said.
const CERTIFICATE_TTL: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// Somebody else's certificate that ends so soon is warned about.
const EXPIRY_GRACE: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// The certificate in use; none before the first one.
#[derive(Debug, Default)]
pub(crate) struct Served {
    key: ArcSwapOption<CertifiedKey>,
    /// The end of its life, in seconds since 1970; 0: unknown.
    not_after: std::sync::atomic::AtomicI64,
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.key.load_full()
    }
}

impl Served {
    /// A certificate is there.
    pub(crate) fn is_ready(&self) -> bool {
        self.key.load().is_some()
    }

    /// Seconds that it has left.
    pub(crate) fn seconds_left(&self) -> Option<i64> {
        let end = self.not_after.load(std::sync::atomic::Ordering::Relaxed);
        (end != 0).then(|| end - now())
    }

    fn serve(&self, pair: &Pair) -> Result<(), String> {
        let key = pair.certified()?;
        let order = std::sync::atomic::Ordering::Relaxed;
        self.not_after.store(pair.not_after, order);
        self.key.store(Some(Arc::new(key)));
        Ok(())
    }
}

/// A certificate with its key, and the authorities that vouch for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    certificate: String,
    key: String,
    /// PEM of authorities; the newest first.
    bundle: String,
    not_before: i64,
    not_after: i64,
}

impl Pair {
    pub(crate) fn new(certificate: &str, key: &str, bundle: &str) -> Result<Self, String> {
        let chain = pem_certificates(certificate)?;
        let first = chain.first().ok_or("tls.crt holds no certificate")?;
        let (_, parsed) = x509_parser::parse_x509_certificate(first)
            .map_err(|error| format!("tls.crt cannot be read: {error}"))?;
        let validity = parsed.validity();
        let pair = Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            bundle: bundle.to_owned(),
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        };
        pair.certified()?;
        Ok(pair)
    }

    fn certified(&self) -> Result<CertifiedKey, String> {
        let chain = pem_certificates(&self.certificate)?;
        let key = pem_key(&self.key)?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        CertifiedKey::from_der(chain, key, &provider)
            .map_err(|error| format!("certificate and key do not fit: {error}"))
    }

    /// Two thirds of its life are over.
    fn is_due(&self) -> bool {
        now() >= self.renewal()
    }

    /// Time of the renewal.
    fn renewal(&self) -> i64 {
        self.not_before + (self.not_after - self.not_before) * 2 / 3
    }

    fn serves(&self, names: &[String]) -> bool {
        let Ok(chain) = pem_certificates(&self.certificate) else {
            return false;
        };
        let Some(Ok((_, parsed))) = chain
            .first()
            .map(|it| x509_parser::parse_x509_certificate(it))
        else {
            return false;
        };
        let Ok(Some(extension)) = parsed.subject_alternative_name() else {
            return false;
        };
        let own = &extension.value.general_names;
        names.iter().all(|name| {
            own.iter().any(
                |it| matches!(it, x509_parser::extensions::GeneralName::DNSName(it) if it == name),
            )
        })
    }
}

pub(super) fn pem_certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    rustls_pemfile::certs(&mut text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("no PEM certificates: {error}"))
}

fn pem_key(text: &str) -> Result<PrivateKeyDer<'static>, String> {
    rustls_pemfile::private_key(&mut text.as_bytes())
        .map_err(|error| format!("no PEM key: {error}"))?
        .ok_or_else(|| "tls.key holds no private key".to_owned())
}

fn now() -> i64 {
    i64::try_from(traffic_proto::clock::now_unix()).unwrap_or(i64::MAX)
}

/// Keeps the certificate in use up to date.
pub(crate) struct Keeper {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) secret: String,
    pub(crate) configuration: String,
    pub(crate) method: CertificateMethod,
    pub(crate) names: Vec<String>,
    pub(crate) life: Duration,
    pub(crate) served: Arc<Served>,
}

impl Keeper {
    pub(crate) fn new(client: Client, settings: &ClusterSettings, served: Arc<Served>) -> Self {
        let webhook = &settings.webhook;
        let (service, namespace) = (&webhook.service, &settings.namespace);
        let mut names = vec![
            service.clone(),
            format!("{service}.{namespace}"),
            format!("{service}.{namespace}.svc"),
        ];
        if !settings.cluster_domain.is_empty() {
            let domain = settings.cluster_domain.trim_end_matches('.');
            names.push(format!("{service}.{namespace}.svc.{domain}"));
        }
        names.extend(webhook.alt_names.iter().cloned());
        Self {
            client,
            namespace: namespace.clone(),
            secret: webhook.secret.clone(),
            configuration: webhook.configuration.clone(),
            method: webhook.method,
            names,
            life: life(),
            served,
        }
    }

    /// Runs until it is dropped.
    pub(crate) async fn run(&self) {
        if self.secret.starts_with('/') {
            return self.mounted(Path::new(&self.secret)).await;
        }
        loop {
            let turn = match self.method {
                CertificateMethod::Manager => self.own().await,
                _ => self.foreign().await,
            };
            match turn {
                Ok(rest) => sleep(rest).await,
                Err(problem) => {
                    tracing::error!(secret = self.secret, "webhook certificate: {problem}");
                    sleep(RETRY_DELAY).await;
                }
            }
        }
    }

    /// Makes a certificate where there is none that does, and renews it in time; returns when to
    /// look again.
    async fn own(&self) -> Result<Duration, String> {
        let there = objects::read_secret(&self.client, &self.namespace, &self.secret).await?;
        let good = there.filter(|pair| pair.serves(&self.names) && pair.not_after > now());
        let pair = match good {
            Some(pair) if !pair.is_due() => {
                self.publish(&pair.bundle).await?;
                pair
            }
            old => self.renew(old).await?,
        };
        self.served.serve(&pair)?;
        let left = u64::try_from(pair.renewal() - now()).unwrap_or(0);
        // Not for longer than an hour: the Secret may be deleted, or the clock moved.
        Ok(Duration::from_secs(left.clamp(1, 3600)))
    }

    async fn renew(&self, old: Option<Pair>) -> Result<Pair, String> {
        let made = make(&self.names, self.life)?;
        let mut bundle = made.authority.clone();
        if let Some(old) = &old {
            self.served.serve(old)?;
            // One generation back: what was vouched for by an older one has ended.
            bundle.push_str(first_certificate(&old.bundle));
        }
        self.publish(&bundle).await?;
        if old.is_some() {
            sleep(BUNDLE_DELAY).await;
        }
        let pair = Pair::new(&made.certificate, &made.key, &bundle)?;
        objects::write_secret(&self.client, &self.namespace, &self.secret, &pair).await?;
        let days = self.life.as_secs() / 86_400;
        tracing::info!(secret = self.secret, days, "webhook certificate made");
        Ok(pair)
    }

    /// Puts the authorities into the webhook's configuration.
    async fn publish(&self, bundle: &str) -> Result<(), String> {
        objects::publish_bundle(&self.client, &self.configuration, bundle).await
    }

    /// Reads what somebody else keeps in the Secret.
    async fn foreign(&self) -> Result<Duration, String> {
        let pair = objects::read_secret(&self.client, &self.namespace, &self.secret).await?;
        let Some(pair) = pair else {
            return Err("the Secret holds no certificate yet".to_owned());
        };
        if self.method == CertificateMethod::Supplied && !pair.bundle.is_empty() {
            // With its own authority in the chart, there is no right to this, and no need.
            if let Err(problem) = self.publish(&pair.bundle).await {
                tracing::debug!("{problem}");
            }
        }
        self.served.serve(&pair)?;
        self.warn_of_end();
        Ok(MOUNT_INTERVAL)
    }

    /// Reads what is mounted.
    async fn mounted(&self, directory: &Path) {
        let mut last: Option<Pair> = None;
        loop {
            match read_directory(directory.to_owned()).await {
                Ok(pair) if last.as_ref() != Some(&pair) => {
                    match self.served.serve(&pair) {
                        Ok(()) => tracing::info!(?directory, "webhook certificate read"),
                        Err(problem) => tracing::error!(?directory, "{problem}"),
                    }
                    last = Some(pair);
                    self.warn_of_end();
                }
                Ok(_) => {}
                Err(problem) => {
                    tracing::error!(?directory, "webhook certificate: {problem}");
                }
            }
            sleep(MOUNT_INTERVAL).await;
        }
    }

    fn warn_of_end(&self) {
        let soon = i64::try_from(EXPIRY_GRACE.as_secs()).unwrap_or(i64::MAX);
        if let Some(left) = self.served.seconds_left().filter(|left| *left < soon) {
            let days = left / 86_400;
            tracing::warn!(
                days,
                "the webhook's certificate ends soon: renew it, or let the manager do that with \
                 agentInjector.certificate.method: manager"
            );
        }
    }
}

/// The first of several certificates in PEM.
fn first_certificate(bundle: &str) -> &str {
    const END: &str = "-----END CERTIFICATE-----\n";
    bundle
        .find(END)
        .map_or(bundle, |at| &bundle[..at + END.len()])
}

async fn read_directory(directory: PathBuf) -> Result<Pair, String> {
    let read = move || {
        let one = |names: [&str; 2]| {
            let texts = names.map(|name| std::fs::read_to_string(directory.join(name)));
            let [first, second] = texts;
            first
                .or(second)
                .map_err(|error| format!("{}: {error}", names[0]))
        };
        let bundle = one(["ca.crt", "ca.pem"]).unwrap_or_default();
        Pair::new(
            &one(["tls.crt", "crt.pem"])?,
            &one(["tls.key", "key.pem"])?,
            &bundle,
        )
    };
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| error.to_string())?
}

/// Lifetime of certificates: a variable shortens it where renewals are to be seen.
fn life() -> Duration {
    let text = std::env::var("AGENT_INJECTOR_CERTIFICATE_LIFE").ok();
    let parsed = text.and_then(|it| it.parse::<GoDuration>().ok()?.to_std());
    parsed.unwrap_or(CERTIFICATE_TTL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        vec!["agent-injector.ambassador.svc".to_owned()]
    }

    fn pair(life: Duration) -> Pair {
        let made = make(&names(), life).unwrap();
        Pair::new(&made.certificate, &made.key, &made.authority).unwrap()
    }

    #[test]
    fn what_is_made_serves_its_names_and_is_due_at_two_thirds() {
        let pair = pair(Duration::from_secs(3000));
        assert!(pair.serves(&names()));
        assert!(!pair.serves(&["other".to_owned()]));
        assert!(!pair.is_due());
        let left = pair.renewal() - now();
        assert!((1900..=2000).contains(&left), "{left}");
    }

    #[test]
    fn a_certificate_without_its_key_is_refused() {
        let (one, other) = (pair(CERTIFICATE_TTL), pair(CERTIFICATE_TTL));
        assert!(Pair::new(&one.certificate, &other.key, "").is_err());
        assert!(Pair::new("", &one.key, "").is_err());
        assert!(Pair::new(&one.certificate, "", "").is_err());
    }

    #[test]
    fn the_bundle_keeps_one_generation_back() {
        let (one, other) = (pair(CERTIFICATE_TTL), pair(CERTIFICATE_TTL));
        let both = format!("{}{}", one.bundle, other.bundle);
        assert_eq!(first_certificate(&both), one.bundle);
        assert_eq!(pem_certificates(&both).unwrap().len(), 2);
    }

    #[test]
    fn a_pair_that_does_not_fit_leaves_the_last_good_one_in_use() {
        let served = Served::default();
        assert!(!served.is_ready());
        served.serve(&pair(CERTIFICATE_TTL)).unwrap();
        let bad = Pair {
            key: String::new(),
            ..pair(CERTIFICATE_TTL)
        };
        assert!(served.serve(&bad).is_err());
        assert!(served.is_ready());
        assert!(served.seconds_left().unwrap() > 0);
    }
}
