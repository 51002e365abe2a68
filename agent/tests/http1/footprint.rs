//! Memory of an idle connection.

use traffic_agent::addr::Caller;
use traffic_agent::proxy::connection;
use traffic_agent::proxy::context::ConnContext;

use agent_testkit::app::named_server;
use agent_testkit::port::PortFixture;

/// The future of a connection, in bytes: every idle one holds it. With what the task adds it has to
/// fit into the largest block that the allocator keeps at hand for its thread, 1 032 bytes; and
/// together with two sockets registered with the runtime (about 0.9 kB) it has to stay well below
/// the 4 kB that a connection may cost.
const BUDGET: usize = 968;

#[tokio::test]
async fn the_future_of_a_connection_stays_small() {
    let fixture = PortFixture::start(named_server("app").await);
    let socket = fixture.connect().await;
    let lane = ConnContext {
        caller: Caller::new(fixture.addr),
        port: fixture.port.clone(),
        hello: None,
    };
    let connection = connection::connection(socket, lane);
    let size = size_of_val(&connection);
    assert!(size <= BUDGET, "{size} bytes");
}
