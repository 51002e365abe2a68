//! The way from a pod to its workload, along owner references.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::facts::Kind;

/// Longest chain that is followed; real ones have two links.
const MAX_LINKS: usize = 8;

/// The controller of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnerRef {
    /// Kind of the controller.
    pub kind: String,
    /// Name of the controller.
    pub name: String,
}

/// An object on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Controller of this object.
    pub controller: Option<OwnerRef>,
}

/// The end of the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Walk {
    /// The first owner is where the pod's template is, the last one is the workload.
    Found {
        /// Kind and name of the nearest owner.
        nearest: (Kind, String),
        /// Kind and name of the workload.
        workload: (Kind, String),
    },
    /// The pod has no owner.
    NoOwner,
    /// The nearest owner is of a kind whose pods get no agent.
    Foreign(OwnerRef),
    /// An owner is not known.
    Unknown(OwnerRef),
}

/// The controller among the owners of an object.
pub fn controller(meta: &ObjectMeta) -> Option<OwnerRef> {
    let owners = meta.owner_references.iter().flatten();
    let owner = owners.into_iter().find(|it| it.controller == Some(true))?;
    Some(OwnerRef {
        kind: owner.kind.clone(),
        name: owner.name.clone(),
    })
}

/// Follows the owners of a pod. `look` finds an object of a kind in the pod's namespace; a kind
/// that is not `enabled` ends the way, its objects' owners are not followed.
pub fn walk(
    first: Option<OwnerRef>,
    enabled: &[Kind],
    look: impl Fn(Kind, &str) -> Option<Link>,
) -> Walk {
    let Some(mut owner) = first else {
        return Walk::NoOwner;
    };
    let mut nearest: Option<(Kind, String)> = None;
    let mut last: Option<(Kind, String)> = None;
    for _ in 0..MAX_LINKS {
        let kind = owner
            .kind
            .parse()
            .ok()
            .filter(|kind| enabled.contains(kind));
        let Some(kind) = kind else { break };
        let Some(link) = look(kind, &owner.name) else {
            return Walk::Unknown(owner);
        };
        let here = (kind, owner.name.clone());
        nearest.get_or_insert_with(|| here.clone());
        last = Some(here);
        match link.controller {
            Some(next) => owner = next,
            None => break,
        }
    }
    match (nearest, last) {
        (Some(nearest), Some(workload)) => Walk::Found { nearest, workload },
        _ => Walk::Foreign(owner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(kind: &str, name: &str) -> OwnerRef {
        OwnerRef {
            kind: kind.to_owned(),
            name: name.to_owned(),
        }
    }

    fn look(kind: Kind, name: &str) -> Option<Link> {
        let controller = match (kind, name) {
            (Kind::ReplicaSet, "web-1f") => Some(owner("Deployment", "web")),
            (Kind::ReplicaSet, "canary-1") => Some(owner("Rollout", "canary")),
            (Kind::Deployment, "web") => Some(owner("App", "operator")),
            (Kind::ReplicaSet, "alone") | (Kind::StatefulSet, "db") | (Kind::Rollout, "canary") => {
                None
            }
            (Kind::ReplicaSet, "circle") => Some(owner("ReplicaSet", "circle")),
            _ => return None,
        };
        Some(Link { controller })
    }

    fn found(nearest: (Kind, &str), workload: (Kind, &str)) -> Walk {
        Walk::Found {
            nearest: (nearest.0, nearest.1.to_owned()),
            workload: (workload.0, workload.1.to_owned()),
        }
    }

    #[test]
    fn owners_are_followed_to_the_workload() {
        use Kind::{Deployment, ReplicaSet, Rollout, StatefulSet};
        let walk_from = |kind, name| walk(Some(owner(kind, name)), &Kind::ALL, look);
        for (kind, name, end) in [
            (
                "ReplicaSet",
                "web-1f",
                found((ReplicaSet, "web-1f"), (Deployment, "web")),
            ),
            (
                "ReplicaSet",
                "alone",
                found((ReplicaSet, "alone"), (ReplicaSet, "alone")),
            ),
            (
                "StatefulSet",
                "db",
                found((StatefulSet, "db"), (StatefulSet, "db")),
            ),
            (
                "ReplicaSet",
                "canary-1",
                found((ReplicaSet, "canary-1"), (Rollout, "canary")),
            ),
            ("DaemonSet", "log", Walk::Foreign(owner("DaemonSet", "log"))),
            (
                "ReplicaSet",
                "gone",
                Walk::Unknown(owner("ReplicaSet", "gone")),
            ),
            (
                "ReplicaSet",
                "circle",
                found((ReplicaSet, "circle"), (ReplicaSet, "circle")),
            ),
        ] {
            assert_eq!(walk_from(kind, name), end, "{kind} {name}");
        }
        assert_eq!(walk(None, &Kind::ALL, look), Walk::NoOwner);
    }

    #[test]
    fn the_owner_of_a_kind_that_is_off_is_not_followed() {
        let enabled = [Kind::Deployment, Kind::ReplicaSet];
        let end = walk(Some(owner("ReplicaSet", "canary-1")), &enabled, look);
        let alone = (Kind::ReplicaSet, "canary-1");
        assert_eq!(end, found(alone, alone));
        let end = walk(Some(owner("StatefulSet", "db")), &enabled, look);
        assert_eq!(end, Walk::Foreign(owner("StatefulSet", "db")));
    }
}
