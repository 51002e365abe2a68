//! Many pods at once, resources that namespaces prescribe, certificates that are renewed under load,
//! agents of two images side by side, and agents that nobody uses.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cluster_tests::{Cluster, HEADER, Manager, Namespace, Workload, Workstation};
use futures_util::future::join_all;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use super::life::has_agent;

/// Pods that are asked for at the same moment.
const AT_ONCE: usize = 500;
/// Life of a certificate that is renewed several times within a test.
const CERTIFICATE_TTL: Duration = Duration::from_secs(30);
/// Pause between pods under a steady rate.
const POD_INTERVAL: Duration = Duration::from_millis(50);

/// A ReplicaSet without pods, and a pod as its controller would make it.
fn pod_of(namespace: &Namespace<'_>, name: &str) -> Pod {
    let mut workload = Workload::new("ReplicaSet", name, 0, "http")
        .annotated("telepresence.io/inject-traffic-agent", "enabled");
    workload.apply(namespace);
    let sets: Api<ReplicaSet> = namespace.api();
    let set = namespace.cluster().block_on(sets.get(name)).unwrap();
    let mut pod = workload.template().clone();
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true, "name": name,
        "uid": set.metadata.uid,
    }]);
    serde_json::from_value(pod).unwrap()
}

/// What the API server makes of a pod, without keeping it.
async fn rehearsed(api: &Api<Pod>, pod: &Pod, number: usize) -> kube::Result<bool> {
    let mut pod = pod.clone();
    pod.metadata.name = Some(format!("pod-{number}"));
    let rehearsal = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    Ok(has_agent(&api.create(&rehearsal, &pod).await?))
}

#[test]
fn five_hundred_pods_at_once_all_get_their_agent() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("crowd"));
    let _manager = Manager::install(&home, &[&namespace], &json!({}));
    let pod = pod_of(&namespace, "web");
    let api: Api<Pod> = namespace.api();
    harness::wait::until("the first agent", || {
        cluster
            .block_on(rehearsed(&api, &pod, 0))
            .ok()?
            .then_some(())
    });
    let begin = Instant::now();
    let all = (0..AT_ONCE).map(|number| rehearsed(&api, &pod, number));
    let results = cluster.block_on(join_all(all));
    println!("{AT_ONCE} pods in {:?}", begin.elapsed());
    let refused: Vec<_> = results.iter().filter_map(|it| it.as_ref().err()).collect();
    assert!(
        refused.is_empty(),
        "{} refused: {:?}",
        refused.len(),
        refused[0]
    );
    let bare = results.iter().filter(|it| matches!(it, Ok(false))).count();
    assert_eq!(bare, 0, "pods without an agent");
    // The same by the controllers, for pods that are kept; no node takes them.
    let mut crowd = Workload::new("Deployment", "crowd", AT_ONCE, "http")
        .annotated("telepresence.io/inject-traffic-agent", "enabled");
    crowd.template()["spec"]["schedulerName"] = "nobody".into();
    crowd.apply(&namespace);
    let made = harness::wait::until_within(Duration::from_secs(180), "all pods", || {
        let pods = namespace.pods_with("app=crowd");
        (pods.len() == AT_ONCE).then_some(pods)
    });
    assert!(made.iter().all(has_agent), "pods without an agent");
}

/// Serial numbers do not matter: the bytes of the certificate in the Secret.
fn certificate(home: &Namespace<'_>) -> Vec<u8> {
    let api: Api<Secret> = home.api();
    let secret = home.cluster().block_on(api.get("mutator-webhook-tls"));
    let data = secret.unwrap().data.unwrap_or_default();
    data.get("tls.crt")
        .map(|it| it.0.clone())
        .unwrap_or_default()
}

