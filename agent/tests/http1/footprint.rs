//! What an idle connection costs.

use traffic_agent::addr::Caller;
use traffic_agent::lane::Lane;
use traffic_agent::port;

use crate::rig::{Rig, named_server};

/// The future of a connection, in bytes: every idle one holds it. Together with two sockets registered with the
/// runtime (about 0.7 kB) it has to stay below the 4 kB that a connection may cost.
const BUDGET: usize = 2048;

#[tokio::test]
async fn the_future_of_a_connection_stays_small() {
    let rig = Rig::start(named_server("app").await);
    let socket = rig.call().await.socket;
    let lane = Lane { caller: Caller::new(rig.addr), port: rig.port.clone(), hello: None };
    let connection = port::connection(socket, lane);
    let size = size_of_val(&connection);
    assert!(size <= BUDGET, "{size} bytes");
}
