//! Intercepts that were in force when a session was lost.

use super::*;
use crate::control::intercepts::translate::carried::RETURN_GRACE;

const A: &str = "http http x-dev=a";
const B: &str = "http http x-dev=b";

/// Returns a bench whose intercepts `a` and `b` were in force when the session was lost, with a new
/// session at a manager that knows the agent or not.
fn lost(is_known: bool) -> Bench {
    let mut bench = Bench::remembering(Some(Duration::from_secs(60)));
    bench.shown(&[active("a", A), active("b", B)]);
    lose(&mut bench, is_known);
    bench
}

fn lose(bench: &mut Bench, is_known: bool) {
    bench.rules.drop_promises();
    bench.rules.arrive(is_known, bench.now);
}

/// Returns an intercept as its client creates it in a later session.
fn created_anew(id: &str, disposition: Disposition, spec: &str) -> InterceptInfo {
    let mut info = info(id, disposition, spec);
    info.id = format!("later:{id}");
    info.client_session.as_mut().unwrap().session_id = "later".to_owned();
    info
}

#[test]
fn the_first_client_that_comes_back_does_not_end_the_intercepts_of_the_others() {
    let mut bench = lost(false);
    let outcome = bench.shown(&[active("a", A)]);
    assert_eq!(bench.active(0), ["session-a:a", "session-b:b"]);
    assert!(outcome.changes.is_empty(), "{:?}", outcome.changes);
    assert_eq!(outcome.look_again, Some(bench.now + RETURN_GRACE));
    let sessions: Vec<_> = bench.rules.carried_sessions().collect();
    assert_eq!(sessions, ["session-b"]);
    // The other one is back as well: nothing has changed for any request.
    let before = Arc::clone(&bench.tables[0].entries()[1].intercept);
    let outcome = bench.shown(&[active("a", A), active("b", B)]);
    assert_eq!(outcome.look_again, None);
    assert_eq!(bench.active(0), ["session-a:a", "session-b:b"]);
    let after = &bench.tables[0].entries()[1].intercept;
    assert!(Arc::ptr_eq(&before, after));
    assert!(outcome.changes.is_empty(), "{:?}", outcome.changes);
}

#[test]
fn what_does_not_come_back_in_time_ends() {
    let mut bench = lost(false);
    bench.shown(&[active("a", A)]);
    bench.now += RETURN_GRACE;
    let outcome = bench.shown(&[active("a", A)]);
    assert_eq!(bench.active(0), ["session-a:a"]);
    assert_eq!(bench.routed(0)[1], ("session-b:b", State::Expired));
    assert_eq!(
        outcome.changes,
        ["port 8080: intercept session-b:b of b@box ended"]
    );
}

#[test]
fn a_manager_that_still_knows_the_agent_is_believed_at_once() {
    let mut bench = lost(true);
    bench.shown(&[active("a", A)]);
    assert_eq!(bench.active(0), ["session-a:a"]);
}

#[test]
fn a_second_loss_amid_the_return_carries_the_same() {
    let mut bench = lost(false);
    bench.shown(&[active("a", A)]);
    bench.now += RETURN_GRACE / 2;
    lose(&mut bench, false);
    bench.now += RETURN_GRACE / 2;
    bench.shown(&[active("b", B)]);
    assert_eq!(bench.active(0), ["session-a:a", "session-b:b"]);
}

#[test]
fn an_intercept_that_is_reviewed_anew_stays_in_force_meanwhile() {
    let mut bench = lost(false);
    let outcome = bench.shown(&[waiting("a", A)]);
    assert_eq!(only_message(&outcome), "accepted");
    assert_eq!(bench.active(0), ["session-a:a", "session-b:b"]);
    bench.shown(&[active("a", A)]);
    assert_eq!(bench.active(0), ["session-a:a", "session-b:b"]);
}

#[test]
fn what_its_owner_creates_anew_takes_its_place_once_it_is_active() {
    let mut bench = lost(false);
    let outcome = bench.shown(&[created_anew("a", Disposition::Waiting, A)]);
    assert_eq!(only_message(&outcome), "accepted");
    assert_eq!(bench.active(0), ["session-a:a", "session-b:b"]);
    bench.shown(&[created_anew("a", Disposition::Active, A)]);
    assert_eq!(bench.active(0), ["later:a", "session-b:b"]);
    // Also with other filters, which take nothing of the former ones.
    bench.shown(&[
        created_anew("a", Disposition::Active, A),
        created_anew("b", Disposition::Active, "http http x-dev=other"),
    ]);
    assert_eq!(bench.active(0), ["later:a", "later:b"]);
}

#[test]
fn another_developers_intercept_of_the_same_requests_takes_its_place() {
    for (spec, left) in [
        (A, ["session-b:b", "session-c:c"]),
        (B, ["session-a:a", "session-c:c"]),
    ] {
        let mut bench = lost(false);
        let outcome = bench.shown(&[waiting("c", spec)]);
        assert_eq!(only_message(&outcome), "accepted");
        bench.shown(&[active("c", spec)]);
        assert_eq!(bench.active(0), left);
    }
    let mut bench = lost(false);
    bench.shown(&[active("c", "http http x-dev=c")]);
    assert_eq!(
        bench.active(0),
        ["session-a:a", "session-b:b", "session-c:c"]
    );
}

#[test]
fn what_the_manager_shows_in_another_state_ends() {
    for disposition in [
        Disposition::Removed,
        Disposition::AgentError,
        Disposition::NoClient,
    ] {
        let mut bench = lost(false);
        bench.shown(&[info("a", disposition, A)]);
        assert_eq!(bench.active(0), ["session-b:b"], "{disposition:?}");
    }
}

#[test]
fn a_whole_port_stays_taken_until_another_session_takes_it() {
    let mut bench = Bench::new();
    bench.shown(&[active("a", "tcp")]);
    lose(&mut bench, false);
    bench.shown(&[]);
    assert_eq!(bench.active(0), ["session-a:a"]);
    bench.shown(&[created_anew("a", Disposition::Waiting, "tcp")]);
    assert_eq!(bench.active(0), ["session-a:a"]);
    bench.shown(&[created_anew("a", Disposition::Active, "tcp")]);
    assert_eq!(bench.active(0), ["later:a"]);
}

#[test]
fn nothing_is_carried_once_all_traffic_goes_to_the_app() {
    let mut bench = lost(false);
    let tables = bench.rules.clear();
    bench.take(tables);
    bench.shown(&[]);
    assert!(bench.active(0).is_empty());
}
