//! Sidecar configurations in every form: reading never panics, and a rejection gives one line for
//! each fault.
#![no_main]

use libfuzzer_sys::fuzz_target;
use traffic_proto::sidecar::{self, Role};

fuzz_target!(|text: &str| {
    for role in [Role::Agent, Role::Init] {
        let forms = [
            sidecar::from_yaml(text, "file", role).map(Some),
            sidecar::from_json(text, "env", role).map(Some),
            sidecar::from_annotations(text, "annotations", role),
        ];
        for form in forms {
            match form {
                Ok(Some(sidecar)) => drop(sidecar.targets()),
                Ok(None) => {}
                Err(faults) => assert_eq!(faults.to_string().lines().count(), faults.len(), "{faults}"),
            }
        }
    }
});
