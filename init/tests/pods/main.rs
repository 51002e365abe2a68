//! The program in real pods: network namespaces with callers, neighbours, meshes and kernels that
//! refuse.
#![allow(clippy::unwrap_used)] // A test that cannot go on panics.

mod lifecycle;
mod matrix;
mod mesh;
mod parties;
mod program;
mod sandbox;
mod space;
