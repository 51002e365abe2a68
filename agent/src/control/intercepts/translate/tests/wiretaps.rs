use super::*;

fn wiretap(info: InterceptInfo) -> InterceptInfo {
    let spec = info.spec.map(|spec| InterceptSpec {
        wiretap: true,
        ..spec
    });
    InterceptInfo { spec, ..info }
}

fn copied(bench: &Bench) -> Vec<&str> {
    let rules = bench.tables[0].rules().filter(|e| e.intercept.wiretap);
    rules.map(|e| e.intercept.id.as_str()).collect()
}

#[test]
fn a_wiretap_conflicts_with_nothing_in_any_order() {
    let mut bench = Bench::new();
    let outcome = bench.shown(&[
        active("a", "tcp http"),
        wiretap(waiting("b", "tcp http")),
        wiretap(waiting("c", "tcp http")),
        wiretap(waiting("d", "http http x-dev=a")),
    ]);
    let messages: Vec<_> = outcome.reviews.iter().map(message).collect();
    assert_eq!(messages, ["accepted"; 3]);
    let outcome = bench.shown(&[
        wiretap(active("b", "tcp http")),
        wiretap(active("d", "http http x-dev=a")),
        waiting("e", "tcp http"),
    ]);
    assert_eq!(
        only_message(&outcome),
        "accepted",
        "a wiretap holds nothing"
    );
    assert_eq!(copied(&bench), ["session-b:b", "session-d:d"]);
}

#[test]
fn another_replicas_wiretap_is_adopted_beside_an_intercept_of_the_whole_port() {
    let mut bench = Bench::new();
    bench.shown(&[
        active("a", "tcp http"),
        wiretap(active("b", "tcp http")),
        wiretap(active("c", "tcp http")),
    ]);
    assert_eq!(bench.active(0), ["session-a:a"]);
    assert_eq!(copied(&bench), ["session-b:b", "session-c:c"]);
    bench.shown(&[wiretap(active("c", "tcp http")), active("d", "tcp http")]);
    // As for the stock agent: not in the pass in which one ends.
    bench.shown(&[wiretap(active("c", "tcp http")), active("d", "tcp http")]);
    assert_eq!(bench.active(0), ["session-d:d"]);
    assert_eq!(copied(&bench), ["session-c:c"]);
}

#[test]
fn an_ended_wiretap_is_not_remembered() {
    let mut bench = Bench::remembering(Some(Duration::from_secs(60)));
    bench.shown(&[wiretap(active("a", "http http x-dev=a"))]);
    assert_eq!(copied(&bench), ["session-a:a"]);
    bench.shown(&[]);
    assert!(bench.tables[0].is_empty());
}

#[test]
fn volumes_of_a_wiretap_are_for_reading() {
    let mut bench = Bench::new();
    let outcome = bench.shown(&[
        wiretap(waiting("a", "http http x-dev=a")),
        waiting("b", "http http x-dev=b"),
    ]);
    let reads_only = |review: &Review| match review.verdict {
        Verdict::Accept { reads_only, .. } => reads_only,
        Verdict::Refuse { .. } => panic!("refused"),
    };
    let seen: Vec<_> = outcome.reviews.iter().map(reads_only).collect();
    assert_eq!(seen, [true, false]);
}
