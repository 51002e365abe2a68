//! Who may import whom. The agent's modules stand in layers, and a module imports only what stands
//! below it; the data path knows neither the session nor gRPC; pure modules know no sockets; no
//! crate leans on another's program. Violations are found in the sources, so this test says which
//! line to mend.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Every module of the agent, each with what it may import at most: all that stands above it in
/// this list, as far as its group allows. A submodule that is named here is judged by its own line,
/// others belong to their parent.
const LAYERS: &[(&str, Group)] = &[
    ("addr", Group::Words),
    ("outcome", Group::Words),
    ("drain", Group::Words),
    ("limited", Group::Words),
    ("ready", Group::Words),
    ("metrics", Group::Words),
    ("route", Group::Pure),
    ("http1::head", Group::Pure),
    ("http1::body", Group::Pure),
    ("detect::prefix", Group::Pure),
    ("http2::frames", Group::Pure),
    ("access", Group::Means),
    ("conn", Group::Means),
    ("buffers", Group::Means),
    ("switch", Group::Means),
    ("relay", Group::Means),
    ("spare", Group::Means),
    ("tls", Group::Means),
    ("upstream", Group::Means),
    ("lane", Group::Protocols),
    ("opaque", Group::Protocols),
    ("detect", Group::Protocols),
    ("udp", Group::Protocols),
    ("http1", Group::Protocols),
    ("http2", Group::Protocols),
    ("port", Group::Doors),
    ("session", Group::Doors),
    ("share", Group::Doors),
    ("logging", Group::Doors),
    ("admin", Group::Doors),
    ("settings", Group::Root),
    ("status", Group::Root),
    ("leaving", Group::Root),
    ("app", Group::Root),
    ("main", Group::Root),
];

/// What a door may use besides means and below; the other doors see no protocol.
const DOORS: &[(&str, &[&str])] = &[
    (
        "port",
        &["lane", "opaque", "detect", "udp", "http1", "http2"],
    ),
    ("session", &[]),
    ("share", &[]),
    ("logging", &[]),
    // It shows the ports, and turns the knobs of the log.
    ("admin", &["lane", "logging"]),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Words,
    Pure,
    Means,
    Protocols,
    Doors,
    Root,
}

#[test]
fn the_agents_modules_import_only_what_stands_below_them() {
    assert_clean(
        sources()
            .iter()
            .flat_map(|(path, text)| imports_out_of_order(path, text)),
    );
}

#[test]
fn the_agents_modules_form_no_cycle() {
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in sources() {
        let from = line_of(&module_path(&path)).0;
        for import in imports(&path, &text) {
            let to = line_of(&import).0;
            if to != from {
                edges.entry(from.clone()).or_default().insert(to);
            }
        }
    }
    assert!(edges.len() > 15, "the sources were not found: {edges:?}");
    assert_eq!(cycle(&edges), None);
}

#[test]
fn the_data_path_knows_no_grpc_and_spawns_only_through_the_drain() {
    assert_clean(
        sources()
            .iter()
            .flat_map(|(path, text)| forbidden_words(path, text)),
    );
}

#[test]
fn every_module_has_its_place() {
    let known: BTreeSet<_> = LAYERS.iter().map(|(name, _)| *name).collect();
    let lib = fs::read_to_string(root().join("agent/src/lib.rs")).unwrap();
    let declared: Vec<_> = lib
        .lines()
        .filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    assert!(declared.len() > 20, "{declared:?}");
    for module in declared {
        assert!(
            known.contains(module),
            "module {module} has no line in LAYERS of {}",
            file!()
        );
    }
}

#[test]
fn no_crate_leans_on_another_ones_program() {
    for name in ["proto", "agent", "init", "manager", "client"] {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        assert_clean(crate_dependencies(name, &manifest).into_iter());
    }
}

