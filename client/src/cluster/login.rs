//! The login of the kubeconfig's user: a bearer token, written there or made by a program, or a
//! client certificate.

use std::sync::{Arc, OnceLock};

use futures_util::future::BoxFuture;
use hyper::{HeaderMap, Request, Response, header};
use kube::Config;
use kube::client::middleware::AuthLayer;
use kube::client::{Body, ConfigExt as _};
use tonic::metadata::{Ascii, MetadataValue};
use tower::{BoxError, Layer as _, ServiceExt as _};

use super::Certificate;

/// The kubeconfig's way to log in.
#[derive(Clone)]
pub(crate) struct Login {
    config: Arc<Config>,
    /// Made when it is asked for, since that may run a program of the kubeconfig. None: by a
    /// certificate, or not at all.
    layer: Arc<OnceLock<Option<AuthLayer>>>,
}

impl Login {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config: Arc::new(config),
            layer: Arc::default(),
        }
    }

    /// The client certificate; none if the user has none. `manager_time` is the manager's clock, in
    /// seconds since 1970.
    pub(crate) fn certificate(&self, manager_time: u64) -> Result<Option<Certificate>, String> {
        Certificate::read(&self.config, manager_time)
    }

    fn layer(&self) -> Result<Option<&AuthLayer>, String> {
        if self.layer.get().is_none() {
            let layer = self.config.auth_layer();
            let layer = layer.map_err(|error| error.to_string())?;
            return Ok(self.layer.get_or_init(|| layer).as_ref());
        }
        Ok(self.layer.get().and_then(Option::as_ref))
    }

    /// The token, made or renewed as the kubeconfig says.
    pub(crate) async fn token(&self) -> Result<Option<MetadataValue<Ascii>>, String> {
        let Some(layer) = self.layer()? else {
            return Ok(None);
        };
        // The layer puts the token into a request; this one goes nowhere else.
        let mirror = tower::service_fn(|request: Request<Body>| async move {
            let mut response = Response::new(());
            *response.headers_mut() = request.headers().clone();
            Ok::<_, BoxError>(response)
        });
        let answered: BoxFuture<'static, Result<Response<()>, BoxError>> =
            Box::pin(layer.layer(mirror).oneshot(Request::new(Body::empty())));
        let answered = answered.await.map_err(|error| error.to_string())?;
        Ok(bearer(answered.headers()))
    }
}

fn bearer(headers: &HeaderMap) -> Option<MetadataValue<Ascii>> {
    let value = headers.get(header::AUTHORIZATION)?;
    let (scheme, _) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut value = MetadataValue::try_from(value.as_bytes()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataMap;
    use tonic::service::Interceptor as _;
    use traffic_proto::client_certificate::{self, CertificateProof};
    use traffic_proto::manager_token::MODE;

    use super::*;
    use crate::credentials::Credentials;

    fn login(user: serde_json::Value) -> Login {
        let mut config = Config::new("https://127.0.0.1:1".parse().unwrap());
        config.auth_info = serde_json::from_value(user).unwrap();
        Login::new(config)
    }

    /// A user with a client certificate in files of `folder`.
    fn user_with_certificate(folder: &std::path::Path) -> (Login, Vec<u8>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let made = rcgen::CertificateParams::default()
            .self_signed(&key)
            .unwrap();
        let files = [
            ("client-certificate", made.pem()),
            ("client-key", key.serialize_pem()),
        ];
        let files = files.map(|(name, text)| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            (name.to_owned(), path.to_str().unwrap().into())
        });
        let user = serde_json::Map::from_iter(files);
        (login(user.into()), made.der().to_vec())
    }

    fn asked(mode: Option<&'static str>) -> MetadataMap {
        let mut asked = MetadataMap::new();
        if let Some(mode) = mode {
            asked.insert(MODE, MetadataValue::from_static(mode));
        }
        asked
    }

    fn sent(credentials: &mut Credentials) -> Option<String> {
        let request = credentials.call(tonic::Request::new(())).unwrap();
        assert!(!format!("{request:?}").contains("secret"), "{request:?}");
        let value = request.metadata().get("authorization")?;
        Some(value.to_str().unwrap().to_owned())
    }

    #[tokio::test]
    async fn a_manager_that_asks_gets_the_token_and_others_do_not() {
        let program = ["sh", "-c"].map(str::to_owned);
        let answer = r#"{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential",
            "status":{"token":"secret-2"}}"#;
        let exec = serde_json::json!({"exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": program[0], "args": [program[1], format!("echo '{answer}'")],
            "interactiveMode": "Never",
        }});
        let token = serde_json::json!({"token": "secret-1"});
        for (user, wanted) in [(token, "Bearer secret-1"), (exec, "Bearer secret-2")] {
            let login = login(user);
            for mode in [None, Some("permissive"), Some("enforcing")] {
                let mut credentials = Credentials::default();
                let answered = credentials.answer(&asked(mode), Some(&login)).await;
                answered.unwrap_or_else(|error| panic!("{error}"));
                let wanted = mode.map(|_| wanted.to_owned());
                assert_eq!(sent(&mut credentials), wanted, "{mode:?}");
                // An address that somebody typed gets none.
                let mut credentials = Credentials::default();
                let _ = credentials.answer(&asked(mode), None).await;
                assert_eq!(sent(&mut credentials), None);
            }
        }
    }

    #[tokio::test]
    async fn a_certificate_goes_to_managers_that_take_them_with_a_proof_by_their_time() {
        let folder = tempfile::tempdir().unwrap();
        let (login, certificate) = user_with_certificate(folder.path());
        // The manager's clock is far from ours.
        let time = 4_000_000_000;
        for mode in ["permissive", "enforcing"] {
            let mut asked = asked(Some(mode));
            let mut credentials = Credentials::default();
            let answered = credentials.answer(&asked, Some(&login)).await;
            // A manager that does not tell its time takes no certificates.
            assert_eq!(answered.is_ok(), mode == "permissive");
            let value = time.to_string().parse().unwrap();
            asked.insert(client_certificate::TIME, value);
            let answered = credentials.answer(&asked, Some(&login)).await;
            answered.unwrap_or_else(|error| panic!("{error}"));
            let mut sent = || credentials.call(tonic::Request::new(())).unwrap();
            let request = sent();
            assert!(request.metadata().get("authorization").is_none());
            let bytes = client_certificate::given(request.metadata()).unwrap();
            let proof = CertificateProof::decode(&bytes).unwrap();
            assert_eq!(proof.chain, std::slice::from_ref(&certificate));
            assert!(proof.time.abs_diff(time) < 60, "{}", proof.time);
            // The next call carries the same one.
            let again = client_certificate::given(sent().metadata());
            assert_eq!(again, Some(bytes));
        }
    }

    #[tokio::test]
    async fn a_user_without_a_token_is_told_before_the_manager_refuses() {
        let login = login(serde_json::json!({"username": "a", "password": "secret"}));
        let credentials = Credentials::default();
        let (permissive, enforcing) = (asked(Some("permissive")), asked(Some("enforcing")));
        let answered = credentials.answer(&permissive, Some(&login)).await;
        assert!(answered.is_ok());
        let answered = credentials.answer(&enforcing, Some(&login)).await;
        let said = answered.unwrap_err().to_string();
        assert!(said.contains("kubectl create token"), "{said}");
    }
}
