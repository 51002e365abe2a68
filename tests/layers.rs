//! Import rules, read from the sources. Folders are the layers of the agent: a folder imports only
//! lower ones, `proxy` and `control` do not see each other, and gRPC types stay in `control`. No
//! crate has an import cycle between its files, a parent file counted apart from its children.
//! Violations are named by file, so this test says which line to mend.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Folders and top-level files of `agent/src`, lowest first; those of one row do not see each
/// other, except the words of the first row, which have no order among them but no cycle either.
const LAYERS: &[&[&str]] = &[
    &["addr", "drain", "limits", "outcome", "ready", "routes"],
    &["telemetry"],
    &["io"],
    &["tls"],
    &["upstream"],
    &["proxy", "control", "files"],
    &["admin", "rest_api"],
    &["app", "main"],
];

/// Crates and the crates of ours that they may depend on, tests aside.
const CRATES: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("core", &["traffic-proto"]),
    ("agent", &["traffic-proto", "traffic-core"]),
    ("init", &["traffic-proto"]),
    ("manager", &["traffic-proto", "traffic-core", "injector"]),
    ("injector", &["traffic-proto"]),
    // `genyaml` prints what an injection would make; expressions are checked as agents read them.
    ("client", &["traffic-proto", "traffic-core", "injector"]),
];

/// Dependencies that the pure crates must not have.
const IMPURE: &[&str] = &[
    "tokio", "socket2", "rustix", "libc", "mio", "tonic", "hyper",
];

#[test]
fn a_folder_of_the_agent_imports_only_lower_layers() {
    let modules = modules("agent");
    let mut wrong = Vec::new();
    for (from, file) in &modules {
        for import in imports(from, &file.code, &modules) {
            if let Some(problem) = out_of_order(from, &import) {
                wrong.push(format!("{}: {problem}", file.path.display()));
            }
        }
    }
    assert_clean(&wrong);
}

#[test]
fn every_folder_of_the_agent_has_its_layer() {
    for module in modules("agent").keys().filter(|m| *m != "lib") {
        assert!(
            layer(module).is_some(),
            "{module}: no layer in LAYERS of {}",
            file!()
        );
    }
}

#[test]
fn no_crate_has_an_import_cycle() {
    for (name, _) in CRATES {
        let modules = modules(name);
        let edges: BTreeMap<_, _> = modules
            .iter()
            .map(|(from, file)| (from.clone(), imports(from, &file.code, &modules)))
            .collect();
        assert_eq!(cycle(&edges), None, "import cycle in {name}/src");
    }
}

#[test]
fn grpc_types_of_the_agent_stay_in_the_control_path() {
    let data = ["routes", "telemetry", "io", "tls", "upstream", "proxy"];
    let mut wrong = Vec::new();
    for (module, file) in modules("agent") {
        if !data.contains(&top(&module)) {
            continue;
        }
        for word in ["tonic", "traffic_proto::manager", "traffic_proto::agent"] {
            if mentions(&file.code, word) {
                wrong.push(format!(
                    "{}: {word} belongs to control",
                    file.path.display()
                ));
            }
        }
    }
    assert_clean(&wrong);
}

#[test]
fn crates_depend_on_each_other_only_as_the_architecture_says() {
    let ours: Vec<_> = [
        "traffic-proto",
        "traffic-core",
        "traffic-agent",
        "agent-init",
    ]
    .into_iter()
    .chain(["injector", "traffic-manager", "intercept", "harness"])
    .collect();
    let mut wrong = Vec::new();
    for (name, allowed) in CRATES {
        for dependency in dependencies(name) {
            if ours.contains(&dependency.as_str()) && !allowed.contains(&dependency.as_str()) {
                wrong.push(format!(
                    "{name}/Cargo.toml: must not depend on {dependency}"
                ));
            }
            let pure = ["core", "injector"].contains(name);
            if pure && IMPURE.contains(&dependency.as_str()) {
                wrong.push(format!("{name}/Cargo.toml: {dependency} in a pure crate"));
            }
        }
    }
    assert_clean(&wrong);
}

