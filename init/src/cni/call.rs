//! Call of the runtime: the network configuration on standard input, and the answers, in JSON.
//! Pure.

use serde_json::{Value, json};

use crate::args::{BackendChoice, List, parse};
use crate::error::Error;

/// Versions of the specification that the plugin speaks: what it reads and writes is the same in
/// all.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Key under which the runtime hands over the pod's annotations.
pub(super) const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// Codes of the specification.
const INCOMPATIBLE_VERSION: u16 = 1;
const INVALID_ENVIRONMENT: u16 = 4;
const INPUT_OUTPUT: u16 = 5;
const NOT_DECODED: u16 = 6;
const INVALID_CONFIGURATION: u16 = 7;
/// First code of a plugin's own; the exit code of the same fault is added.
const OWN: u16 = 100;

/// Fault of a call, in the form that the specification wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    code: u16,
    message: String,
}

impl Fault {
    fn new(code: u16, message: String) -> Self {
        Self { code, message }
    }

    pub(super) fn input(error: &std::io::Error) -> Self {
        Self::new(INPUT_OUTPUT, format!("standard input: {error}"))
    }

    pub(super) fn variable(key: &str, value: &str) -> Self {
        let text = format!("{key}={value:?}: not what a runtime of CNI sets");
        Self::new(INVALID_ENVIRONMENT, text)
    }

    fn key(key: &str, value: &Value, remedy: &str) -> Self {
        let text = format!("{key}={value} in the plugin's configuration: {remedy}");
        Self::new(INVALID_CONFIGURATION, text)
    }

    pub(super) fn text(&self) -> &str {
        &self.message
    }

    /// Renders the answer to a call whose input was `text`.
    pub(super) fn json(&self, text: &str) -> String {
        let answer = json!({
            "cniVersion": version_in(text),
            "code": self.code,
            "msg": "agent-init could not put the redirect rules into force",
            "details": self.message,
        });
        format!("{answer}\n")
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::new(OWN + u16::from(error.exit_code()), error.to_string())
    }
}

/// Version that the caller speaks, as far as it says so.
fn version_in(text: &str) -> String {
    let config: Value = serde_json::from_str(text).unwrap_or_default();
    let version = config["cniVersion"].as_str();
    // Even the answer to input that is no JSON has to name a version.
    version.unwrap_or(VERSIONS[3]).to_owned()
}

/// Renders the answer to the question for versions.
pub(super) fn versions(text: &str) -> String {
    let answer = json!({ "cniVersion": version_in(text), "supportedVersions": VERSIONS });
    format!("{answer}\n")
}

/// Network configuration of a call.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call(Value);

