//! The platform team's rules on their way to the agent.

use injector::{AgentOptions, Settings};
use serde_json::json;
use traffic_proto::guard_rails::{GuardRails, Rule};
use traffic_proto::sidecar::{Role, from_json};

use crate::rig::{annotated, config, decided, patched, settings, simple, to};

fn guarded(rules: &[(Rule, &str)]) -> Settings {
    let mut guard_rails = GuardRails::default();
    for (rule, text) in rules {
        guard_rails.set(*rule, text).unwrap();
    }
    Settings {
        agent: AgentOptions {
            guard_rails,
            ..AgentOptions::default()
        },
        ..settings()
    }
}

#[test]
fn each_rule_of_the_chart_is_written_and_read_back() {
    for (rule, text, written) in [
        (
            Rule::AllowedHeaders,
            "x-dev X-Team-*",
            json!({"allowedHeaders": ["x-dev", "x-team-*"]}),
        ),
        (
            Rule::ForbiddenHeaders,
            "cookie",
            json!({"forbiddenHeaders": ["cookie"]}),
        ),
        (Rule::AllowGlobal, "false", json!({"allowGlobal": false})),
        (Rule::AllowGlobal, "true", json!(null)),
        (Rule::MaxLifetime, "8h", json!({"maxLifetime": "8h0m0s"})),
        (Rule::MaxLifetime, "0s", json!(null)),
        (Rule::MaxPerPort, "3", json!({"maxPerPort": 3})),
    ] {
        let settings = guarded(&[(rule, text)]);
        let pod = patched(&simple(), &[to(json!("http"))], &settings);
        let config = config(&pod);
        assert_eq!(config["guardRails"], written, "{rule:?}");
        let read = from_json(&config.to_string(), "test", Role::Agent).unwrap();
        assert_eq!(read.guard_rails, settings.agent.guard_rails, "{rule:?}");
        assert_eq!(read.warnings, []);
    }
}

#[test]
fn an_annotation_that_cannot_be_read_keeps_the_agent_out() {
    for (rule, value) in [
        (Rule::AllowedHeaders, "x dev:"),
        (Rule::AllowGlobal, "no"),
        (Rule::MaxLifetime, "-1h"),
        (Rule::MaxPerPort, "few"),
    ] {
        let key = format!("telepresence.io/{}", rule.annotation());
        let decision = decided(
            &annotated(&[(&key, value)]),
            &[to(json!("http"))],
            &settings(),
        );
        assert!(decision.plan.is_none(), "{rule:?}");
        let reasons = format!("{:?}", decision.reasons);
        assert!(reasons.contains(&key), "{reasons}");
    }
}