#[test]
fn the_checks_see_what_they_are_for() {
    let order = |path: &str, text: &str| imports_out_of_order(Path::new(path), text).len();
    assert_eq!(
        order("route.rs", "use crate::addr::Caller;\nuse std::fmt;"),
        0
    );
    assert_eq!(order("route.rs", "use crate::upstream::Io;"), 1);
    assert_eq!(order("relay.rs", "fn f() { crate::tls::accept() }"), 1);
    assert_eq!(
        order(
            "http1.rs",
            "use crate::{relay, opaque::{self, carry}, http2};"
        ),
        1
    );
    assert_eq!(order("http1/head.rs", "use super::exchange;"), 1);
    assert_eq!(
        order(
            "http1/exchange.rs",
            "use super::head::Head;\nuse crate::http1::body;"
        ),
        0
    );
    assert_eq!(order("session/live.rs", "use crate::port::Ports;"), 1);
    assert_eq!(order("session/live.rs", "use super::super::http1;"), 1);
    assert_eq!(
        order("session.rs", "use crate::lane::Lane;\nuse crate::share;"),
        2
    );
    assert_eq!(order("admin.rs", "use crate::lane::Lane;"), 0);
    assert_eq!(order("admin.rs", "use crate::settings::Settings;"), 1);
    assert_eq!(order("app.rs", "use crate::{session, admin, port};"), 0);
    assert_eq!(
        order(
            "addr.rs",
            "// crate::session is no import\n#[cfg(test)]\nmod tests { use crate::session; }"
        ),
        0
    );
    let words = |path: &str, text: &str| forbidden_words(Path::new(path), text).len();
    assert_eq!(words("http2.rs", "tokio::spawn(task);"), 1);
    assert_eq!(
        words("port.rs", "use traffic_proto::manager::AgentInfo;"),
        1
    );
    assert_eq!(words("upstream.rs", "fn f(s: tonic::Status) {}"), 1);
    assert_eq!(words("route/matcher.rs", "use tokio::sync::watch;"), 1);
    assert_eq!(words("http1/body.rs", "use std::net::TcpStream;"), 1);
    assert_eq!(words("session/live.rs", "use tonic::Status;"), 0);
    assert_eq!(words("drain.rs", "tokio::spawn(task);"), 0);
    assert_eq!(
        crate_dependencies(
            "agent",
            "[dependencies]\ntraffic-manager.workspace = true\n"
        )
        .len(),
        1
    );
    assert_eq!(
        crate_dependencies(
            "agent",
            "[dev-dependencies]\ntraffic-proto = { workspace = true }\n"
        )
        .len(),
        0
    );
    assert_eq!(
        crate_dependencies(
            "agent",
            "[dev-dependencies]\ntraffic-manager.workspace = true\n"
        )
        .len(),
        0
    );
    let ring = [("a", "b"), ("b", "c"), ("c", "a")]
        .map(|(a, b)| (a.to_owned(), BTreeSet::from([b.to_owned()])));
    assert!(cycle(&BTreeMap::from(ring)).is_some());
}

fn assert_clean(found: impl Iterator<Item = String>) {
    let found: Vec<_> = found.collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

fn imports_out_of_order(path: &Path, text: &str) -> Vec<String> {
    let (from, group, place) = line_of(&module_path(path));
    let mut wrong = Vec::new();
    for import in imports(path, text) {
        let (to, to_group, to_place) = line_of(&import);
        let of_door = DOORS
            .iter()
            .find(|(door, _)| *door == from)
            .map(|(_, allowed)| *allowed);
        let allowed = from == to
            || match (group, of_door) {
                (Group::Root, _) => true,
                (_, Some(allowed)) => to_group <= Group::Means || allowed.contains(&to.as_str()),
                _ => to_place < place,
            };
        if !allowed {
            wrong.push(format!(
                "agent/src/{}: {from} must not import {to} (crate::{import})",
                path.display()
            ));
        }
    }
    wrong
}

fn forbidden_words(path: &Path, text: &str) -> Vec<String> {
    let (module, group, _) = line_of(&module_path(path));
    let data_path = group < Group::Doors || module == "port";
    let mut words: Vec<(&str, &str)> = Vec::new();
    if data_path {
        words.extend(
            ["tonic", "traffic_proto::manager", "traffic_proto::agent"]
                .map(|w| (w, "gRPC stops in session")),
        );
    }
    if (data_path || module == "session") && module != "drain" {
        let why = "every task is known to the drain: drain.spawn";
        words.extend(
            [
                "tokio::spawn",
                "tokio::task::spawn",
                "spawn_local",
                "JoinSet",
            ]
            .map(|w| (w, why)),
        );
    }
    if group == Group::Pure {
        let why = "this module is pure";
        words.extend(
            [
                "tokio",
                "socket2",
                "rustix",
                "std::net::Tcp",
                "std::net::Udp",
                "std::fs",
            ]
            .map(|w| (w, why)),
        );
    }
    let code = code(text);
    let found = words.iter().filter(|(word, _)| mentions(&code, word));
    found
        .map(|(word, why)| format!("agent/src/{}: {word}: {why}", path.display()))
        .collect()
}

/// Whether a path that starts with `word` stands in `code`.
fn mentions(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at]
            .chars()
            .next_back()
            .is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':');
        let after = code[at + word.len()..].chars().next();
        // `std::net::Tcp` stands for all that begin so.
        before
            && (word.ends_with("Tcp")
                || word.ends_with("Udp")
                || after.is_none_or(|c| !c.is_alphanumeric() && c != '_'))
    })
}