impl Call {
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        let config: Value = serde_json::from_str(text)
            .map_err(|error| Fault::new(NOT_DECODED, format!("standard input: {error}")))?;
        // Later versions may have changed what a result looks like.
        let version = config["cniVersion"].as_str().unwrap_or_default();
        if !VERSIONS.contains(&version) {
            let text = format!(
                "cniVersion {version:?} is not spoken here; there are {}",
                VERSIONS.join(", ")
            );
            return Err(Fault::new(INCOMPATIBLE_VERSION, text));
        }
        Ok(Self(config))
    }

    /// Renders the result: a chained plugin that adds no address passes on what it got.
    pub(super) fn result(&self) -> String {
        let result = match &self.0["prevResult"] {
            // First in its list, which is a mistake, but not one that should keep pods from
            // starting.
            Value::Null => json!({ "cniVersion": self.0["cniVersion"] }),
            result => result.clone(),
        };
        format!("{result}\n")
    }

    /// Annotation of the pod, when the runtime hands it over.
    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.0["runtimeConfig"][POD_ANNOTATIONS][key].as_str()
    }

    /// Addresses that the plugins before gave the pod, with commas between them.
    pub(super) fn addresses(&self) -> String {
        let ips = self.0["prevResult"]["ips"].as_array();
        let addresses = ips.into_iter().flatten().filter_map(|ip| {
            let address = ip["address"].as_str()?;
            // Runtimes give the subnet as well, as in 10.244.0.7/24.
            Some(address.split('/').next().unwrap_or(address))
        });
        addresses.collect::<Vec<_>>().join(",")
    }

    /// Group of the agent, when the configuration names another than the usual one.
    pub(super) fn agent_group(&self) -> Result<Option<String>, Fault> {
        match &self.0["agentGid"] {
            Value::Null => Ok(None),
            Value::Number(id) => Ok(Some(id.to_string())),
            other => Err(Fault::key(
                "agentGid",
                other,
                "write a number, such as 7439",
            )),
        }
    }

    pub(super) fn backend(&self) -> Result<BackendChoice, Fault> {
        match &self.0["backend"] {
            Value::Null => Ok(BackendChoice::Auto),
            Value::String(word) => {
                // The same words and the same message as on the command line.
                let args = parse(["--backend".into(), word.into()]);
                args.map(|args| args.backend).map_err(Fault::from)
            }
            other => Err(Fault::key("backend", other, "write auto, nft or iptables")),
        }
    }

    /// Lists of exceptions: texts, or arrays of texts and numbers.
    pub(super) fn lists(&self) -> Result<Vec<(List, String)>, Fault> {
        let mut lists = Vec::new();
        for (list, key) in [
            (List::Ports, "excludeInboundPorts"),
            (List::Sources, "excludeInboundCidrs"),
            (List::Uids, "excludeUids"),
            (List::Gids, "excludeGids"),
            (List::MeshSubnets, "meshDialSubnets"),
        ] {
            let value = &self.0[key];
            let entries = match value {
                Value::Null => continue,
                Value::Array(entries) => entries.iter().map(entry).collect(),
                single => entry(single).map(|it| vec![it]),
            };
            let entries: Vec<String> = entries
                .ok_or_else(|| Fault::key(key, value, "write a list of texts or numbers"))?;
            lists.push((list, entries.join(",")));
        }
        Ok(lists)
    }
}

fn entry(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn call(more: &str) -> Call {
        Call::parse(&format!(r#"{{"cniVersion":"1.0.0","name":"n"{more}}}"#)).unwrap()
    }

    #[test]
    fn the_result_is_the_one_of_the_plugin_before() {
        let call = call(
            r#","prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.2/24"},{"address":"fd00::2/64"}],"dns":{}}"#,
        );
        let result: Value = serde_json::from_str(&call.result()).unwrap();
        assert_eq!(result, call.0["prevResult"]);
        assert_eq!(call.addresses(), "10.1.0.2,fd00::2");
    }

    #[test]
    fn options_are_read_and_bad_ones_are_named() {
        let good = call(
            r#","agentGid":7,"backend":"nft","excludeUids":[1,"2"],"meshDialSubnets":"10.0.0.0/8""#,
        );
        assert_eq!(good.agent_group().unwrap().as_deref(), Some("7"));
        assert_eq!(good.backend().unwrap(), BackendChoice::Nft);
        let lists = good.lists().unwrap();
        assert_eq!(lists[0], (List::Uids, "1,2".to_owned()));
        assert_eq!(lists[1], (List::MeshSubnets, "10.0.0.0/8".to_owned()));
        let bad = call(r#","agentGid":"x","backend":[],"excludeUids":{}"#);
        assert!(bad.agent_group().unwrap_err().text().contains("agentGid"));
        assert!(bad.backend().unwrap_err().text().contains("backend"));
        assert!(bad.lists().unwrap_err().text().contains("excludeUids"));
    }

    #[test]
    fn a_version_that_is_not_spoken_is_refused_with_those_that_are() {
        let fault = Call::parse(r#"{"cniVersion":"0.1.0"}"#).unwrap_err();
        let answer: Value = serde_json::from_str(&fault.json("{}")).unwrap();
        assert_eq!(answer["code"], 1);
        assert!(answer["details"].as_str().unwrap().contains("1.0.0"));
    }

    proptest! {
        #[test]
        fn any_input_is_answered(text in "(\\{|\\}|\"cniVersion\":\"1.0.0\"|,|\"ips\":|\\[|\\]|[a-z0-9]){0,20}") {
            let fault = match Call::parse(&text) {
                Ok(call) => { let _ = (call.addresses(), call.lists(), call.result()); return Ok(()); }
                Err(fault) => fault,
            };
            prop_assert!(serde_json::from_str::<Value>(&fault.json(&text)).is_ok());
        }
    }
}
