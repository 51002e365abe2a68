//! Terminated mode: a connection is taken apart into its streams, and each goes where the rules of the moment say.

use crate::buffers::Buf;
use crate::conn::Conn;
use crate::lane::Lane;
use crate::outcome::Ended;

pub(super) async fn carry(down: Conn, first: Buf, app: Conn, said: Buf, lane: &Lane) -> Ended {
    let _ = (down, first, app, said, lane);
    Ended::Bug
}
