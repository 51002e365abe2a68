//! The app containers' environment, carried over into the agent's under a prefix.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Container, EnvFromSource, EnvVar, EnvVarSource, ObjectFieldSelector,
};

/// Stands before every variable of an app, its container's own prefix behind it.
const APP_PREFIX: &str = "_TEL_APP_";

/// The variables of an app container as the agent gets them.
pub(crate) fn carried(container: &Container, env_prefix: &str) -> Vec<EnvVar> {
    let prefix = format!("{APP_PREFIX}{env_prefix}");
    let own: BTreeSet<_> = variables(container).map(|it| it.name.as_str()).collect();
    // The content of a ConfigMap or Secret is unknown here, so every name may come from it.
    let may_be_inherited = container.env_from.as_ref().is_some_and(|it| !it.is_empty());
    // What the container does not define itself is the cluster's, which the agent has as well.
    let is_own = |name: &str| may_be_inherited || own.contains(name);
    variables(container)
        .map(|variable| EnvVar {
            name: format!("{prefix}{}", variable.name),
            value: variable
                .value
                .as_ref()
                .map(|value| prefix_references(value, &prefix, is_own)),
            value_from: variable
                .value_from
                .as_ref()
                .map(|source| owned_source(source, &container.name)),
        })
        .collect()
}

/// The sources of whole sets of variables, likewise.
pub(crate) fn carried_sources(container: &Container, env_prefix: &str) -> Vec<EnvFromSource> {
    let sources = container.env_from.iter().flatten();
    sources
        .map(|source| {
            let own = source.prefix.as_deref().unwrap_or_default();
            EnvFromSource {
                prefix: Some(format!("{APP_PREFIX}{env_prefix}{own}")),
                ..source.clone()
            }
        })
        .collect()
}

/// References in a text that Kubernetes expands in the agent's container but that is an app's.
pub(crate) fn prefix_app_references(text: &str, env_prefix: &str) -> String {
    prefix_references(text, &format!("{APP_PREFIX}{env_prefix}"), |_| true)
}

fn variables(container: &Container) -> impl Iterator<Item = &EnvVar> {
    container.env.iter().flatten()
}

/// A resource is the app container's, not the agent's, unless it says otherwise.
fn owned_source(source: &EnvVarSource, container: &str) -> EnvVarSource {
    let mut source = source.clone();
    if let Some(resource) = &mut source.resource_field_ref
        && resource
            .container_name
            .as_deref()
            .unwrap_or_default()
            .is_empty()
    {
        resource.container_name = Some(container.to_owned());
    }
    source
}

/// Puts `prefix` before every name that `$(NAME)` refers to. `$$` is an escape, what is not closed
/// or is no name stays as it is.
fn prefix_references(text: &str, prefix: &str, is_own: impl Fn(&str) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        // Kubernetes writes a literal `$(NAME)` as `$$(NAME)`; both dollars stay, for it expands
        // the value again.
        if let Some(behind) = rest.strip_prefix("$$") {
            out.push_str("$$");
            rest = behind;
            continue;
        }
        let Some(inner) = rest.strip_prefix("$(") else {
            out.push('$');
            rest = &rest[1..];
            continue;
        };
        match inner.find([')', '$', '(']) {
            Some(end) if inner[end..].starts_with(')') && end > 0 => {
                let name = &inner[..end];
                let prefix = if is_own(name) { prefix } else { "" };
                out.push_str(&format!("$({prefix}{name})"));
                rest = &inner[end + 1..];
            }
            Some(end) => {
                out.push_str(&rest[..2 + end]);
                rest = &inner[end..];
            }
            // An unclosed reference is plain text for Kubernetes too.
            None => break,
        }
    }
    out.push_str(rest);
    out
}

/// A variable with a value.
pub(crate) fn literal(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: Some(value.into()),
        value_from: None,
    }
}

/// A variable that is a field of the pod.
pub(crate) fn field(name: &str, path: &str) -> EnvVar {
    let selector = ObjectFieldSelector {
        api_version: Some("v1".to_owned()),
        field_path: path.to_owned(),
    };
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(selector),
            ..EnvVarSource::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefixed(text: &str) -> String {
        prefix_references(text, "P_", |name| name != "KUBERNETES_PORT")
    }

    #[test]
    fn references_are_prefixed_and_escapes_are_not() {
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "$(P_A)"),
            ("x$(A)y$(B)z", "x$(P_A)y$(P_B)z"),
            ("$$(A)", "$$(A)"),
            ("$$$(A)", "$$$(P_A)"),
            ("$(A", "$(A"),
            ("$()", "$()"),
            ("$(A$(B))", "$(A$(P_B))"),
            ("$(A(B))", "$(A(B))"),
            ("$", "$"),
            ("a$b", "a$b"),
            ("$(KUBERNETES_PORT)", "$(KUBERNETES_PORT)"),
            ("größe $(A)", "größe $(P_A)"),
        ] {
            assert_eq!(prefixed(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_and_only_grows(text in "[$()A-Bä ]{0,20}|.*") {
            prop_assert!(prefixed(&text).len() >= text.len());
        }
    }
}
