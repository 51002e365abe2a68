use super::*;
use crate::cluster::objects::{PodFacts, PodObject, WorkloadObject};
use serde_json::json;

fn workload(replicas: i32, own_rollout: OwnRollout) -> WorkloadFacts {
    let object = json!({"metadata": {"name": "web"}, "spec": {"replicas": replicas}});
    let object: WorkloadObject = serde_json::from_value(object).unwrap();
    WorkloadFacts {
        own_rollout,
        ..WorkloadFacts::new(Kind::Deployment, &object)
    }
}

fn pod(matches: bool, ready: bool) -> Judged {
    let object: PodObject = serde_json::from_value(json!({"metadata": {}, "spec": {}})).unwrap();
    Judged {
        pod: Arc::new(PodFacts {
            ready,
            ..PodFacts::from(&object)
        }),
        matches,
        lacks_agent: !matches,
    }
}

#[test]
fn a_roll_out_that_brings_what_is_wanted_is_not_started_again() {
    let brings = |own_rollout, pods: &[Judged]| brings_wanted(&workload(1, own_rollout), pods);
    let (old, new) = (pod(false, true), pod(true, false));
    let both = [old.clone(), new];
    assert!(brings(OwnRollout::UnderWay, &both));
    // Somebody else's, from before anybody wanted an agent.
    let olds = [old.clone(), pod(false, false)];
    assert!(!brings(OwnRollout::UnderWay, &olds));
    assert!(brings(OwnRollout::Asked, std::slice::from_ref(&old)));
    assert!(!brings(OwnRollout::Over, &both));
}

#[test]
fn a_pod_that_was_evicted_before_counts_as_spared() {
    let spares = |replicas, pods: &[Judged]| can_spare(&workload(replicas, OwnRollout::Over), pods);
    let (old, new) = (pod(false, true), pod(true, false));
    assert!(spares(2, &[old.clone(), old.clone()]));
    assert!(spares(2, &[old.clone(), new.clone()]));
    assert!(!spares(2, &[old.clone(), pod(false, false)]));
    // The second of one is there for a moment only.
    assert!(!spares(1, &[old, new]));
}
