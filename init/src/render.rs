//! Renders a plan for people and programs: input of `iptables-restore`, input of `nft -f`, JSON.

use crate::nft::hook::{TABLE, hook};
use crate::plan::Pod;
use crate::rule::{Chain, Family, Owner, Rule, by_family, chains, own_chains};

/// Renders the plan of a pod that needs none.
pub fn nothing(json: bool) -> &'static str {
    if json {
        "{\n  \"rules\": []\n}\n"
    } else {
        "# nothing to do: no port is asked for by number\n"
    }
}

/// Renders input of `iptables-restore --noflush` and `ip6tables-restore --noflush` for an
/// empty table.
pub fn iptables_text(rules: &[Rule]) -> String {
    let mut text = String::new();
    for (family, rules) in by_family(rules) {
        let program = if family == Family::V4 {
            "iptables-restore"
        } else {
            "ip6tables-restore"
        };
        text += &format!("# {program} --noflush --wait\n*nat\n");
        for chain in own_chains(&rules) {
            text += &format!(":{} - [0:0]\n", chain.name());
        }
        let mut position = 0;
        for rule in &rules {
            text += &match rule.chain {
                Chain::Output => {
                    position += 1;
                    format!("-I OUTPUT {position} {}\n", rule.iptables())
                }
                chain => format!("-A {} {}\n", chain.name(), rule.iptables()),
            };
        }
        text += "COMMIT\n";
    }
    text
}

/// Renders input of `nft -f`.
pub fn nft_text(rules: &[Rule]) -> String {
    let mut text = String::new();
    for (family, rules) in by_family(rules) {
        let table = format!("table {} {}", family.nft(), TABLE);
        text += &format!("{table}\ndelete {table}\n{table} {{\n");
        for chain in chains(&rules) {
            text += &format!("\tchain {} {{\n", chain.name());
            if let Some((hook, priority)) = hook(chain) {
                text += &format!("\t\ttype nat hook {hook} priority {priority}; policy accept;\n");
            }
            for rule in rules.iter().filter(|rule| rule.chain == chain) {
                text += &format!("\t\t{}\n", rule.nft());
            }
            text += "\t}\n";
        }
        text += "}\n";
    }
    text
}

/// Renders JSON, for programs.
pub fn json_text(rules: &[Rule], pod: &Pod) -> String {
    let agent = match pod.agent {
        Owner::Gid(id) => serde_json::json!({ "gid": id }),
        Owner::Uid(id) => serde_json::json!({ "uid": id }),
    };
    let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
    let plan = serde_json::json!({
        "pod": { "addresses": addresses, "loopback": pod.loopback, "agent": agent },
        "rules": rules.iter().map(Rule::json).collect::<Vec<_>>(),
    });
    format!("{plan:#}\n")
}