fn crate_dependencies(name: &str, manifest: &str) -> Vec<String> {
    let ours = [
        "traffic-agent",
        "agent-init",
        "traffic-manager",
        "intercept",
        "harness",
    ];
    let mut inside = false;
    let mut found = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            // Tests may bring the programs together.
            inside = line.ends_with("dependencies]") && !line.contains("dev-dependencies");
        }
        let dependency = line.split(['.', '=', ' ']).next().unwrap_or_default();
        if inside && ours.contains(&dependency) {
            found.push(format!(
                "{name}/Cargo.toml: {dependency}: crates meet in proto, programs in tests only"
            ));
        }
    }
    found
}

/// Name, group and place of the line that a module path belongs to: the longest one that it starts
/// with.
fn line_of(module: &str) -> (String, Group, usize) {
    let fits = |name: &str| {
        module == name
            || module
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with("::"))
    };
    let line = LAYERS
        .iter()
        .enumerate()
        .filter(|(_, (name, _))| fits(name))
        .max_by_key(|(_, (name, _))| name.len());
    match line {
        Some((place, (name, group))) => ((*name).to_owned(), *group, place),
        // The crate's root: constants, which anybody may use.
        None => ("lib".to_owned(), Group::Words, 0),
    }
}

/// Absolute module paths (two segments at most) that a file imports or mentions.
fn imports(path: &Path, text: &str) -> BTreeSet<String> {
    let code = code(text);
    let own: Vec<String> = module_path(path).split("::").map(str::to_owned).collect();
    let mut found = BTreeSet::new();
    for (at, start) in code
        .match_indices("crate::")
        .chain(code.match_indices("super::"))
    {
        let whole_word = code[..at]
            .chars()
            .next_back()
            .is_none_or(|c| !c.is_alphanumeric() && c != '_');
        // The later ones of `super::super::` are counted with the first.
        if !whole_word || code[..at].ends_with("super::") {
            continue;
        }
        let mut rest = &code[at + start.len()..];
        let mut base: Vec<String> = Vec::new();
        if start == "super::" {
            base = own[..own.len() - 1].to_vec();
            while let Some(further) = rest.strip_prefix("super::") {
                base.pop();
                rest = further;
            }
        }
        for tail in heads(rest) {
            let full: Vec<_> = base.iter().cloned().chain(tail).take(2).collect();
            if full
                .first()
                .is_some_and(|f| f.starts_with(char::is_lowercase))
            {
                found.insert(full.join("::"));
            }
        }
    }
    found
}

/// The first two segments of each path that begins here; braces make several.
fn heads(text: &str) -> Vec<Vec<String>> {
    let Some(inside) = text.strip_prefix('{') else {
        let name: String = text
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        let rest = &text[name.len()..];
        let next = rest.strip_prefix("::").map(heads).unwrap_or_default();
        let below: Vec<_> = next
            .into_iter()
            .filter_map(|n| n.first().cloned())
            .collect();
        if below.is_empty() {
            return vec![vec![name]];
        }
        return below.into_iter().map(|b| vec![name.clone(), b]).collect();
    };
    let (mut depth, mut from, mut parts) = (0, 0, Vec::new());
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                parts.push(inside[from..at].trim());
                from = at + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    parts
        .into_iter()
        .filter(|p| !p.is_empty() && *p != "self")
        .flat_map(heads)
        .collect()
}

/// A source without its comments and its own tests, which stand at the end.
fn code(text: &str) -> String {
    let shipped = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let without_comment = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    shipped
        .lines()
        .map(without_comment)
        .collect::<Vec<_>>()
        .join("\n")
}

/// `session/live.rs` is `session::live`.
fn module_path(path: &Path) -> String {
    path.with_extension("")
        .components()
        .map(|c| c.as_os_str().to_string_lossy())
        .collect::<Vec<_>>()
        .join("::")
}

fn cycle(edges: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn walk<'e>(
        at: &'e str,
        edges: &'e BTreeMap<String, BTreeSet<String>>,
        trail: &mut Vec<&'e str>,
        done: &mut BTreeSet<&'e str>,
    ) -> bool {
        if trail.contains(&at) {
            trail.push(at);
            return true;
        }
        if !done.insert(at) {
            return false;
        }
        trail.push(at);
        if edges
            .get(at)
            .into_iter()
            .flatten()
            .any(|to| walk(to, edges, trail, done))
        {
            return true;
        }
        trail.pop();
        false
    }
    edges.keys().find_map(|start| {
        let mut trail = Vec::new();
        walk(start, edges, &mut trail, &mut BTreeSet::new())
            .then(|| trail.into_iter().map(str::to_owned).collect())
    })
}

/// Every source of the agent, by its path below `agent/src`; files of tests left out.
fn sources() -> Vec<(PathBuf, String)> {
    let src = root().join("agent/src");
    let mut found = Vec::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(&src).unwrap().to_owned(), text));
            }
        }
    }
    assert!(
        found.len() > 50,
        "the agent's sources were not found in {}",
        src.display()
    );
    found
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
