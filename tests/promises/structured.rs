//! Structured matchers of a command line decide requests at the agent.

use std::process::Command;

use harness::apps::App;
use harness::caller::Caller;
use harness::process::Process;
use harness::programs;
use harness::system::System;

#[test]
fn cookies_baggage_and_methods_choose_the_laptop() {
    let system = System::start();
    let laptop = App::start("laptop");
    let _intercept = system.intercept(
        "mine",
        laptop.address(),
        &[
            "--http-any-of=cookie[user]=jane.doe",
            "--http-any-of=baggage[user]=jane.doe",
            "--http-not=:method=~^(PUT|POST)$",
            "--http-query=v=~^2",
        ],
    );
    let mut caller = Caller::connect(system.address()).unwrap();
    for (path, header, expected) in [
        ("/?v=2.1", ("cookie", "a=b; user=\"jane.doe\""), "laptop"),
        (
            "/?v=2.1",
            ("baggage", "a=b , user = jane%2Edoe;ttl=1"),
            "laptop",
        ),
        ("/?v=2.1", ("cookie", "user=jane-doe"), "app"),
        ("/?v=1", ("cookie", "user=jane.doe"), "app"),
        ("/?v=2.1", ("baggage", "puser=jane.doe"), "app"),
        ("/?v=2.1", ("x-dev", "me"), "app"),
    ] {
        let answer = caller.get(path, &[header]).unwrap();
        assert_eq!(answer.by(), expected, "{path} {header:?}");
    }
    let posted = caller.post("/?v=2", &[("cookie", "user=jane.doe")], b"x");
    assert_eq!(
        posted.unwrap().by(),
        "app",
        "it is no method of the intercept"
    );

    let mut list = Command::new(programs::path("intercept"));
    list.args(["list", "--manager", &system.manager_address.to_string()]);
    Process::start("intercept list", &mut list).line(
        "HTTP requests with not method: ^(PUT|POST)$ and query v: ^2 and \
         (baggage user: ^jane\\.doe$ or cookie user: ^jane\\.doe$)",
    );
    let mut explain = Command::new(programs::path("intercept"));
    explain.args(["explain", "--admin", &system.agent.admin().to_string()]);
    explain.args([
        "--method=PUT",
        "--path=/?v=2",
        "--header=cookie=user=jane.doe",
    ]);
    Process::start("intercept explain", &mut explain)
        .line("mine does not match: not method: ^(PUT|POST)$");
}
