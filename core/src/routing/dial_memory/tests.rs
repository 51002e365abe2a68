use super::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn dial(memory: &Arc<DialMemory>, now: Instant) -> Attempt {
    match memory.admit(now, None, true) {
        Admission::Dial(attempt) => attempt,
        Admission::Skip(skipped) => panic!("skipped: {skipped:?}"),
    }
}

fn skipped(memory: &Arc<DialMemory>, now: Instant) -> Duration {
    match memory.admit(now, None, true) {
        Admission::Skip(skipped) => skipped.retry_in,
        Admission::Dial(_) => panic!("not skipped"),
    }
}

#[test]
fn failures_in_a_row_are_skipped_for_longer_and_longer_up_to_a_bound() {
    let memory = Arc::<DialMemory>::default();
    let mut now = Instant::now();
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        dial(&memory, now).failed(now, "rejected");
        assert_eq!(skipped(&memory, now), Duration::from_secs(seconds));
        now += Duration::from_secs(seconds);
    }
    dial(&memory, now).succeeded(now);
    assert_eq!(memory.reachability(now), Reachability::Reachable);
    dial(&memory, now).failed(now, "rejected");
    assert_eq!(skipped(&memory, now), Duration::from_secs(1));
}

#[test]
fn after_a_failure_one_request_at_a_time_tries() {
    let memory = Arc::<DialMemory>::default();
    let now = Instant::now();
    dial(&memory, now).failed(now, "no answer");
    let later = now + ms(1000);
    let trying = dial(&memory, later);
    assert!(trying.is_doubted() && trying.patience().is_none());
    assert_eq!(skipped(&memory, later), Duration::ZERO);
    trying.succeeded(later + ms(5));
    assert!(!dial(&memory, later).is_doubted());
}

#[test]
fn a_caller_that_leaves_frees_the_way_for_the_next_one() {
    let memory = Arc::<DialMemory>::default();
    let now = Instant::now();
    dial(&memory, now).failed(now, "no answer");
    drop(dial(&memory, now + ms(1000)));
    assert!(dial(&memory, now + ms(1001)).is_doubted());
}

#[test]
fn behind_an_unanswered_dial_others_wait_little_longer_than_usual() {
    let memory = Arc::<DialMemory>::default();
    let now = Instant::now();
    dial(&memory, now).succeeded(now + ms(50));
    let leader = dial(&memory, now);
    assert_eq!(leader.patience(), None);
    assert_eq!(dial(&memory, now).patience(), Some(ms(150)));
    // All who wait give up at the same time.
    assert_eq!(dial(&memory, now + ms(100)).patience(), Some(ms(50)));
    let Admission::Dial(own) = memory.admit(now, None, false) else {
        panic!()
    };
    assert_eq!(own.patience(), Some(ms(1000)));
    // Whoever comes when it is overdue is not held up at all.
    assert_eq!(skipped(&memory, now + ms(151)), Duration::ZERO);
    assert!(!own.others_succeeded());
    leader.succeeded(now + ms(60));
    assert!(own.others_succeeded());
    // The workstation has answered since this one began.
    let next = dial(&memory, now + ms(61));
    assert_eq!(next.patience(), None);
    dial(&memory, now + ms(61)).succeeded(now + ms(70));
    let behind = dial(&memory, now + ms(200));
    assert_eq!(behind.patience(), Some(ms(150)));
}

#[test]
fn a_laptop_that_is_busy_for_a_moment_keeps_its_port() {
    let memory = Arc::<DialMemory>::default();
    let now = Instant::now();
    dial(&memory, now).succeeded(now + ms(1));
    let leader = dial(&memory, now);
    assert_eq!(dial(&memory, now).patience(), Some(ms(150)));
    let behind = dial(&memory, now + ms(149));
    assert_eq!(behind.patience(), Some(ms(1)));
    leader.succeeded(now + ms(149));
    assert!(behind.others_succeeded());
}

