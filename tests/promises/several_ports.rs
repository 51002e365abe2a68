//! One intercept of several ports of the same pods.

use std::net::{Ipv4Addr, SocketAddr};

use harness::apps::App;
use harness::caller::get;
use harness::ports;
use harness::sidecar::Port;
use harness::system::{Agent, System, sidecar, start_manager};
use harness::wait::until;

#[test]
fn one_intercept_takes_several_ports_each_to_its_own_place() {
    let (web, admin) = (App::start("web"), App::start("admin"));
    let (local_web, local_admin) = (App::start("local web"), App::start("local admin"));
    let agent_ports = [ports::free(), ports::free()];
    let (manager, manager_address) = start_manager(0);
    let both = vec![
        Port::tcp(web.address().port(), agent_ports[0]),
        Port::tcp(admin.address().port(), agent_ports[1]),
    ];
    let agent = Agent::start(&sidecar(manager_address, both), |_| {});
    agent.ready();
    let port = |local: &App, app: &App| {
        let (local, app) = (local.address().port(), app.address().port());
        format!("{local}:{app}")
    };
    let (first, second) = (port(&local_web, &web), port(&local_admin, &admin));
    let system = System {
        manager,
        manager_address,
        agent,
        app: web,
    };
    let flags = ["--port", &second, "--http-header=x-dev=me"];
    let intercept = system.begin_intercept("mine", &first, &flags);
    intercept.line("state=ACTIVE");
    let [at_web, at_admin] = agent_ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let who =
        |address, headers: &[(&str, &str)]| get(address, "/", headers).unwrap().by().to_owned();
    let mine = [("x-dev", "me")];
    until("both ports to be taken", || {
        (who(at_web, &mine) == "local web" && who(at_admin, &mine) == "local admin").then_some(())
    });
    assert_eq!([who(at_web, &[]), who(at_admin, &[])], ["web", "admin"]);
    assert!(intercept.terminate().success());
    until("both ports to be the app's", || {
        (who(at_web, &mine) == "web" && who(at_admin, &mine) == "admin").then_some(())
    });

    // Where nothing listens at one of them its requests go to the app, and the warning names it.
    let nobody = ports::free();
    let second = format!("{nobody}:{}", admin.address().port());
    let intercept = system.begin_intercept("closed", &first, &["--port", &second, flags[2]]);
    intercept.line("state=ACTIVE");
    until("the first port to be taken", || {
        (who(at_web, &mine) == "local web").then_some(())
    });
    assert_eq!(who(at_admin, &mine), "admin");
    intercept.line(&format!("warning: nothing listens on 127.0.0.1:{nobody}; "));
}
