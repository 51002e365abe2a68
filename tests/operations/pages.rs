//! The pages of agent and manager in a real browser.

use std::path::Path;
use std::process::Command;

#[test]
fn the_pages_fit_say_what_they_have_to_and_run_no_script_of_others() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    let done = Command::new("timeout")
        .arg("300")
        .arg(root.join("tests/screens/run"))
        .arg(out.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{errors}\n{said}");
}
