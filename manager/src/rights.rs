//! What callers may do, in the words of the API server's rules.

use std::fmt;

/// Group of the virtual resources that rights are about.
pub(crate) const GROUP: &str = "telepresence.io";

/// Something that a user may do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Right {
    pub(crate) verb: &'static str,
    pub(crate) resource: &'static str,
    /// Kind of the workload, in the plural.
    pub(crate) subresource: String,
    /// Empty: the manager's own.
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Right {
    /// To use the manager at all.
    pub(crate) fn connect() -> Self {
        Self {
            verb: "create",
            resource: "connections",
            subresource: String::new(),
            namespace: String::new(),
            name: String::new(),
        }
    }

    /// To do something with a workload: `create` an intercept, `get` what an ingest brings, or
    /// `delete` its agent. An empty kind is one that nobody knows.
    pub(crate) fn attach(verb: &'static str, kind: &str, namespace: &str, name: &str) -> Self {
        Self {
            verb,
            resource: "attachments",
            subresource: match kind {
                "" => String::new(),
                kind => format!("{}s", kind.to_ascii_lowercase()),
            },
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// To change levels of logs.
    pub(crate) fn set_log_level() -> Self {
        Self {
            verb: "update",
            resource: "logs",
            ..Self::connect()
        }
    }

    /// Resource and sub-resource as rules write them.
    fn resources(&self) -> String {
        match self.subresource.as_str() {
            "" => self.resource.to_owned(),
            kind => format!("{}/{kind}", self.resource),
        }
    }

    /// Puts the manager's namespace where none is named.
    pub(crate) fn within(mut self, namespace: &str) -> Self {
        if self.namespace.is_empty() {
            namespace.clone_into(&mut self.namespace);
        }
        self
    }

    /// What to add to the roles of somebody who may not.
    pub(crate) fn remedy(&self) -> String {
        let names = match self.name.as_str() {
            "" => String::new(),
            name => format!(", resourceNames: [{name}]"),
        };
        format!(
            "add {{apiGroups: [{GROUP}], resources: [{}]{names}, verbs: [{}]}} to the rules of a Role \
             in namespace {} that is bound to him",
            self.resources(),
            self.verb,
            self.namespace
        )
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of group {GROUP}", self.verb, self.resources())?;
        if !self.name.is_empty() {
            write!(f, " {:?}", self.name)?;
        }
        if !self.namespace.is_empty() {
            write!(f, " in namespace {:?}", self.namespace)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_is_named_with_the_rule_that_grants_it() {
        let right = Right::attach("create", "Deployment", "shop", "web");
        assert_eq!(
            right.to_string(),
            "create attachments/deployments of group telepresence.io \"web\" in namespace \"shop\""
        );
        assert_eq!(
            right.remedy(),
            "add {apiGroups: [telepresence.io], resources: [attachments/deployments], resourceNames: \
             [web], verbs: [create]} to the rules of a Role in namespace shop that is bound to him"
        );
        let right = Right::attach("get", "StatefulSet", "shop", "db");
        assert!(
            right
                .to_string()
                .starts_with("get attachments/statefulsets of group")
        );
        let right = Right::connect().within("ambassador");
        assert!(right.to_string().ends_with("in namespace \"ambassador\""));
        assert!(!right.remedy().contains("resourceNames"));
    }
}
