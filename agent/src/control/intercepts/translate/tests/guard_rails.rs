//! Rules of the platform team: one row for each refusal.

use std::collections::BTreeMap;

use traffic_proto::guard_rails::{GuardRails, Rule};

use super::*;
use crate::control::intercepts::guard_rails::Rails;

fn rails(rules: &[(Rule, &str)]) -> GuardRails {
    let mut rails = GuardRails::default();
    for (rule, text) in rules {
        rails.set(*rule, text).unwrap();
    }
    rails
}

/// A bench whose chart has these rules and whose pod those.
fn guarded(chart: &[(Rule, &str)], annotated: &[(Rule, &str)]) -> Bench {
    let key = |rule: &Rule| format!("telepresence.io/{}", rule.annotation());
    let annotated = annotated
        .iter()
        .map(|(rule, text)| (key(rule), (*text).to_owned()));
    let annotated: BTreeMap<_, _> = annotated.collect();
    let rails = Rails::of(&rails(chart), &annotated);
    let mut bench = Bench::new();
    bench.rules = bench.rules.within(Bounds::default().guarded(rails));
    bench
}

fn first_message(bench: &mut Bench, info: InterceptInfo) -> String {
    let outcome = bench.shown(&[info]);
    message(&outcome.reviews[0]).to_owned()
}

#[test]
fn each_rule_refuses_by_its_name_whoever_set_it() {
    use Rule::{AllowGlobal, AllowedHeaders, ForbiddenHeaders};
    let rows: [(Rule, &str, &str, bool); 16] = [
        (AllowedHeaders, "x-dev", "http http x-dev=a", true),
        (AllowedHeaders, "x-dev", "http http X-Dev=a", true),
        (AllowedHeaders, "x-*", "http http x-dev=a x-team=b", true),
        (AllowedHeaders, "x-*", "http http x-dev=a y=b", false),
        (AllowedHeaders, "x-dev", "http http cookie[user]=a", false),
        (AllowedHeaders, "x-dev", "http http not:y=a", false),
        (AllowedHeaders, "x-dev", "http http grpc[service]=a", true),
        (AllowedHeaders, "x-dev", "http http :path-prefix:/a", true),
        (ForbiddenHeaders, "authorization", "http http x-dev=a", true),
        (
            ForbiddenHeaders,
            "auth*",
            "http http Authorization=a",
            false,
        ),
        (
            ForbiddenHeaders,
            "cookie",
            "http http any:cookie[a]=b",
            false,
        ),
        (AllowGlobal, "false", "http http x-dev=a", true),
        (AllowGlobal, "false", "tcp http", false),
        (AllowGlobal, "false", "http http", false),
        (AllowGlobal, "false", "http http :path-prefix:/", false),
        (AllowGlobal, "false", "http http not:x-dev=a", false),
    ];
    for (rule, text, spec, accepted) in rows {
        let sources = [
            (guarded(&[(rule, text)], &[]), rule.chart_value()),
            (guarded(&[], &[(rule, text)]), rule.annotation()),
        ];
        for (mut bench, name) in sources {
            let outcome = bench.shown(&[waiting("a", spec)]);
            let review = &outcome.reviews[0];
            assert_eq!(!review.is_refusal(), accepted, "{text} {spec}: {review:?}");
            if !accepted {
                let message = message(review);
                assert!(message.contains(name), "{message}");
            }
        }
    }
}

#[test]
fn an_annotation_narrows_the_chart_and_never_widens_it() {
    let strict = [(Rule::AllowedHeaders, "x-dev"), (Rule::MaxPerPort, "1")];
    let loose = [
        (Rule::AllowedHeaders, "x-other"),
        (Rule::AllowGlobal, "true"),
        (Rule::MaxPerPort, "9"),
    ];
    let mut bench = guarded(&strict, &loose);
    let said = first_message(&mut bench, waiting("a", "http http x-other=a"));
    assert!(
        said.contains("chart value intercept.allowedHeaders"),
        "{said}"
    );
    let said = first_message(&mut bench, waiting("a", "http http x-dev=a"));
    assert!(said.contains("intercept-allowed-headers"), "{said}");
}

