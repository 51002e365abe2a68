//! Intercepts that are too large or too many, and reviews that the manager does not take, beside a
//! caller that nobody intercepts.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use traffic_proto::manager::{InterceptDispositionType as Disposition, InterceptInfo};

use crate::fake::{Fake, intercept};
use crate::pod::Pod;
use crate::steady::Control;

/// Time within which `/ready` has to be answered, however busy the agent is.
const READY_TIMEOUT: Duration = Duration::from_millis(500);

async fn pod(extra: &str) -> (Fake, Pod) {
    let (fake, _dialled) = Fake::start("127.0.0.1:0".parse().unwrap()).await;
    let pod = Pod::start(fake.address, extra).await;
    fake.until("the watch", |s| s.watched.contains(&"deltas"))
        .await;
    (fake, pod)
}

fn with_patterns(pod: &Pod, disposition: Disposition, count: usize) -> InterceptInfo {
    let mut large = intercept("large", disposition, pod.app_port, Some(("x-dev", "a")));
    large.spec.as_mut().unwrap().path_filters = (0..count)
        .map(|n| format!(":path-regex:/items/[a-z]+{n}(/.*)?"))
        .collect();
    large
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intercept_of_ten_thousand_patterns_is_refused_and_costs_nothing() {
    let (fake, pod) = pod("").await;
    let control = Control::of(&pod).await;
    let steady = control.beside(&pod);
    fake.show(&[with_patterns(&pod, Disposition::Waiting, 10_000)]);
    let seen = fake.until("the review", |s| !s.reviews.is_empty()).await;
    let review = &seen.reviews[0];
    assert_ne!(review.disposition(), Disposition::Active);
    assert!(review.message.contains("filters"), "{}", review.message);
    assert!(pod.stat("traffic_agent.limits.intercepts").await > 0);
    pod.until("what is said", |pod| {
        !pod.lines("intercept refused: a bound is reached")
            .is_empty()
    })
    .await;
    // Nor is it taken from a manager that says it is active.
    fake.show(&[with_patterns(&pod, Disposition::Active, 10_000)]);
    for _ in 0..50 {
        assert_eq!(pod.ask("x-dev: a\r\n").await.unwrap(), "app");
    }
    steady.unharmed(&control).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn patterns_that_are_few_and_large_are_bounded_by_their_memory() {
    let (fake, pod) = pod("").await;
    let control = Control::of(&pod).await;
    let steady = control.beside(&pod);
    let mut large = with_patterns(&pod, Disposition::Waiting, 0);
    large.spec.as_mut().unwrap().path_filters = (0..32)
        .map(|n| format!(":path-regex:(/[a-z]{{1,40}}){{1,20}}x{n}"))
        .collect();
    fake.show(&[large]);
    let seen = fake.until("the review", |s| !s.reviews.is_empty()).await;
    let message = &seen.reviews[0].message;
    assert!(
        message.contains("patternBytes") || message.contains("compiled"),
        "{message}"
    );
    steady.unharmed(&control).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_waiting_intercepts_are_reviewed_while_ready_is_answered() {
    let (fake, pod) = pod("").await;
    let control = Control::of(&pod).await;
    for crowd in [1_000, 2_000] {
        let steady = control.beside(&pod);
        let waiting: Vec<_> = (0..crowd)
            .map(|n| {
                let (name, value) = (format!("i{crowd}-{n}"), n.to_string());
                let header = Some(("x-dev", value.as_str()));
                intercept(&name, Disposition::Waiting, pod.app_port, header)
            })
            .collect();
        fake.show(&waiting);
        let reviewed = |seen: &crate::fake::Seen| {
            let ids = seen.reviews.iter().map(|r| r.id.as_str());
            let crowd = ids.filter(|id| id.starts_with(&format!("client-1:i{crowd}-")));
            crowd.collect::<HashSet<_>>().len()
        };
        while reviewed(&fake.seen()) < crowd {
            let asked = Instant::now();
            assert!(pod.admin("/ready").await.starts_with("HTTP/1.1 200"));
            let took = asked.elapsed();
            assert!(took < READY_TIMEOUT, "/ready after {took:?}");
        }
        // One client has so many of a port, and all others are refused with the bound.
        let seen = fake.seen();
        let of = |wanted| {
            let wanted = move |disposition| (disposition == Disposition::Active) == wanted;
            let reviews = seen.reviews.iter();
            let such = reviews.filter(move |r| wanted(r.disposition()));
            such.map(|r| r.id.as_str()).collect::<HashSet<_>>().len()
        };
        assert!(of(true) <= 50 * 2, "{} accepted", of(true));
        assert!(of(false) >= crowd - 50, "{} refused", of(false));
        steady.unharmed(&control).await;
        fake.show(&[]);
    }
    assert!(pod.stat("traffic_agent.limits.intercepts").await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_that_is_not_taken_is_sent_until_it_is() {
    let (fake, pod) = pod("").await;
    let control = Control::of(&pod).await;
    let steady = control.beside(&pod);
    for failures in [1, 3] {
        fake.script(|script| script.failing_reviews = failures);
        let name = format!("after-{failures}");
        fake.show(&[intercept(
            &name,
            Disposition::Waiting,
            pod.app_port,
            Some(("x-dev", &name)),
        )]);
        let id = format!("client-1:{name}");
        let seen = fake
            .until("the review", |s| s.reviews.iter().any(|r| r.id == id))
            .await;
        let review = seen.reviews.iter().find(|r| r.id == id).unwrap();
        assert_eq!(review.disposition(), Disposition::Active);
    }
    pod.until("what is said", |pod| {
        !pod.lines("did not take the review").is_empty()
    })
    .await;
    assert!(pod.stat("traffic_agent.session.reviews_again").await >= 4);
    steady.unharmed(&control).await;
}

/// Gives the agent an environment of 4.5 MB, more than a message may have.
const LARGE_ENVIRONMENT: &str = "ulimit -s unlimited
long=$(head -c 100000 /dev/zero | tr '\\0' x)
for n in $(seq 45); do export _TEL_APP_A_V$n=$long; done
exec \"$@\"";

#[tokio::test(flavor = "multi_thread")]
async fn a_review_too_large_for_the_manager_is_sent_without_the_environment() {
    let (fake, _dialled) = Fake::start("127.0.0.1:0".parse().unwrap()).await;
    let prefix = ["sh", "-c", LARGE_ENVIRONMENT, "sh"].map(str::to_owned);
    let pod = Pod::start_behind(&prefix, fake.address, "").await;
    fake.until("the watch", |s| s.watched.contains(&"deltas"))
        .await;
    let control = Control::of(&pod).await;
    let steady = control.beside(&pod);
    fake.show(&[intercept(
        "i",
        Disposition::Waiting,
        pod.app_port,
        Some(("x-dev", "a")),
    )]);
    let seen = fake.until("the review", |s| !s.reviews.is_empty()).await;
    let review = &seen.reviews[0];
    assert_eq!(review.disposition(), Disposition::Active);
    assert!(review.environment.is_empty());
    assert!(review.message.contains("too large"), "{}", review.message);
    // The arrival and the review.
    assert_eq!(pod.stat("traffic_agent.limits.message_size").await, 2);
    let arrival = &seen.arrivals[0];
    assert!(arrival.containers["app"].environment.is_empty());
    steady.unharmed(&control).await;
}
