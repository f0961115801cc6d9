//! Quorate's node.
//!
//! Modules in reading order: the pure core, what it takes from outside and keeps data in, how it talks to other nodes, who
//! they are and who owns what, how requests are run, and what is around it.

pub mod core;

pub mod store;
