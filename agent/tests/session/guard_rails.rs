//! The platform team's rules, from the configuration and the pod's annotations, in the agent as a
//! program.

use traffic_proto::manager::{InterceptDispositionType as Disposition, InterceptInfo};

use crate::fake::{Fake, Seen, intercept};
use crate::pod::Pod;

/// Gives the pod annotations before its agent starts.
const ANNOTATE: &str = r#"for root; do :; done
mkdir -p "$root/etc/podinfo"
printf '%s\n' "$ANNOTATIONS" >"$root/etc/podinfo/annotations"
exec "$@""#;

async fn pod(rails: &str, annotations: &str) -> (Fake, Pod) {
    let (fake, _dialled) = Fake::start("127.0.0.1:0".parse().unwrap()).await;
    let script = format!("ANNOTATIONS='{annotations}'\n{ANNOTATE}");
    let prefix = ["sh", "-c", &script, "sh"].map(str::to_owned);
    let pod = Pod::start_behind(&prefix, fake.address, rails).await;
    fake.until("the watch", |s| s.watched.contains(&"deltas"))
        .await;
    (fake, pod)
}

/// Disposition and message of the last review of an intercept.
async fn reviewed(fake: &Fake, info: &InterceptInfo) -> (Disposition, String) {
    fake.show(std::slice::from_ref(info));
    let of_it = |seen: &Seen| seen.reviews.iter().rfind(|r| r.id == info.id).cloned();
    let seen = fake.until("the review", |seen| of_it(seen).is_some()).await;
    let review = of_it(&seen).unwrap();
    (review.disposition(), review.message)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intercept_keeps_the_rules_of_chart_and_annotations() {
    let (fake, pod) = pod(
        "guardRails: {allowGlobal: false, forbiddenHeaders: [authorization]}",
        r#"telepresence.io/intercept-allowed-headers="x-dev,authorization""#,
    )
    .await;
    let waiting = |name: &str, header| intercept(name, Disposition::Waiting, pod.app_port, header);
    for (name, header, said) in [
        (
            "global",
            None,
            "chart value intercept.allowGlobalIntercepts",
        ),
        (
            "forbidden",
            Some(("authorization", "a")),
            "chart value intercept.forbiddenHeaders",
        ),
        (
            "unlisted",
            Some(("x-other", "a")),
            "annotation telepresence.io/intercept-allowed-headers",
        ),
    ] {
        let (disposition, message) = reviewed(&fake, &waiting(name, header)).await;
        assert_eq!(disposition, Disposition::BadArgs, "{message}");
        assert!(message.contains(said), "{message}");
    }
    let (disposition, message) = reviewed(&fake, &waiting("good", Some(("x-dev", "a")))).await;
    assert_eq!(disposition, Disposition::Active, "{message}");
    // Nor is anything else routed that a manager says is active.
    let forbidden = Some(("authorization", "a"));
    let active = |name: &str, header| intercept(name, Disposition::Active, pod.app_port, header);
    fake.show(&[
        active("forbidden", forbidden),
        active("good", Some(("x-dev", "a"))),
    ]);
    pod.until("the good one", |pod| {
        !pod.lines("intercept client-1:good of").is_empty()
    })
    .await;
    assert!(pod.lines("intercept client-1:forbidden of").is_empty());
    assert_eq!(pod.ask("authorization: a\r\n").await.unwrap(), "app");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intercept_ends_when_it_has_lived_its_time() {
    let (fake, pod) = pod("guardRails: {maxLifetime: 300ms}", "").await;
    let header = Some(("x-dev", "a"));
    fake.show(&[intercept("i", Disposition::Active, pod.app_port, header)]);
    let seen = fake
        .until("the end", |seen| seen.reviews.iter().any(|r| r.ends))
        .await;
    let review = seen.reviews.iter().find(|r| r.ends).unwrap();
    assert_eq!(review.disposition(), Disposition::AgentError);
    assert!(
        review.message.contains("it has lived for 300ms")
            && review.message.contains("chart value intercept.maxLifetime"),
        "{}",
        review.message
    );
    // The manager still shows it as active.
    assert_eq!(pod.ask("x-dev: a\r\n").await.unwrap(), "app");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_served_while_an_annotation_cannot_be_read() {
    let key = "telepresence.io/intercept-max-per-port";
    let (fake, pod) = pod("", &format!("{key}=\"few\"")).await;
    let header = Some(("x-dev", "a"));
    let waiting = intercept("i", Disposition::Waiting, pod.app_port, header);
    let (disposition, message) = reviewed(&fake, &waiting).await;
    assert_eq!(disposition, Disposition::AgentError, "{message}");
    assert!(
        message.contains(key) && message.contains("few"),
        "{message}"
    );
    let line = "no intercept is served until";
    pod.until("the reason to be said", |pod| pod.lines(line).len() == 1)
        .await;
}