#[test]
fn one_more_than_a_port_may_have_is_refused_until_one_ends() {
    let mut bench = guarded(&[], &[(Rule::MaxPerPort, "2")]);
    let (a, b) = (active("a", "http http x=a"), active("b", "http http x=b"));
    bench.shown(&[a.clone(), b.clone()]);
    let outcome = bench.shown(&[a.clone(), b, waiting("c", "http http x=c")]);
    let said = message(&outcome.reviews[0]);
    assert!(
        said.contains("may serve 2") && said.contains("intercept-max-per-port"),
        "{said}"
    );
    // Another port has its own number.
    let outcome = bench.shown(&[a.clone(), waiting("d", "http dns")]);
    assert!(!message(&outcome.reviews[0]).contains("may serve"));
    let outcome = bench.shown(&[a, waiting("c", "http http x=c")]);
    assert!(!outcome.reviews[0].is_refusal());
}

#[test]
fn an_intercept_ends_after_its_time_and_its_owner_is_told() {
    let mut bench = guarded(&[(Rule::MaxLifetime, "2h")], &[(Rule::MaxLifetime, "1h")]);
    let mut old = active("old", "http http x=old");
    old.created_at = Some((bench.wall - Duration::from_secs(1800)).into());
    let young = active("young", "http http x=young");
    let outcome = bench.shown(&[old.clone(), young.clone()]);
    assert_eq!(bench.active(0), ["session-old:old", "session-young:young"]);
    // Half an hour is over already by the manager's word.
    let wait = outcome.look_again.unwrap() - bench.now;
    assert!(wait <= Duration::from_secs(1800), "{wait:?}");
    bench.now += Duration::from_secs(1801);
    let outcome = bench.shown(&[old.clone(), young.clone()]);
    assert_eq!(bench.active(0), ["session-young:young"]);
    let [review] = &outcome.reviews[..] else {
        panic!("{:?}", outcome.reviews);
    };
    assert!(review.ends && review.id == old.id);
    let said = message(review);
    assert!(
        said.contains("lived for 1h0m0s") && said.contains("intercept-max-lifetime"),
        "{said}"
    );
    assert!(outcome.changes.iter().any(|it| it.contains("lived for")));
    // A manager that does not take it is told again, and the log is not.
    let outcome = bench.shown(&[old.clone(), young.clone()]);
    assert_eq!((outcome.reviews.len(), outcome.changes.len()), (1, 0));
    // The manager has taken it: nothing is left to say.
    old.set_disposition(Disposition::AgentError);
    assert!(bench.shown(&[old, young]).reviews.is_empty());
}

#[test]
fn an_annotation_that_cannot_be_read_lets_nothing_pass() {
    let mut bench = guarded(&[], &[(Rule::MaxPerPort, "few")]);
    let said = first_message(&mut bench, waiting("a", "http http x=a"));
    assert!(
        said.contains("intercept-max-per-port") && said.contains("few"),
        "{said}"
    );
}

#[test]
fn a_wiretap_may_be_of_a_whole_port_and_keeps_the_other_rules() {
    let mut bench = guarded(
        &[
            (Rule::AllowGlobal, "false"),
            (Rule::ForbiddenHeaders, "cookie"),
        ],
        &[],
    );
    let wiretap = |spec: &str| {
        let mut info = waiting("a", spec);
        info.spec.as_mut().unwrap().wiretap = true;
        info
    };
    let outcome = bench.shown(&[wiretap("tcp http")]);
    assert!(!outcome.reviews[0].is_refusal(), "{:?}", outcome.reviews);
    let said = first_message(&mut bench, wiretap("http http cookie=a"));
    assert!(said.contains("intercept.forbiddenHeaders"), "{said}");
}
