//! The token by which the manager knows an agent: the volume that brings it into the pod.

use k8s_openapi::api::core::v1::{
    ProjectedVolumeSource, ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use traffic_proto::manager_token::{AUDIENCE, DIRECTORY, FILE};

/// Name of the volume.
const VOLUME: &str = "traffic-manager-token";
/// Life of a token; the kubelet renews it in time.
const LIFE_SECONDS: i64 = 3600;

/// Volume and path of its mount.
pub(crate) fn mount() -> (String, String) {
    (VOLUME.to_owned(), DIRECTORY.to_owned())
}

/// The volume. The kubelet asks for a token that is bound to the pod, and for one audience alone: at
/// the API server it is worth nothing.
pub(crate) fn volume() -> Volume {
    let token = ServiceAccountTokenProjection {
        audience: Some(AUDIENCE.to_owned()),
        expiration_seconds: Some(LIFE_SECONDS),
        path: FILE.to_owned(),
    };
    Volume {
        name: VOLUME.to_owned(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(vec![VolumeProjection {
                service_account_token: Some(token),
                ..VolumeProjection::default()
            }]),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}
