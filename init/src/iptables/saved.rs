//! Reading of `iptables-save -t nat`, and the one document for `iptables-restore --noflush` that
//! leads from there to the plan. Pure.
//!
//! A chain whose name starts with `TEL_` is ours with all its rules, and so is a rule elsewhere that
//! jumps to one. All else is left in its place.

use crate::rule::{Chain, PREFIX, Rule, own_chains};

/// Table `nat` as printed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    chains: Vec<String>,
    rules: Vec<SavedRule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct SavedRule {
    chain: String,
    text: String,
}

impl SavedRule {
    fn is_our_jump(&self) -> bool {
        let mut words = self.text.split(' ');
        let target = words.find(|word| *word == "-j").and_then(|_| words.next());
        !self.chain.starts_with(PREFIX) && target.is_some_and(|name| name.starts_with(PREFIX))
    }
}

/// Input of one `iptables-restore`, and the rule that each line is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    lines: Vec<(String, Option<String>)>,
}

impl Document {
    /// Text that the program reads.
    pub fn text(&self) -> String {
        self.lines
            .iter()
            .map(|(line, _)| format!("{line}\n"))
            .collect()
    }

    /// Finds the rule in the line that the program names in its error text, or the line itself.
    pub fn line_blamed_by(&self, answer: &str) -> Option<String> {
        let mut words = answer
            .split_whitespace()
            .skip_while(|word| !matches!(*word, "line" | "line:"));
        let number: usize = words
            .nth(1)?
            .trim_matches(|it: char| !it.is_ascii_digit())
            .parse()
            .ok()?;
        let (line, rule) = self.lines.get(number.checked_sub(1)?)?;
        Some(rule.clone().unwrap_or_else(|| line.clone()))
    }
}

impl Saved {
    /// Reads the table `nat` in the program's output; lines of no interest are skipped.
    pub fn parse(text: &str) -> Self {
        let mut saved = Self::default();
        let mut in_nat = false;
        for line in text.lines() {
            if let Some(table) = line.strip_prefix('*') {
                in_nat = table.trim() == "nat";
            } else if let (true, Some(chain)) = (in_nat, line.strip_prefix(':')) {
                saved
                    .chains
                    .extend(chain.split(' ').next().map(str::to_owned));
            } else if let (true, Some(rule)) = (in_nat, line.strip_prefix("-A ")) {
                let (chain, text) = rule.split_once(' ').unwrap_or((rule, ""));
                saved.rules.push(SavedRule {
                    chain: chain.to_owned(),
                    text: text.trim_end().to_owned(),
                });
            }
        }
        saved
    }

    /// Number of all rules, ours and others'.
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// True when there is a chain or a jump of ours.
    pub fn has_ours(&self) -> bool {
        self.chains.iter().any(|name| name.starts_with(PREFIX))
            || self.rules.iter().any(SavedRule::is_our_jump)
    }

    fn of<'a>(&'a self, chain: &'a str) -> impl Iterator<Item = &'a SavedRule> {
        self.rules.iter().filter(move |rule| rule.chain == chain)
    }

    /// Compares `rules` with the table: a line for each that is missing or not wanted.
    ///
    /// Rules are in force when our chains hold their rules, our jumps are the first in `OUTPUT`, and each
    /// of those in `PREROUTING` is there once.
    pub fn differences(&self, rules: &[&Rule]) -> Vec<String> {
        let mut lines = Vec::new();
        let own = own_chains(rules);
        for chain in own
            .iter()
            .copied()
            .chain([Chain::Prerouting, Chain::Output])
        {
            let listed: Vec<_> = match chain {
                Chain::Prerouting => self
                    .of(chain.name())
                    .filter(|rule| rule.is_our_jump())
                    .collect(),
                _ => self.of(chain.name()).collect(),
            };
            let wanted: Vec<_> = rules.iter().filter(|rule| rule.chain == chain).collect();
            for (at, rule) in wanted.iter().enumerate() {
                if listed.get(at).is_none_or(|it| it.text != rule.iptables()) {
                    lines.push(format!(
                        "missing: rule -A {} {}",
                        chain.name(),
                        rule.iptables()
                    ));
                }
            }
            for extra in listed
                .iter()
                .skip(wanted.len())
                .filter(|it| !chain.is_hook() || it.is_our_jump())
            {
                lines.push(format!(
                    "not wanted: rule -A {} {}",
                    extra.chain, extra.text
                ));
            }
        }
        let is_other = |name: &&String| {
            name.starts_with(PREFIX) && own.iter().all(|chain| chain.name() != *name)
        };
        for name in self
            .chains
            .iter()
            .filter(is_other)
            .filter(|name| !crate::nft::stale_rules::is_mark(name))
        {
            lines.push(format!("not wanted: chain {name}"));
        }
        lines
    }

