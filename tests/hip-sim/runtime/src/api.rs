//! The functions of HIP by topic; those of graphs are in [`crate::graph`].

pub(crate) mod copy;
pub(crate) mod event;
pub(crate) mod memory;
pub(crate) mod module;
pub(crate) mod platform;
pub(crate) mod stream;
