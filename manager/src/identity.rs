//! A party as the API server knows it.

use std::collections::BTreeMap;

use traffic_proto::manager::AgentInfo;

/// User names of service accounts begin with it; namespace and name follow.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Means by which a caller proves who he is.
#[derive(Clone, Copy)]
pub(crate) enum Credential<'a> {
    /// A bearer token.
    Token(&'a str),
    /// A client certificate with a signature by its key, encoded.
    Certificate(&'a [u8]),
}

/// A party as the API server knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) user: String,
    pub(crate) uid: String,
    pub(crate) groups: Vec<String>,
    pub(crate) extra: BTreeMap<String, Vec<String>>,
    /// The token was made for the traffic-manager alone, as agents have them.
    pub(crate) is_agent: bool,
}

impl Identity {
    /// Namespace of the service account.
    fn namespace(&self) -> Option<&str> {
        let account = self.user.strip_prefix(SERVICE_ACCOUNT)?;
        account.split_once(':').map(|(namespace, _)| namespace)
    }

    /// A value that the API server says once.
    fn said(&self, key: &str) -> Option<&str> {
        self.extra.get(key)?.first().map(String::as_str)
    }

    /// Namespace, name and uid of the pod that the token is bound to.
    pub(crate) fn pod(&self) -> Option<(&str, &str, &str)> {
        Some((self.namespace()?, self.said(POD_NAME)?, self.said(POD_UID)?))
    }

    /// Returns true if both are the same party, with whichever token.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let pod = |it: &Self| it.said(POD_UID).map(str::to_owned);
        (&self.user, &self.uid, self.is_agent) == (&other.user, &other.uid, other.is_agent)
            && (!self.is_agent || pod(self) == pod(other))
    }

    /// The reason why this is not the agent that it says to be.
    pub(crate) fn differs_from(&self, agent: &AgentInfo) -> Option<String> {
        if !self.is_agent {
            return Some("its token was not made for audience traffic-manager".to_owned());
        }
        let (namespace, pod) = (self.namespace(), self.said(POD_NAME));
        if namespace != Some(agent.namespace.as_str()) || pod != Some(agent.pod_name.as_str()) {
            return Some(format!(
                "its token is that of pod {} in namespace {}",
                pod.unwrap_or("(none)"),
                namespace.unwrap_or("(none)")
            ));
        }
        let uid = self.said(POD_UID).unwrap_or_default();
        (!agent.pod_uid.is_empty() && agent.pod_uid != uid)
            .then(|| format!("its token is that of an earlier pod, uid {uid}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_pod(namespace: &str, pod: &str, uid: &str) -> Identity {
        let extra = [(POD_NAME, pod), (POD_UID, uid)];
        let extra = extra.map(|(key, value)| (key.to_owned(), vec![value.to_owned()]));
        Identity {
            user: format!("{SERVICE_ACCOUNT}{namespace}:default"),
            uid: "account".to_owned(),
            extra: extra.into(),
            is_agent: true,
            ..Identity::default()
        }
    }

    #[test]
    fn a_token_proves_one_pod_of_one_namespace() {
        let agent = AgentInfo {
            namespace: "shop".to_owned(),
            pod_name: "web-1".to_owned(),
            pod_uid: "u1".to_owned(),
            ..AgentInfo::default()
        };
        let right = of_pod("shop", "web-1", "u1");
        assert_eq!(right.differs_from(&agent), None);
        let user = Identity {
            is_agent: false,
            ..right.clone()
        };
        for (wrong, said) in [
            (of_pod("other", "web-1", "u1"), "in namespace other"),
            (of_pod("shop", "web-2", "u1"), "of pod web-2"),
            (of_pod("shop", "web-1", "u2"), "of an earlier pod"),
            (user, "audience traffic-manager"),
            (Identity::default(), "audience traffic-manager"),
        ] {
            let why = wrong.differs_from(&agent).unwrap();
            assert!(why.contains(said), "{why}");
        }
        // Older agents do not know their uid.
        let older = AgentInfo {
            pod_uid: String::new(),
            ..agent
        };
        assert_eq!(right.differs_from(&older), None);
    }

    #[test]
    fn a_party_is_the_same_with_another_token_and_no_other_one() {
        let one = of_pod("shop", "web-1", "u1");
        let mut later = one.clone();
        later.extra.insert(
            "authentication.kubernetes.io/credential-id".to_owned(),
            vec![],
        );
        assert!(one.is_same(&later));
        assert!(!one.is_same(&of_pod("shop", "web-1", "u2")));
        assert!(!one.is_same(&of_pod("other", "web-1", "u1")));
        let user = |uid: &str| Identity {
            user: "jane".to_owned(),
            uid: uid.to_owned(),
            ..Identity::default()
        };
        assert!(user("1").is_same(&user("1")));
        assert!(!user("1").is_same(&user("2")));
    }
}
