//! The program in real pods: network namespaces with callers, neighbours, meshes and kernels that refuse.

mod lifecycle;
mod matrix;
mod mesh;
mod parties;
mod program;
mod sandbox;
mod space;
