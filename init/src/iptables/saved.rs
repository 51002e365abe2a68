//! Reading of `iptables-save -t nat`, and the one document for `iptables-restore --noflush` that
//! leads from there to the plan. Pure.
//!
//! `ours` says which chains and rules are ours. All else is left in its place.

use super::words;
use crate::ours::{self, is_mark, is_own_chain};
use crate::rule::{Chain, Rule, own_chains};

/// Targets that end the way of a packet through the hook's chain.
const FINAL_TARGETS: [&str; 6] = ["ACCEPT", "RETURN", "DROP", "DNAT", "REDIRECT", "NETMAP"];

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
    ours: bool,
}

impl SavedRule {
    /// True for a rule of ours in a chain that is not.
    fn is_our_jump(&self) -> bool {
        self.ours && !is_own_chain(&self.chain)
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
                let name = chain.split(' ').next().map(str::to_owned);
                saved.chains.extend(name);
            } else if let (true, Some(rule)) = (in_nat, line.strip_prefix("-A ")) {
                let (chain, text) = rule.split_once(' ').unwrap_or((rule, ""));
                saved.rules.push(SavedRule {
                    chain: chain.to_owned(),
                    text: text.trim_end().to_owned(),
                    ours: false,
                });
            }
        }
        saved.tell_ours();
        saved
    }

    fn tell_ours(&mut self) {
        let seen = |rule: &SavedRule| words::seen(&rule.chain, &rule.text);
        let seen: Vec<_> = self.rules.iter().map(seen).collect();
        for (rule, ours) in self.rules.iter_mut().zip(ours::ours(&seen)) {
            rule.ours = ours;
        }
    }

    /// True when there is a chain or a rule of ours.
    pub fn has_ours(&self) -> bool {
        self.chains.iter().any(|name| is_own_chain(name)) || self.rules.iter().any(|rule| rule.ours)
    }

    /// Rules of others that end the way of arriving packets before our jump: a line for each.
    pub fn in_front(&self) -> Vec<String> {
        let before = self
            .of("PREROUTING")
            .take_while(|rule| !rule.is_our_jump())
            .filter(|rule| {
                let target = words::seen("", &rule.text).jump.unwrap_or_default();
                FINAL_TARGETS.contains(&target.as_str())
            });
        before
            .map(|rule| format!("in front of ours: rule -A PREROUTING {}", rule.text))
            .collect()
    }

    fn of<'a>(&'a self, chain: &'a str) -> impl Iterator<Item = &'a SavedRule> {
        self.rules.iter().filter(move |rule| rule.chain == chain)
    }

    /// Compares `rules` with the table: a line for each that is missing or not wanted.
    ///
    /// Rules are in force when our chains hold their rules, our jumps are the first in `OUTPUT`,
    /// and each of those in `PREROUTING` is there once.
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
        for name in self.chains.iter().filter(|name| is_own_chain(name)) {
            if !is_mark(name) && own.iter().all(|chain| chain.name() != *name) {
                lines.push(format!("not wanted: chain {name}"));
            }
        }
        lines
    }

    /// True when our jumps in `PREROUTING` stand behind everybody else's.
    fn callers_meet_others_first(&self) -> bool {
        self.of("PREROUTING")
            .skip_while(|rule| !rule.is_our_jump())
            .all(SavedRule::is_our_jump)
    }

    /// Makes the document that leaves `rules` as all that is ours here, or `None` when they are
    /// already.
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
            .filter(|name| is_own_chain(name) && !kept(name.as_str()))
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
    use crate::plan::{Options, Pod, PortPlan, plan};
    use crate::rule::{Owner, Transport, by_family};

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
            agent: Owner::Uid(0),
        };
        plan(&[port], &pod, &Options::default())
    }

    fn saved_rule(chain: &str, text: &str) -> SavedRule {
        SavedRule {
            chain: chain.to_owned(),
            text: text.to_owned(),
            ours: false,
        }
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
            let rule = |text: &str| saved_rule(chain, text);
            match command {
                "-A" => next.rules.push(rule(text)),
                "-D" => {
                    let at = next
                        .rules
                        .iter()
                        .position(|it| {
                            (&it.chain, &it.text) == (&rule(text).chain, &rule(text).text)
                        })
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
        next.tell_ours();
        next
    }

    const MESH: &str = "# Generated\n*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT \
                        [0:0]\n:ISTIO_OUTPUT - [0:0]\n-A PREROUTING -p tcp -j ISTIO_INBOUND\n-A \
                        OUTPUT -p tcp -j ISTIO_OUTPUT\nCOMMIT\n";

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
        doubled
            .rules
            .push(saved_rule("OUTPUT", &rules_of(&rules, Chain::Output)[0]));
        doubled.tell_ours();
        let mut hidden = good.clone();
        hidden
            .rules
            .insert(0, saved_rule("OUTPUT", "-j ISTIO_OUTPUT"));
        let mut old = good.clone();
        old.chains.push("TEL_OUTPUT_UDP".into());
        old.rules
            .push(saved_rule("OUTPUT", "-p udp -j TEL_OUTPUT_UDP"));
        old.tell_ours();
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
        ours.rules
            .push(saved_rule("PREROUTING", "-p tcp -j ISTIO_INBOUND"));
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
            [
                "-p tcp -j ISTIO_INBOUND",
                "-p tcp -m addrtype --dst-type LOCAL -j TEL_PREROUTING_TCP"
            ]
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
        assert_eq!(document.line_blamed_by(&answer), Some(rules[1].to_string()));
        assert_eq!(
            document.line_blamed_by("iptables-restore: line 4 failed"),
            document.line_blamed_by("line: 4")
        );
        assert_eq!(document.line_blamed_by("out of luck"), None);
        assert_eq!(document.line_blamed_by("line 4000 failed"), None);
    }

    #[test]
    fn the_rules_of_the_original_image_are_replaced() {
        let rules = rules();
        let (_, rules) = by_family(&rules).remove(0);
        let original = "*nat\n:OUTPUT ACCEPT [0:0]\n:TEL_OUTPUT_TCP - [0:0]\n:TEL_PREROUTING_TCP - \
                        [0:0]\n-A PREROUTING -p tcp -j TEL_PREROUTING_TCP\n-A OUTPUT -o lo -p tcp \
                        -m owner ! --uid-owner 0 -j TEL_OUTPUT_TCP\n-A OUTPUT -m owner --uid-owner \
                        0 -j RETURN\n-A OUTPUT -m owner --uid-owner 1337 -j RETURN\nCOMMIT\n";
        let start = Saved::parse(original);
        let mended = after(&start, &start.transition(&rules, None).unwrap());
        assert_eq!(mended.differences(&rules), Vec::<String>::new());
        let gone = after(&mended, &mended.transition(&[], None).unwrap());
        let left: Vec<_> = gone.rules.iter().map(|rule| rule.text.as_str()).collect();
        assert_eq!(left, ["-m owner --uid-owner 1337 -j RETURN"]);
    }

    #[test]
    fn a_foreign_rule_is_left_whatever_its_comment_says() {
        let comment = r#"-A OUTPUT -m comment --comment "see -j TEL_OUTPUT_TCP" -j ACCEPT"#;
        let table = Saved::parse(&format!("*nat\n:OUTPUT ACCEPT [0:0]\n{comment}\nCOMMIT\n"));
        assert!(!table.has_ours());
        let rules = rules();
        let (_, rules) = by_family(&rules).remove(0);
        let text = table.transition(&rules, None).unwrap().text();
        assert!(!text.contains("-D"), "{text}");
    }

    #[test]
    fn a_final_rule_in_front_of_our_jump_is_told_and_a_mesh_is_not() {
        let table = "*nat\n-A PREROUTING -p tcp -j ISTIO_INBOUND\n-A PREROUTING -p tcp -j ACCEPT\n\
                     -A PREROUTING -p tcp -j TEL_PREROUTING_TCP\n-A PREROUTING -p udp -j ACCEPT\n";
        assert_eq!(
            Saved::parse(table).in_front(),
            ["in front of ours: rule -A PREROUTING -p tcp -j ACCEPT"]
        );
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_harm(text in "(\\*nat|:|-A |-j |TEL_|line |[0-9]|\n| \
            |[A-Z]){0,60}") {
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