#[test]
fn callers_of_a_whole_port_wait_as_long_as_the_slowest_dial_of_late_took() {
    let memory = Arc::<DialMemory>::default();
    let now = Instant::now();
    dial(&memory, now).succeeded(now + ms(400));
    for _ in 0..20 {
        dial(&memory, now).succeeded(now + ms(1));
    }
    let leader = dial(&memory, now + ms(500));
    assert_eq!(dial(&memory, now + ms(500)).patience(), Some(ms(400)));
    assert_eq!(dial(&memory, now + ms(899)).patience(), Some(ms(1)));
    assert_eq!(skipped(&memory, now + ms(901)), Duration::ZERO);
    drop(leader);
    let later = now + ms(400) + SLOWEST_AGE;
    let _leader = dial(&memory, later);
    assert_eq!(dial(&memory, later).patience(), Some(ms(150)));
}

#[test]
fn callers_of_a_whole_port_do_not_wait_much_longer_than_dials_take() {
    let memory = Arc::<DialMemory>::default();
    let now = Instant::now();
    let first = dial(&memory, now);
    assert_eq!(first.limit(), None, "nothing is known yet");
    first.succeeded(now + ms(50));
    let later = dial(&memory, now);
    assert_eq!(later.limit(), Some(ms(1000)));
    later.failed(now, "no answer");
    let again = dial(&memory, now + ms(1000));
    assert_eq!(again.limit(), Some(ms(400)));
    drop(again);
    let Admission::Dial(own) = memory.admit(now + ms(1000), None, false) else {
        panic!()
    };
    assert_eq!(
        own.limit(),
        None,
        "with filters callers are the developer's own"
    );
}

#[test]
fn dials_side_by_side_fail_once() {
    let memory = Arc::<DialMemory>::default();
    let now = Instant::now();
    let dials: Vec<_> = (0..64).map(|_| dial(&memory, now)).collect();
    for attempt in dials {
        attempt.failed(now, "no answer");
    }
    assert_eq!(skipped(&memory, now), Duration::from_secs(1));
}

#[test]
fn a_new_attachment_is_tried_at_once_and_a_lost_one_is_doubted() {
    let memory = Arc::<DialMemory>::default();
    let now = Instant::now();
    dial(&memory, now).failed(now, "no answer");
    let Admission::Dial(attached) = memory.admit(now, Some(7), true) else {
        panic!("a workstation that attached is skipped")
    };
    attached.succeeded(now);
    assert!(dial(&memory, now).is_doubted());
}

#[test]
fn a_lost_tunnel_is_a_doubt_and_no_failure() {
    let memory = Arc::<DialMemory>::default();
    let now = Instant::now();
    dial(&memory, now).succeeded(now);
    memory.tunnel_lost();
    let trying = dial(&memory, now);
    assert_eq!(skipped(&memory, now), Duration::ZERO);
    trying.succeeded(now);
    assert_eq!(memory.reachability(now), Reachability::Reachable);
}

#[test]
fn what_is_known_is_said_with_its_reason_until_it_is_forgotten() {
    let memory = Arc::<DialMemory>::default();
    let now = Instant::now();
    assert_eq!(memory.reachability(now), Reachability::Untried);
    dial(&memory, now).failed(now, "rejected");
    assert_eq!(
        memory.reachability(now + ms(400)),
        Reachability::Unreachable {
            failures: 1,
            reason: "rejected".to_owned(),
            retry_in: ms(600)
        }
    );
    memory.forget();
    assert_eq!(memory.reachability(now), Reachability::Untried);
}

#[test]
fn a_socket_for_datagrams_is_no_success_once_they_were_refused() {
    let memory = Arc::<DialMemory>::default();
    let now = Instant::now();
    let slow = dial(&memory, now);
    dial(&memory, now).opened(now);
    assert_eq!(memory.reachability(now), Reachability::Reachable);
    memory.refused(now, "nothing listens");
    // Those that were under way side by side are one failure, and late ones change nothing.
    memory.refused(now, "nothing listens");
    slow.opened(now + ms(5));
    assert_eq!(skipped(&memory, now), ms(1000));
    // The next one proves nothing by its socket either, and leaves the way to others.
    let later = now + ms(1000);
    assert!(memory.may_try(later, None));
    let trying = dial(&memory, later);
    assert!(!memory.may_try(later, None));
    trying.opened(later);
    assert!(memory.may_try(later, None));
    dial(&memory, later).failed(later, "nothing listens");
    assert_eq!(skipped(&memory, later), ms(2000));
    assert!(memory.may_try(later, Some(7)), "it has attached anew");
    dial(&memory, later + ms(2000)).succeeded(later + ms(2001));
    assert!(memory.may_try(later + ms(2001), None));
}
