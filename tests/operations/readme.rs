//! The README's commands, run as a reader would paste them, and as one would type them.

use std::path::Path;
use std::process::Command;

use harness::pod::Space;
use harness::programs;

/// Returns the script below a heading of the README.
fn script(heading: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(path).unwrap();
    let section = text.split(heading).nth(1).expect(heading);
    let block = section.split("```bash\n").nth(1).expect("a bash block");
    block.split("```").next().unwrap().to_owned()
}

#[test]
fn the_commands_by_hand_do_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let programs = programs::path("traffic-agent");
    let programs = programs.parent().unwrap().to_str().unwrap();
    let script = script("## By hand")
        .replace("cargo build --release\n", "")
        .replace("$PWD/target/release", programs)
        .replace("/tmp/try", folder.path().to_str().unwrap());
    // A network of its own, because the README's ports are fixed.
    let done = Space::new().run(|| {
        Command::new("timeout")
            // A wait of the script that never ends must not hold the run.
            .args(["60", "bash", "-ec", &script])
            .output()
            .unwrap()
    });
    let said = String::from_utf8_lossy(&done.stdout);
    let errors = String::from_utf8_lossy(&done.stderr);
    let mut rest = &*said;
    for expected in [
        "OK\n",
        "\nthe-app\nmy-laptop\n",
        "mine (yours)  ACTIVE",
        "echo in namespace default, port 8080",
        "mine  ACTIVE",
        "failures  none",
        "http://127.0.0.1:8081/\n",
        "8080/TCP",
        "\nCOLOUR=blue\n",
    ] {
        let Some((_, after)) = rest.split_once(expected) else {
            panic!("{expected:?} does not follow:\n{said}\n{errors}");
        };
        // The next text may begin where this one ends.
        rest = after;
    }
}

#[test]
fn typed_into_a_terminal_they_show_what_a_reader_is_to_see() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let programs = programs::path("traffic-agent");
    let done = Space::new().run(|| {
        Command::new(root.join("docs/record-session"))
            .arg("--programs")
            .arg(programs.parent().unwrap())
            .output()
            .unwrap()
    });
    let said = String::from_utf8_lossy(&done.stdout);
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{errors}\n{said}");
    // What is shown on a terminal is plain where the terminal can do no more.
    assert!(!said.contains('\u{1b}'), "{said:?}");
}
