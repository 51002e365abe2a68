//! What workstations ask of a pod besides requests: names, by the pod's own `resolv.conf` and a
//! real DNS server, and connections into the cluster. Asked as the stock client asks.
#![allow(clippy::unwrap_used)] // A test that cannot go on panics.

mod answers;
mod dials;
mod faults;
mod loopback;
mod rig;