#[test]
fn no_pod_is_refused_or_forgotten_while_the_certificate_is_renewed() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("renewed"));
    let life = format!("{}s", CERTIFICATE_TTL.as_secs());
    let values = json!({"agentInjector": {
        // A webhook that cannot be called refuses the pod.
        "webhook": {"failurePolicy": "Fail"}, "certificate": {"life": life},
    }});
    let _manager = Manager::install(&home, &[&namespace], &values);
    let pod = pod_of(&namespace, "web");
    let api: Api<Pod> = namespace.api();
    harness::wait::until("the first agent", || {
        cluster
            .block_on(rehearsed(&api, &pod, 0))
            .ok()?
            .then_some(())
    });
    let (mut seen, mut asked) = (BTreeSet::new(), 0);
    let end = Instant::now() + CERTIFICATE_TTL * 3;
    while seen.len() < 4 || Instant::now() < end {
        let begin = Instant::now();
        assert!(
            begin < end + CERTIFICATE_TTL * 3,
            "{} certificates only",
            seen.len()
        );
        let made = cluster.block_on(rehearsed(&api, &pod, asked));
        match made {
            Ok(has_agent) => assert!(has_agent, "pod {asked} has no agent"),
            Err(error) => panic!(
                "pod {asked} is refused at certificate {}: {error}",
                seen.len()
            ),
        }
        if asked % 10 == 0 {
            seen.insert(certificate(&home));
        }
        asked += 1;
        std::thread::sleep(POD_INTERVAL.saturating_sub(begin.elapsed()));
    }
    println!("{asked} pods through {} certificates", seen.len());
}

#[test]
fn agents_have_what_a_namespace_prescribes_for_containers() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("ranged"));
    namespace.apply(
        "
apiVersion: v1
kind: LimitRange
metadata: {name: usual}
spec:
  limits:
  - type: Container
    default: {cpu: 300m, memory: 200Mi}
    defaultRequest: {cpu: 10m, memory: 20Mi}
    max: {memory: 400Mi}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: all}
spec: {hard: {limits.cpu: '4', limits.memory: 2Gi, requests.cpu: '1', requests.memory: 1Gi}}
",
    );
    // Containers that say nothing get the namespace's defaults; the quota refuses those without.
    let silent = json!({"agent": {"resources": null, "initResources": null}});
    let manager = Manager::install(&home, &[&namespace], &silent);
    Workload::new("Deployment", "web", 1, "8080").start(&namespace);
    let workstation = Workstation::new(&manager);
    let served = workstation.intercept(namespace.name(), "web", &[]);
    namespace.settled("web", 1, has_agent);
    let pod = namespace.pods_with("app=web").pop().unwrap();
    let spec = pod.spec.unwrap();
    let inits = spec.init_containers.iter().flatten();
    for container in spec.containers.iter().chain(inits) {
        let limits = container
            .resources
            .as_ref()
            .and_then(|it| it.limits.as_ref());
        let memory = limits
            .and_then(|it| it.get("memory"))
            .map(|it| it.0.as_str());
        assert_eq!(memory, Some("200Mi"), "{}", container.name);
    }
    let caller = namespace.caller();
    harness::wait::until("the intercept", || {
        (caller.get("http://web", &["-H", HEADER]).by == served.answers_as).then_some(())
    });
    served.leave();
    let removed = workstation.run(&["uninstall", "web", "--namespace", namespace.name()]);
    assert_eq!(removed.code, 0, "{}", removed.text);
    // More than the namespace allows: the client is told, and the app goes on.
    manager.upgrade(&[&json!({"agent": {"resources": {
        "limits": {"memory": "512Mi"}, "requests": {"memory": "24Mi"},
    }}})]);
    let refused = workstation.start(namespace.name(), "web", &[]);
    assert_eq!(refused.process().exit().code(), Some(1));
    refused
        .process()
        .line("maximum memory usage per Container is 400Mi");
    assert_eq!(caller.get("http://web", &["-H", HEADER]).by, "web");
    namespace.settled("web", 1, |pod| !has_agent(pod));
}

/// Image of the next agent: the archive of another version that the variable OTHER_AGENT names, built with
/// `images/build --tag next`; else the same program under another name.
fn next_agent(cluster: &Cluster) -> String {
    match std::env::var_os("OTHER_AGENT") {
        Some(archive) => {
            cluster.load_image(Path::new(&archive));
            "localhost/traffic-agent:next".to_owned()
        }
        None => name_again(cluster, "traffic-agent", "next"),
    }
}

