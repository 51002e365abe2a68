//! The README's way from nothing to an intercept in a cluster, pasted as it stands. The cluster, the
//! images and the client are those that this test has already.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cluster_tests::{Cluster, HEADER, Kind, Manager, Workload, Workstation};
use serde_json::json;

use super::chart::{root, text};

/// From images to the first matched request.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// What the README has made before: the lines are in the script, and do nothing.
const DONE_ALREADY: &str = "
make() { case $* in 'images cluster' | cluster-down) ;; *) echo \"no make $*\" >&2; return 2 ;; esac; }
cargo() { case $* in 'build --release -p intercept') ;; *) echo \"no cargo $*\" >&2; return 2 ;; esac; }
";

fn script(heading: &str) -> String {
    let text = std::fs::read_to_string(root().join("README.md")).unwrap();
    let section = text.split(heading).nth(1).expect(heading);
    let block = section.split("```bash\n").nth(1).expect("a bash block");
    block.split("```").next().unwrap().to_owned()
}

/// A clone as the README's first lines leave it.
fn clone(cluster: &Cluster, folder: &Path) {
    let programs = harness::programs::path("intercept");
    std::fs::create_dir(folder.join("target")).unwrap();
    symlink(cluster.folder(), folder.join("target/cluster")).unwrap();
    symlink(programs.parent().unwrap(), folder.join("target/release")).unwrap();
    symlink(root().join("chart"), folder.join("chart")).unwrap();
}

#[test]
fn the_readme_leads_from_images_to_an_intercept() {
    let cluster = Cluster::start(Kind::Node);
    cluster.load_our_images();
    let folder = tempfile::tempdir().unwrap();
    clone(&cluster, folder.path());
    let script = format!("{DONE_ALREADY}{}", script("## In a cluster"));
    let laptop = folder.path().join("laptop");
    let script = script
        .replace("/tmp/laptop", laptop.to_str().unwrap())
        .replace(" 3000", &format!(" {}", harness::ports::free()));
    let mut bash = Command::new("timeout");
    // A wait of the script that never ends must not hold the run.
    bash.args(["180", "bash", "-ec", &script]);
    let done = bash.current_dir(folder.path()).output().unwrap();
    let said = text(&done);
    assert!(done.status.success(), "{said}");
    let mut rest = &*said;
    for expected in [
        "my-laptop\n",
        "web in web-",
        "state=REMOVED agents=web",
        "uninstalled",
    ] {
        let Some((_, after)) = rest.split_once(expected) else {
            panic!("{expected:?} does not follow:\n{said}");
        };
        rest = after;
    }
    harness::wait::until("the manager's end", || {
        let pods = cluster.kubectl().args(["get", "pods", "-A"]).output();
        (!text(&pods.unwrap()).contains("traffic-manager")).then_some(())
    });
}

#[test]
fn from_images_to_the_first_matched_request_it_takes_less_than_a_minute() {
    let cluster = Cluster::start(Kind::Node);
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("app"));
    Workload::new("Deployment", "web", 1, "http").start(&namespace);
    let caller = namespace.caller();
    harness::wait::until("the app", || caller.try_get("http://web", &[]).ok());
    let begin = Instant::now();
    cluster.load_our_images();
    let loaded = begin.elapsed();
    let manager = Manager::install_for_all(&home, &json!({}));
    let installed = begin.elapsed();
    let served = Workstation::new(&manager).intercept(namespace.name(), "web", &[]);
    harness::wait::until("the intercept", || {
        let answer = caller.try_get("http://web", &["-H", HEADER]).ok()?;
        (answer.by == served.answers_as).then_some(())
    });
    let took = begin.elapsed();
    println!("images loaded {loaded:?}, manager installed {installed:?}, first request {took:?}");
    assert!(took < FIRST_REQUEST_TIMEOUT, "{took:?}");
    served.leave();
}