#[test]
fn the_checks_see_what_they_are_for() {
    assert!(out_of_order("proxy::opaque", "control::tunnels").is_some());
    assert!(out_of_order("control::session", "proxy::context").is_some());
    assert!(out_of_order("io::relay", "upstream").is_some());
    assert!(out_of_order("tls::stream", "io::conn").is_none());
    assert!(out_of_order("admin::views", "proxy::context").is_none());
    assert!(out_of_order("app", "admin").is_none());
    let module = |code: &str| Module {
        path: PathBuf::new(),
        code: self::code(code),
    };
    let known: BTreeMap<_, _> = ["a", "a::b", "a::c", "d"]
        .map(|name| (name.to_owned(), module("")))
        .into();
    let found = |text: &str| imports("a::b", &code(text), &known);
    let set = |names: &[&str]| {
        names
            .iter()
            .map(|n| (*n).to_owned())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(found("use crate::a::Word;"), set(&["a"]));
    assert_eq!(
        found("use crate::{d::X, a::c::{self, Y}};"),
        set(&["d", "a::c"])
    );
    assert_eq!(found("fn f() { super::c::go() }"), set(&["a::c"]));
    assert_eq!(found("use super::Word;"), set(&["a"]));
    assert_eq!(
        found("// crate::d\n#[cfg(test)]\nmod tests { use crate::d; }"),
        set(&[])
    );
    let ring = [("a", "b"), ("b", "c"), ("c", "a")]
        .map(|(from, to)| (from.to_owned(), BTreeSet::from([to.to_owned()])));
    assert!(cycle(&BTreeMap::from(ring)).is_some());
    assert!(mentions("use tonic::Status;", "tonic") && !mentions("tonical()", "tonic"));
}

/// A source file: where it stands, and its text without comments and tests.
struct Module {
    path: PathBuf,
    code: String,
}

fn assert_clean(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

fn top(module: &str) -> &str {
    module.split("::").next().unwrap_or(module)
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&top(module)))
}

fn out_of_order(from: &str, to: &str) -> Option<String> {
    let (Some(here), Some(there)) = (layer(from), layer(to)) else {
        return None;
    };
    let allowed = top(from) == top(to) || there < here || (here == 0 && there == 0);
    (!allowed).then(|| format!("{from} must not import {to}"))
}

/// Modules of a crate by their path. Files named `tests.rs` are left out.
fn modules(name: &str) -> BTreeMap<String, Module> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join(name).join("src");
    let mut found = BTreeMap::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
                let below = path.strip_prefix(&src).unwrap().with_extension("");
                let parts = below.components().map(|c| c.as_os_str().to_string_lossy());
                let module = parts.collect::<Vec<_>>().join("::");
                let code = code(&fs::read_to_string(&path).unwrap());
                found.insert(module, Module { path, code });
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {}", src.display());
    found
}

/// Modules that a file imports or mentions, each the deepest that its path names.
fn imports(from: &str, code: &str, modules: &BTreeMap<String, Module>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for root in ["crate::", "super::"] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let mut base: Vec<&str> = from.split("::").collect();
            let mut rest = &code[at..];
            if root == "crate::" {
                base.clear();
                rest = &rest[root.len()..];
            }
            while let Some(further) = rest.strip_prefix("super::") {
                base.pop();
                rest = further;
            }
            for path in paths(rest) {
                let full: Vec<_> = base.iter().map(|s| (*s).to_owned()).chain(path).collect();
                let named = (1..=full.len()).rev().map(|n| full[..n].join("::"));
                found.extend(named.into_iter().find(|name| modules.contains_key(name)));
            }
        }
    }
    found.remove(from);
    found
}

/// Paths that begin here; braces make several.
fn paths(text: &str) -> Vec<Vec<String>> {
    if let Some(inside) = text.strip_prefix('{') {
        return members(inside).into_iter().flat_map(paths).collect();
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    let (name, rest) = text.split_at(end.unwrap_or(text.len()));
    let below = rest.strip_prefix("::").map(paths).unwrap_or_default();
    if below.is_empty() {
        return vec![vec![name.to_owned()]];
    }
    let with_name = |path: Vec<String>| [vec![name.to_owned()], path].concat();
    below.into_iter().map(with_name).collect()
}

/// The members of a brace group, whose opening brace has been taken.
fn members(inside: &str) -> Vec<&str> {
    let (mut depth, mut from, mut found) = (0, 0, Vec::new());
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                found.push(inside[from..at].trim());
                from = at + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    found
}

/// A source without its comments and its own tests, which stand at the end.
fn code(text: &str) -> String {
    let shipped = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let without_comment = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    let lines: Vec<_> = shipped.lines().map(without_comment).collect();
    lines.join("\n")
}

/// Says if `code` has a path that starts with `word`.
fn mentions(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(|c| part(c) || c == ':') && !after.is_some_and(part)
    })
}

/// Names in the dependency tables of a crate's manifest, those of tests aside.
fn dependencies(name: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(name)
        .join("Cargo.toml");
    let manifest = fs::read_to_string(path).unwrap();
    let mut inside = false;
    let mut found = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]") && !line.contains("dev-dependencies");
        } else if inside {
            let dependency = line.split(['.', '=', ' ']).next().unwrap_or_default();
            found.push(dependency.to_owned());
        }
    }
    found
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
        let targets = edges.get(at).into_iter().flatten();
        for to in targets {
            if walk(to, edges, trail, done) {
                return true;
            }
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