/// Gives an image of the node another name.
fn name_again(cluster: &Cluster, image: &str, tag: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("localhost/{image}:{tag}");
    let rig = Path::new(env!("CARGO_MANIFEST_DIR")).join("rig");
    let mut enter = Command::new(rig);
    enter
        .arg("--folder")
        .arg(cluster.folder())
        .args(["enter", "ctr", "--address"]);
    enter.arg(cluster.folder().join("run/containerd.sock"));
    enter.args(["--namespace", "k8s.io", "images", "tag", "--force"]);
    enter.arg(format!("localhost/{image}:{version}")).arg(&name);
    let output = enter.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ctr: {said}");
    name
}

fn agent_image(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    let inits = spec.init_containers.iter().flatten();
    let mut all = spec.containers.iter().chain(inits);
    all.find(|it| it.name == "traffic-agent")?.image.as_deref()
}

#[test]
fn agents_of_two_images_serve_side_by_side_while_one_replaces_the_other() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("rolled"));
    let manager = Manager::install(&home, &[&namespace], &json!({}));
    Workload::new("Deployment", "web", 3, "8080").start(&namespace);
    let workstation = Workstation::new(&manager);
    let served = workstation.intercept(namespace.name(), "web", &[]);
    namespace.settled("web", 3, has_agent);
    let caller = namespace.caller();
    harness::wait::until("the intercept", || {
        (caller.get("http://web", &["-H", HEADER]).by == served.answers_as).then_some(())
    });
    let matched = namespace.load("http://web", 50, &["-fresh", "-header", "x-dev=me"]);
    let others = namespace.load("http://web", 100, &["-fresh"]);
    others.goes_on_for(100);
    let next = next_agent(cluster);
    let mixed = std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let ready = |pods: &[Pod], wanted: bool| {
                let of = |pod: &&Pod| (agent_image(pod) == Some(&*next)) == wanted;
                pods.iter().filter(of).count()
            };
            harness::wait::until_within(Duration::from_secs(120), "agents of both images", || {
                let pods = namespace.pods_with("app=web");
                (ready(&pods, true) > 0 && ready(&pods, false) > 0).then_some(())
            });
        });
        manager.upgrade(&[&json!({"agent": {"image": {"tag": "next"}}})]);
        looking.join().is_ok()
    });
    assert!(mixed, "never were both there");
    namespace.settled("web", 3, |pod| agent_image(pod) == Some(&*next));
    matched.goes_on_for(100);
    let (matched, others) = (matched.stop(), others.stop());
    assert_eq!(
        (matched.failed(), others.failed()),
        (0, 0),
        "{matched:?} {others:?}"
    );
    assert_eq!(others.answered_by("web"), others.sent, "{others:?}");
    // While a new agent has not heard of the intercept yet, the app answers.
    let mine = matched.answered_by(&served.answers_as);
    assert_eq!(
        mine + matched.answered_by("web"),
        matched.sent,
        "{matched:?}"
    );
    println!("{mine} of {} reached the workstation", matched.sent);
    assert!(mine * 10 > matched.sent * 8, "{matched:?}");
    served.leave();
}

#[test]
fn an_agent_that_nobody_uses_goes_and_one_in_use_stays() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("idle"));
    let values = json!({"agent": {"maxIdleTime": "15s"}});
    let manager = Manager::install(&home, &[&namespace], &values);
    let workstation = Workstation::new(&manager);
    let served = ["used", "idle"].map(|name| {
        Workload::new("Deployment", name, 1, "http").start(&namespace);
        let served = workstation.intercept(namespace.name(), name, &[]);
        namespace.settled(name, 1, has_agent);
        served
    });
    let [used, idle] = served;
    let pods = namespace.pods("app=used");
    idle.leave();
    namespace.settled("idle", 1, |pod| !has_agent(pod));
    assert_eq!(
        namespace.pods("app=used"),
        pods,
        "the used one was replaced"
    );
    used.leave();
    namespace.settled("used", 1, |pod| !has_agent(pod));
}
