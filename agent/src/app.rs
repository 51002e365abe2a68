//! Composition root: bind all, build all, run, drain; alone it knows everyone.