    /// True when our jumps in `PREROUTING` stand behind everybody else's.
    fn callers_meet_others_first(&self) -> bool {
        self.of("PREROUTING")
            .skip_while(|rule| !rule.is_our_jump())
            .all(SavedRule::is_our_jump)
    }

    /// Makes the document that leaves `rules` as all that is ours here, or `None` when they are already.
    ///
    /// `mark` is an empty chain to leave beside them. What was ours goes and comes again in the
    /// same transaction: jumps are deleted and put in their places anew, so that they are never
    /// there twice, and those in `PREROUTING` end up behind a mesh's that came since.
    pub fn transition(&self, rules: &[&Rule], mark: Option<&str>) -> Option<Document> {
        let nothing_to_undo = !rules.is_empty() || !self.has_ours();
        if nothing_to_undo && self.differences(rules).is_empty() && self.callers_meet_others_first()
        {
            return None;
        }
        let own: Vec<&str> = own_chains(rules).into_iter().map(Chain::name).collect();
        let mut lines = vec![("*nat".to_owned(), None)];
        let mut say =
            |line: String, rule: Option<&&Rule>| lines.push((line, rule.map(ToString::to_string)));
        for jump in self.rules.iter().filter(|rule| rule.is_our_jump()) {
            say(format!("-D {} {}", jump.chain, jump.text), None);
        }
        // Naming a chain creates it, or empties it.
        let kept = |name: &str| own.contains(&name) || mark == Some(name);
        let stale: Vec<_> = self
            .chains
            .iter()
            .filter(|name| name.starts_with(PREFIX) && !kept(name.as_str()))
            .collect();
        for name in own
            .iter()
            .copied()
            .chain(stale.iter().map(|name| name.as_str()))
            .chain(mark)
        {
            say(format!(":{name} - [0:0]"), None);
        }
        for name in &stale {
            say(format!("-X {name}"), None);
        }
        let mut position = 0;
        for rule in rules {
            if rule.chain == Chain::Output {
                position += 1;
                say(
                    format!("-I OUTPUT {position} {}", rule.iptables()),
                    Some(rule),
                );
            } else {
                say(
                    format!("-A {} {}", rule.chain.name(), rule.iptables()),
                    Some(rule),
                );
            }
        }
        say("COMMIT".to_owned(), None);
        Some(Document { lines })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Pod, PortPlan, plan};
    use crate::rule::{Agent, Transport, by_family};

    fn rules() -> Vec<Rule> {
        let port = PortPlan {
            container: "app".into(),
            container_port: 8080,
            agent_port: 9900,
            proxy_port: 9912,
            transport: Transport::Tcp,
            numeric: true,
        };
        let pod = Pod {
            addresses: vec!["10.1.0.2".parse().unwrap()],
            loopback: "lo".into(),
            agent: Agent::Uid(0),
        };
        plan(&[port], &pod)
    }

    /// Applies the document to the table: a model of the program, for these tests.
    fn after(saved: &Saved, document: &Document) -> Saved {
        let mut next = saved.clone();
        for line in document.text().lines() {
            let (command, rest) = line.split_at(2);
            let (chain, text) = rest
                .trim_start()
                .split_once(' ')
                .unwrap_or((rest.trim_start(), ""));
            let rule = |text: &str| SavedRule {
                chain: chain.to_owned(),
                text: text.to_owned(),
            };
            match command {
                "-A" => next.rules.push(rule(text)),
                "-D" => {
                    let at = next
                        .rules
                        .iter()
                        .position(|it| *it == rule(text))
                        .expect("deletes what is there");
                    next.rules.remove(at);
                }
                "-I" => {
                    let (position, text) = text.split_once(' ').unwrap();
                    let skipped = position.parse::<usize>().unwrap() - 1;
                    let places: Vec<_> = next
                        .rules
                        .iter()
                        .enumerate()
                        .filter(|(_, it)| it.chain == chain)
                        .collect();
                    let at = places.get(skipped).map_or(next.rules.len(), |(at, _)| *at);
                    next.rules.insert(at, rule(text));
                }
                "-X" => next.chains.retain(|it| it != chain),
                _ if command.starts_with(':') => {
                    let name = line[1..].split(' ').next().unwrap().to_owned();
                    next.rules.retain(|it| it.chain != name);
                    next.chains.retain(|it| *it != name);
                    next.chains.push(name);
                }
                _ => {}
            }
        }
        next
    }

