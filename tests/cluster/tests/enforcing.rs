//! Authentication that is enforced: who may, may; one row for each of those who may not.

use cluster_tests::{Cluster, HEADER, Manager, Namespace, User, Workload, Workstation};
use harness::wait::until;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use traffic_proto::client_certificate;
use traffic_proto::manager::agent_info::Mechanism;
use traffic_proto::manager::manager_client::ManagerClient;
use traffic_proto::manager::{
    AgentInfo, ClientInfo, CreateInterceptRequest, EnsureAgentRequest, InterceptSpec,
    LogLevelRequest, RemainRequest, SessionInfo,
};

use super::life::has_agent;

/// Audience of agents' tokens.
const AUDIENCE: &str = "traffic-manager";

/// A token of a service account.
fn token(
    namespace: &Namespace<'_>,
    account: &str,
    audience: Option<&str>,
    pod: Option<&Pod>,
) -> String {
    let accounts: Api<ServiceAccount> = namespace.api();
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: audience.map(str::to_owned).into_iter().collect(),
            bound_object_ref: pod.map(|pod| BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
            expiration_seconds: Some(3600),
        },
        ..TokenRequest::default()
    };
    let options = PostParams::default();
    let made = accounts.create_token_request(account, &options, &request);
    let made = namespace.cluster().block_on(made).unwrap();
    made.status.unwrap().token
}

/// A developer whose kubeconfig has a token of a new service account.
fn developer(namespace: &Namespace<'_>, name: &str) -> User {
    namespace.apply(&format!(
        "{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {name}}}}}"
    ));
    let account = format!("system:serviceaccount:{}:{name}", namespace.name());
    let token = token(namespace, name, None, None);
    namespace.cluster().user_with(&account, &token)
}

/// The manager's API through a port-forward of the administrator.
struct Port<'a> {
    manager: &'a Manager<'a>,
    client: ManagerClient<Channel>,
}

impl<'a> Port<'a> {
    fn open(manager: &'a Manager<'a>, home: &Namespace<'_>) -> Self {
        let (pods, pod): (Api<Pod>, _) = (home.api(), manager.leader());
        let connector = tower::service_fn(move |_| {
            let (pods, pod) = (pods.clone(), pod.clone());
            async move {
                let mut forwarder = pods.portforward(&pod, &[8081]).await?;
                let stream = forwarder.take_stream(8081).unwrap();
                // It forwards as long as it is there.
                tokio::spawn(forwarder.join());
                Ok::<_, kube::Error>(TokioIo::new(stream))
            }
        });
        let connect = async {
            Endpoint::from_static("http://manager:8081").connect_with_connector_lazy(connector)
        };
        let channel = manager.cluster().block_on(connect);
        Self {
            manager,
            client: ManagerClient::new(channel),
        }
    }

