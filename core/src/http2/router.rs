//! The router of one HTTP/2 connection: bytes in, bytes out, no I/O, no clock.
//!
//! The caller's connection and the app's are one: streams have the same ids, SETTINGS, PINGs,
//! windows and GOAWAY are between these two, and frames pass as they are. Header sections are
//! followed on the way, so that at any moment the state of both header compressions is known, and a
//! rule that comes holds for the next stream.
//!
//! A stream that a rule gives to a workstation is *diverted*: its frames are taken out and go to a
//! connection of the agent's own, with ids of its own; stream windows are the two ends' all the
//! same. From the first diverted stream on
//!
//! * sections to the app are written anew, with a table of their own, because the app's decoder has
//!   missed one ([`crate::http2::hpack::Recoder`]); answers of workstations are written so that
//!   they leave the caller's table alone, so the app's still pass as they are;
//! * the caller's window for the connection is shared (`window.rs`), and what the app sends beyond
//!   it is held (`held.rs`);
//! * credit for the bodies of diverted requests is the agent's to give (`diverted.rs`).
//!
//! | file | what it does |
//! | --- | --- |
//! | `from_caller.rs`, `caller_sections.rs`, `open.rs` | frames of the caller; where a new stream goes |
//! | `from_app.rs` | frames of the app |
//! | `from_tunnel.rs`, `exchange.rs`, `tunnels.rs` | diverted streams and their connections |
//! | `leave.rs`, `leaving.rs` | how the connection ends |
//! | `copying.rs` | requests that are copied on their way |
//! | `state.rs` | what all of them share |

mod caller_sections;
mod copying;
mod cursor;
mod diverted;
mod exchange;
mod from_app;
mod from_caller;
mod from_tunnel;
mod half;
mod held;
mod host;
mod ids;
mod leave;
mod leaving;
mod open;
mod state;
mod tunnel;
mod tunnels;
mod unanswered;
mod window;

pub use cursor::Sorted;
pub use from_tunnel::TunnelBroken;
pub use host::{Explained, Host, LocalAnswer, StreamEnd, StreamRoute, TunnelId, Way};
pub use leaving::GOAWAY_TIMEOUT;
pub use state::{Fatal, Router, VouchedField};
