//! The sidecar: one listening port stands for one container port, and every connection is carried
//! to the app as if nobody stood between, unless an intercept sends a request through a tunnel to a
//! workstation.
//!
//! ```text
//! data     caller ─> accept ─> (tls) ─> detect ─> http1 | http2 | opaque ─> route ─┬─> app
//!                    port.rs   tls.rs   detect.rs                           route.rs └─> tunnel ─> workstation
//!                                                                              ▲
//! control  manager ─> session ─> translate ─> RouteTable   (one swapped pointer; nothing else crosses)
//! ```
//!
//! The modules below stand in reading order of their layers: a module imports only what stands
//! above it.

/// The agent's version as peers are told it.
pub const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

// Layer 0: words.
pub mod addr;
pub mod drain;
pub mod limited;
pub mod metrics;
pub mod outcome;
pub mod ready;

// Layer 1: pure.
pub mod route;

// Layer 2: means.
pub mod access;
pub mod buffers;
pub mod conn;
pub mod relay;
pub mod spare;
pub mod switch;
pub mod tls;
pub mod upstream;

// Layer 3: protocols.
pub mod detect;
pub mod http1;
pub mod http2;
pub mod lane;
pub mod opaque;
pub mod udp;

// Layer 4: doors.
pub mod admin;
pub mod logging;
pub mod port;
pub mod session;
pub mod share;

// Layer 5: root.
pub mod app;
pub mod leaving;
pub mod settings;
pub mod status;