    fn call<T, F>(
        &self,
        token: Option<&str>,
        call: impl FnOnce(ManagerClient<Channel>, Request<()>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let mut request = Request::new(());
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        let answer = call(self.client.clone(), request);
        let answer = self.manager.cluster().block_on(answer);
        answer.map(tonic::Response::into_inner)
    }

    fn arrive(&self, token: Option<&str>) -> Result<SessionInfo, Status> {
        let info = ClientInfo {
            name: "dev".to_owned(),
            product: "telepresence".to_owned(),
            version: "v2.20.0".to_owned(),
            ..ClientInfo::default()
        };
        self.call(token, |mut client, request| async move {
            client.arrive_as_client(request.map(|()| info)).await
        })
    }

    fn arrive_by_certificate(&self, proof: &[u8]) -> Result<SessionInfo, Status> {
        self.call(None, |mut client, request| async move {
            let mut request = request.map(|()| ClientInfo::default());
            let proof = MetadataValue::from_bytes(proof);
            let metadata = request.metadata_mut();
            metadata.insert_bin(client_certificate::PROOF, proof);
            client.arrive_as_client(request).await
        })
    }

    fn arrive_as_agent(&self, token: Option<&str>, of: &Pod) -> Result<SessionInfo, Status> {
        let name = |text: &str| text.to_owned();
        let info = AgentInfo {
            name: name("web"),
            namespace: of.metadata.namespace.clone().unwrap(),
            pod_name: of.metadata.name.clone().unwrap(),
            pod_uid: of.metadata.uid.clone().unwrap(),
            product: name("telepresence"),
            version: name("v2.20.0"),
            mechanisms: vec![Mechanism {
                name: name("tcp"),
                product: name("telepresence"),
                version: name("v2.20.0"),
            }],
            ..AgentInfo::default()
        };
        self.call(token, |mut client, request| async move {
            client.arrive_as_agent(request.map(|()| info)).await
        })
    }

    fn remain(&self, token: Option<&str>, session: &SessionInfo) -> Result<(), Status> {
        let session = Some(session.clone());
        self.call(token, |mut client, request| async move {
            let remain = RemainRequest {
                session,
                ..RemainRequest::default()
            };
            client.remain(request.map(|()| remain)).await
        })
    }

    fn create(
        &self,
        token: Option<&str>,
        session: &SessionInfo,
        namespace: &str,
    ) -> Result<(), Status> {
        let request = CreateInterceptRequest {
            session: Some(session.clone()),
            intercept_spec: Some(InterceptSpec {
                name: "x".to_owned(),
                agent: "web".to_owned(),
                namespace: namespace.to_owned(),
                mechanism: "tcp".to_owned(),
                target_host: "127.0.0.1".to_owned(),
                target_port: 1,
                ..InterceptSpec::default()
            }),
            ..CreateInterceptRequest::default()
        };
        let created = self.call(token, |mut client, meta| async move {
            client.create_intercept(meta.map(|()| request)).await
        });
        created.map(|_| ())
    }

    fn ingest(
        &self,
        token: Option<&str>,
        session: &SessionInfo,
        namespace: &str,
    ) -> Result<(), Status> {
        let request = EnsureAgentRequest {
            session: Some(session.clone()),
            name: "web".to_owned(),
            namespace: namespace.to_owned(),
        };
        let ensured = self.call(token, |mut client, meta| async move {
            client.ensure_agent(meta.map(|()| request)).await
        });
        ensured.map(|_| ())
    }
}

/// Checks a refusal and adds its row to the table.
fn refused<T: std::fmt::Debug>(row: &str, answer: Result<T, Status>, code: Code, said: &str) {
    let status = answer.expect_err(row);
    assert_eq!(status.code(), code, "{row}: {status:?}");
    assert!(
        status.message().contains(said),
        "{row}: {}",
        status.message()
    );
    println!("| {row} | {code:?} | {} |", status.message());
}

#[test]
fn nobody_gets_in_without_the_proof_and_the_right() {
    let cluster = Cluster::shared();
    let home = cluster.namespace("manager");
    let (shop, other) = (cluster.namespace("shop"), cluster.namespace("other"));
    let dev = developer(&shop, "dev");
    developer(&shop, "eve");
    let mallory = token(&shop, "default", None, None);
    let subject =
        |name: &str| json!({"kind": "ServiceAccount", "name": name, "namespace": shop.name()});
    let values = json!({
        "security": {"authentication": {"mode": "enforcing"}},
        "clientRbac": {
            "create": true, "namespaced": true, "namespaces": [shop.name()],
            "subjects": [subject("dev"), subject("eve")],
        },
    });
    let manager = Manager::install(&home, &[&shop, &other], &values);
    for namespace in [&shop, &other] {
        Workload::new("Deployment", "web", 1, "http").start(namespace);
    }

    // Who has the proof and the right intercepts, through an agent that has proved what it is.
    let workstation = Workstation::of(&manager, &dev);
    let served = workstation.intercept(shop.name(), "web", &[]);
    shop.settled("web", 1, has_agent);
    let caller = shop.caller();
    until("the intercept", || {
        let answer = caller.get("http://web", &["-H", HEADER]);
        (answer.by == served.answers_as).then_some(())
    });

    let port = Port::open(&manager, &home);
    println!("| who | code | said |\n| --- | --- | --- |");
    let unproved = Code::Unauthenticated;
    refused(
        "no token, as stock clients up to 2.30",
        port.arrive(None),
        unproved,
        "carries neither a token",
    );
    refused(
        "a made-up token",
        port.arrive(Some("a.b.c")),
        unproved,
        "does not accept",
    );
    let vault = token(&shop, "dev", Some("vault"), None);
    refused(
        "a token for another audience",
        port.arrive(Some(&vault)),
        unproved,
        "does not accept",
    );

    let dev_token = token(&shop, "dev", None, None);
    let session = port.arrive(Some(&dev_token)).unwrap();
    let eve_token = token(&shop, "eve", None, None);
    port.remain(Some(&dev_token), &session).unwrap();
    let stolen = port.remain(Some(&eve_token), &session);
    refused(
        "somebody else's session id",
        stolen,
        Code::PermissionDenied,
        "was not begun by user",
    );
    refused(
        "a session id without a token",
        port.remain(None, &session),
        unproved,
        "neither a token",
    );
    let right = "add {apiGroups: [telepresence.io], resources: [connections], verbs: [create]}";
    refused(
        "a user without any right",
        port.arrive(Some(&mallory)),
        Code::PermissionDenied,
        right,
    );
    let elsewhere = port.create(Some(&dev_token), &session, other.name());
    let right = format!(
        "resources: [attachments/deployments], resourceNames: [web], verbs: [create]}} to the rules of \
         a Role in namespace {}",
        other.name()
    );
    refused(
        "a right in another namespace",
        elsewhere,
        Code::PermissionDenied,
        &right,
    );
    let elsewhere = port.ingest(Some(&dev_token), &session, other.name());
    refused(
        "an ingest in another namespace",
        elsewhere,
        Code::PermissionDenied,
        "resourceNames: [web], verbs: [get]} to the rules of a Role",
    );
    port.ingest(Some(&dev_token), &session, shop.name())
        .unwrap();
    let levels = port.call(Some(&dev_token), |mut client, request| async move {
        client
            .set_log_level(request.map(|()| LogLevelRequest::default()))
            .await
    });
    refused(
        "a user who changes log levels",
        levels,
        Code::PermissionDenied,
        "resources: [logs]",
    );

    agents_that_are_none(&port, &shop, &other);

    // The agent's own ports are open to its pod and to port-forwards alone.
    let pod = shop.ready_pod(&shop.pods("app=web")[0]);
    let ip = pod.status.unwrap().pod_ip.unwrap();
    for agent_port in [18000, 19000] {
        let answer = caller.try_get(&format!("http://{ip}:{agent_port}/"), &[]);
        let error = answer.expect_err("a direct call");
        println!(
            "| another pod at the agent's port {agent_port} | – | {} |",
            error.trim()
        );
    }

    // Nothing of all this is in the manager's log but names.
    let logs = manager.logs();
    for secret in [&dev_token, &eve_token, &mallory, &vault] {
        let signature = secret.rsplit('.').next().unwrap();
        assert!(!logs.contains(signature), "a token in the log");
    }
    assert!(logs.contains("authentication: refused"), "{logs}");
    served.leave();
}

/// Rows about agents.
fn agents_that_are_none(port: &Port<'_>, shop: &Namespace<'_>, other: &Namespace<'_>) {
    let denied = Code::PermissionDenied;
    let mine = shop.ready_pod(&shop.pods("app=web")[0]);
    let (caller, foreign) = (shop.caller(), other.caller());
    let pod = shop.ready_pod(caller.pod());
    let theirs = other.ready_pod(foreign.pod());
    let none = port.arrive_as_agent(None, &mine);
    refused(
        "an agent without a token",
        none,
        Code::Unauthenticated,
        "neither a token",
    );
    let of_user = token(shop, "dev", None, None);
    let as_agent = port.arrive_as_agent(Some(&of_user), &mine);
    refused(
        "a user as agent",
        as_agent,
        denied,
        "not made for audience traffic-manager",
    );
    let of_pod = token(shop, "default", Some(AUDIENCE), Some(&pod));
    let as_other = port.arrive_as_agent(Some(&of_pod), &mine);
    refused(
        "another pod's token",
        as_other,
        denied,
        "its token is that of pod caller",
    );
    let of_theirs = token(other, "default", Some(AUDIENCE), Some(&theirs));
    let as_mine = port.arrive_as_agent(Some(&of_theirs), &mine);
    refused(
        "a pod of another namespace",
        as_mine,
        denied,
        &format!("in namespace {}", other.name()),
    );
    let unbound = token(shop, "default", Some(AUDIENCE), None);
    let as_mine = port.arrive_as_agent(Some(&unbound), &mine);
    refused(
        "a token bound to no pod",
        as_mine,
        denied,
        "its token is that of pod (none)",
    );
    refused(
        "an agent as user",
        port.arrive(Some(&of_pod)),
        denied,
        "is an agent and may not",
    );
    let replayed = SessionInfo {
        session_id: format!("agent:{}", mine.metadata.uid.clone().unwrap()),
        ..SessionInfo::default()
    };
    // Whether a client has a session is what an agent may ask, for its own port.
    let client = port.arrive(Some(&of_user)).unwrap();
    port.remain(Some(&of_pod), &client).unwrap();
    let remained = port.remain(Some(&of_pod), &replayed);
    refused(
        "another agent's session id",
        remained,
        denied,
        "was not begun by user",
    );
    // A token ends with the pod that it is bound to.
    let pods: Api<Pod> = shop.api();
    let at_once = DeleteParams::default().grace_period(0);
    let deleted = pods.delete(pod.metadata.name.as_ref().unwrap(), &at_once);
    shop.cluster().block_on(deleted).unwrap();
    let revoked = token_is_over(port, &of_pod, &pod);
    refused(
        "a pod's token after the pod",
        revoked,
        Code::Unauthenticated,
        "does not accept",
    );
}

/// Waits until the answers that the manager remembers are forgotten.
fn token_is_over(port: &Port<'_>, token: &str, pod: &Pod) -> Result<SessionInfo, Status> {
    until("the end of a token", || {
        let answer = port.arrive_as_agent(Some(token), pod);
        let is_over = answer
            .as_ref()
            .is_err_and(|status| status.code() == Code::Unauthenticated);
        is_over.then_some(answer)
    })
}

#[test]
fn a_user_with_a_certificate_gets_in_by_it_and_only_where_he_has_the_right() {
    let cluster = Cluster::shared();
    let home = cluster.namespace("manager");
    let (shop, other) = (cluster.namespace("shop"), cluster.namespace("other"));
    let jane = cluster.user(&format!("jane-of-{}", shop.name()), &[]);
    let group = format!("group-of-{}", shop.name());
    let kim = cluster.user(&format!("kim-of-{}", shop.name()), &[&group]);
    let api = "rbac.authorization.k8s.io";
    let by = |x509: bool, mode: &str| {
        json!({
            "security": {"authentication": {"mode": mode, "x509": {"enabled": x509}}},
            "clientRbac": {
                "create": true, "namespaced": true, "namespaces": [shop.name()],
                "subjects": [
                    {"kind": "User", "name": jane.name, "apiGroup": api},
                    {"kind": "Group", "name": group, "apiGroup": api},
                ],
            },
        })
    };
    let manager = Manager::install(&home, &[&shop, &other], &by(false, "enforcing"));
    for namespace in [&shop, &other] {
        Workload::new("Deployment", "web", 1, "http").start(namespace);
    }
    let workstation = Workstation::of(&manager, &jane);
    let refused = workstation.start(shop.name(), "web", &[]);
    refused
        .process()
        .line("security.authentication.x509.enabled");
    assert_eq!(refused.process().exit().code(), Some(1));

    manager.upgrade(&[&by(true, "enforcing")]);
    let listed = |workstation: &Workstation<'_>| {
        until("the manager's rights", || {
            let said = workstation.run(&["list"]);
            (said.code == 0).then_some(())
        });
    };
    listed(&workstation);
    let served = workstation.intercept(shop.name(), "web", &[]);
    let caller = shop.caller();
    until("the intercept", || {
        let answer = caller.get("http://web", &["-H", HEADER]);
        (answer.by == served.answers_as).then_some(())
    });
    // The groups that the certificate names count as well.
    listed(&Workstation::of(&manager, &kim));
    let refused = workstation.start(other.name(), "web", &[]);
    let said = format!("user {:?} may not", jane.name);
    refused.process().line(&said);
    assert_eq!(refused.process().exit().code(), Some(1));
    let port = Port::open(&manager, &home);
    for proof in [&b"garbage"[..], &[0; 64]] {
        let status = port.arrive_by_certificate(proof).unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        assert!(status.message().contains("cannot be read"), "{status:?}");
    }
    served.leave();

    // Where it is not enforced, the log says what would be refused.
    manager.upgrade(&[&by(true, "permissive")]);
    Port::open(&manager, &home).arrive(None).unwrap();
    let logs = manager.logs();
    let said = "authentication: would be refused if enforcing: this traffic-manager asks";
    assert!(logs.contains(said), "{logs}");
}
