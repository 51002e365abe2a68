//! The program in real pods: network namespaces with callers, neighbours, meshes and kernels that
//! refuse.
#![allow(clippy::unwrap_used)] // A test that cannot go on panics.

mod checking;
mod cni;
mod exceptions;
mod lacking;
mod leftovers;
mod lifecycle;
mod matrix;
mod mesh;
mod other_flavour;
mod parties;
mod program;
mod rights;
mod routed;
mod sandbox;
mod space;
mod unanswered;
mod usage;
mod waiting;
