//! The checked-in generated code is exactly what the schema compiles to.

#[path = "../examples/generate/compile.rs"]
mod compile;

use std::path::Path;

#[test]
fn checked_in_code_is_what_the_schema_compiles_to() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = tempfile::tempdir().expect("a temporary directory");
    compile::compile(&root.join("proto"), fresh.path()).expect("the schema compiles");

    let names = |dir: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .expect("the directory is readable")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        names
    };
    let checked_in = root.join("src/gen");
    let expected = names(fresh.path());
    assert_eq!(expected.len(), 3, "one file for each package");
    assert_eq!(names(&checked_in), expected);
    for name in expected {
        let old = std::fs::read_to_string(checked_in.join(&name)).expect("checked-in file");
        let new = std::fs::read_to_string(fresh.path().join(&name)).expect("generated file");
        assert!(
            old == new,
            "{} is stale: run `cargo run -p traffic-proto --example generate`",
            name.display()
        );
    }
}