    const MESH: &str = "# Generated\n*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:ISTIO_OUTPUT - [0:0]\n\
                        -A PREROUTING -p tcp -j ISTIO_INBOUND\n-A OUTPUT -p tcp -j ISTIO_OUTPUT\nCOMMIT\n";

    #[test]
    fn one_transition_leads_to_the_plan_and_the_next_is_not_needed() {
        let rules = rules();
        let (_, rules) = by_family(&rules).remove(0);
        let empty = Saved::parse("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n");
        for start in [empty, Saved::parse(MESH)] {
            let first = after(&start, &start.transition(&rules, None).unwrap());
            assert_eq!(first.differences(&rules), Vec::<String>::new());
            assert_eq!(first.transition(&rules, None), None);
            let gone = after(&first, &first.transition(&[], None).unwrap());
            assert_eq!(gone, start);
            assert_eq!(gone.transition(&[], None), None);
        }
    }

    #[test]
    fn doubled_misplaced_and_old_rules_are_mended() {
        let rules = rules();
        let (_, rules) = by_family(&rules).remove(0);
        let start = Saved::parse(MESH);
        let good = after(&start, &start.transition(&rules, None).unwrap());
        let mut doubled = good.clone();
        doubled.rules.push(SavedRule {
            chain: "OUTPUT".into(),
            text: rules_of(&rules, Chain::Output)[0].clone(),
        });
        let mut hidden = good.clone();
        hidden.rules.insert(
            0,
            SavedRule {
                chain: "OUTPUT".into(),
                text: "-j ISTIO_OUTPUT".into(),
            },
        );
        let mut old = good.clone();
        old.chains.push("TEL_OUTPUT_UDP".into());
        old.rules.push(SavedRule {
            chain: "OUTPUT".into(),
            text: "-p udp -j TEL_OUTPUT_UDP".into(),
        });
        for bad in [doubled, hidden, old] {
            assert_ne!(bad.differences(&rules), Vec::<String>::new());
            let mended = after(&bad, &bad.transition(&rules, None).unwrap());
            assert_eq!(mended.differences(&rules), Vec::<String>::new());
            assert_eq!(mended.chains.len(), good.chains.len());
        }
    }

    #[test]
    fn a_mesh_that_came_later_is_moved_in_front_by_the_next_run() {
        let rules = rules();
        let (_, rules) = by_family(&rules).remove(0);
        let start = Saved::default();
        let mut ours = after(&start, &start.transition(&rules, None).unwrap());
        ours.rules.push(SavedRule {
            chain: "PREROUTING".into(),
            text: "-p tcp -j ISTIO_INBOUND".into(),
        });
        assert_eq!(
            ours.differences(&rules),
            Vec::<String>::new(),
            "in force all the same"
        );
        let mended = after(&ours, &ours.transition(&rules, None).unwrap());
        let order: Vec<_> = mended
            .of("PREROUTING")
            .map(|rule| rule.text.as_str())
            .collect();
        assert_eq!(
            order,
            ["-p tcp -j ISTIO_INBOUND", "-p tcp -j TEL_PREROUTING_TCP"]
        );
    }

    #[test]
    fn the_programs_complaint_is_turned_into_a_rule() {
        let rules = rules();
        let (_, rules) = by_family(&rules).remove(0);
        let document = Saved::default().transition(&rules, None).unwrap();
        let line = document
            .text()
            .lines()
            .position(|line| line.contains("REDIRECT"))
            .unwrap()
            + 1;
        let answer = format!(
            "iptables-restore v1.8.9 (nf_tables): \nline {line}: RULE_APPEND failed (No such file)"
        );
        assert_eq!(document.line_blamed_by(&answer), Some(rules[0].to_string()));
        assert_eq!(
            document.line_blamed_by("iptables-restore: line 4 failed"),
            document.line_blamed_by("line: 4")
        );
        assert_eq!(document.line_blamed_by("out of luck"), None);
        assert_eq!(document.line_blamed_by("line 4000 failed"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_harm(text in "(\\*nat|:|-A |-j |TEL_|line |[0-9]|\n| |[A-Z]){0,60}") {
            let rules = rules();
            let (_, rules) = by_family(&rules).remove(0);
            let saved = Saved::parse(&text);
            if let Some(document) = saved.transition(&rules, None) {
                let _ = document.line_blamed_by(&text);
            }
        }
    }

    fn rules_of(rules: &[&Rule], chain: Chain) -> Vec<String> {
        rules
            .iter()
            .filter(|rule| rule.chain == chain)
            .map(|rule| rule.iptables())
            .collect()
    }
}
