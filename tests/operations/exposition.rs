//! A strict reader of the Prometheus text format 0.0.4: whatever the format forbids, or merely
//! leaves open, is refused.

use std::collections::{BTreeMap, BTreeSet};

/// A value with its labels, in the order of writing.
type Sample = (BTreeMap<String, String>, f64);

/// Families by name; panics with the line that is wrong.
pub(crate) fn parse(text: &str) -> BTreeMap<String, Vec<Sample>> {
    assert!(text.ends_with('\n'), "the last line has no end");
    let mut samples: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    let mut kinds: BTreeMap<String, String> = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut over = BTreeSet::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest
                .split_once(' ')
                .unwrap_or_else(|| panic!("no help text: {line}"));
            assert!(
                is_name(name) && !help.trim().is_empty() && helped.insert(name.to_owned()),
                "{line}"
            );
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest
                .split_once(' ')
                .unwrap_or_else(|| panic!("no type: {line}"));
            assert!(
                is_name(name) && matches!(kind, "counter" | "gauge" | "histogram"),
                "{line}"
            );
            assert!(
                kinds.insert(name.to_owned(), kind.to_owned()).is_none(),
                "a second type: {line}"
            );
            over.insert(std::mem::replace(&mut current, name.to_owned()));
            assert!(!over.contains(name), "the family comes back: {line}");
        } else {
            let (name, sample) = sample(line);
            let histogram = kinds.get(&current).is_some_and(|k| k == "histogram");
            let suffix = name.strip_prefix(current.as_str()).unwrap_or("?");
            let fits = if histogram {
                matches!(suffix, "_bucket" | "_sum" | "_count")
            } else {
                suffix.is_empty()
            };
            assert!(fits, "{line:?} does not belong to the family {current:?}");
            let list = samples.entry(name).or_default();
            assert!(
                list.iter().all(|(labels, _)| *labels != sample.0),
                "the same sample twice: {line}"
            );
            list.push(sample);
        }
    }
    for (name, kind) in &kinds {
        assert!(helped.contains(name), "{name} has no help");
        match kind.as_str() {
            "histogram" => check_histogram(name, &samples),
            "counter" => assert!(
                samples[name].iter().all(|(_, v)| *v >= 0.0),
                "{name} is negative"
            ),
            _ => assert!(samples.contains_key(name), "{name} has no sample"),
        }
    }
    samples
}

fn sample(line: &str) -> (String, Sample) {
    let end = line
        .find(['{', ' '])
        .unwrap_or_else(|| panic!("no value: {line}"));
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, after) = rest
                .split_once("=\"")
                .unwrap_or_else(|| panic!("a label without a value: {line}"));
            assert!(is_name(label) && !label.contains(':'), "{line}");
            let (value, after) = quoted(after, line);
            assert!(
                labels.insert(label.to_owned(), value).is_none(),
                "a label twice: {line}"
            );
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    let value = rest
        .strip_prefix(' ')
        .unwrap_or_else(|| panic!("no blank before the value: {line}"));
    let value = if value == "+Inf" {
        f64::INFINITY
    } else {
        value
            .parse()
            .unwrap_or_else(|_| panic!("no number: {line}"))
    };
    (name.to_owned(), (labels, value))
}

fn quoted<'t>(text: &'t str, line: &str) -> (String, &'t str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, c @ ('\\' | '"'))) => value.push(c),
                other => panic!("an unknown escape {other:?}: {line}"),
            },
            c => value.push(c),
        }
    }
    panic!("a quote is not closed: {line}")
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = |b: u8| b.is_ascii_alphabetic() || b == b'_' || b == b':';
    bytes.next().is_some_and(first) && bytes.all(|b| first(b) || b.is_ascii_digit())
}

/// Names and values of one sample.
type Labels = Vec<(String, String)>;

fn check_histogram(name: &str, samples: &BTreeMap<String, Vec<Sample>>) {
    let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    for (labels, count) in &samples[&format!("{name}_bucket")] {
        let bound = &labels["le"];
        let bound = if bound == "+Inf" {
            f64::INFINITY
        } else {
            bound.parse().unwrap()
        };
        let others = labels
            .iter()
            .filter(|(l, _)| *l != "le")
            .map(|(l, v)| (l.clone(), v.clone()))
            .collect();
        series.entry(others).or_default().push((bound, *count));
    }
    for (labels, buckets) in series {
        let rising = buckets
            .windows(2)
            .all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1);
        assert!(
            rising,
            "{name} {labels:?}: buckets are not cumulative and in order: {buckets:?}"
        );
        let last = buckets.last().unwrap();
        assert_eq!(last.0, f64::INFINITY, "{name}: no +Inf bucket");
        let count = samples[&format!("{name}_count")].iter().find(|(l, _)| {
            l.iter()
                .map(|(l, v)| (l.clone(), v.clone()))
                .collect::<Vec<_>>()
                == labels
        });
        assert_eq!(
            count.unwrap().1,
            last.1,
            "{name}: the count is not the +Inf bucket"
        );
    }
}

#[test]
#[should_panic(expected = "a second type")]
fn the_strict_reader_refuses_a_family_that_is_declared_twice() {
    parse("# HELP a x\n# TYPE a counter\na 1\n# TYPE a counter\n");
}

#[test]
#[should_panic(expected = "not cumulative")]
fn the_strict_reader_refuses_buckets_that_fall() {
    parse(
        "# HELP h x\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 1\nh_sum \
        1\nh_count 1\n",
    );
}
