//! Deterministic simulation of whole Quorate clusters.
//!
//! A life is a function of a [`Plan`](plan::Plan), and a plan of a seed. The nodes and clients in it are the real ones;
//! what is simulated is what they stand on: the network ([`socket`] over turmoil), the disk ([`disk`]), time and entropy
//! ([`interpose`]). What happened is kept twice: as a hash of everything ([`trace`]), which says whether two runs were the
//! same, and as what the clients saw ([`history`]), which the [`checker`]s judge.
//!
//! One life runs on one thread of its own, from start to end.
//!
//! # Seeing what happens
//!
//! While a life goes on, nodes, clients and disks tell what they do, if somebody listens ([`story`]). Put together with the
//! history it is a [`tale`](tale::Tale), which [`explain`] writes down for one key - all of it, or what a
//! [`Filter`](explain::Filter) leaves - and [`report`] draws on one page of HTML, in the same words. A life that fails is made
//! smaller by [`shrink`].
//!
//! # A scenario of your own
//!
//! A [`scenario`] is a cluster, some named clients and a script. This is a whole test of a property that you may wonder about;
//! `examples/last_seat.rs` is another one, and [`scenarios`] has those that `quorate-sim scenario run NAME` plays:
//!
//! ```
//! use quorate_sim::scenario::{Broken, Quorum, Scenario, Stage};
//!
//! async fn script(stage: Stage) -> Result<(), Broken> {
//!     let alice = stage.client("alice");
//!     let written = alice.put("color", "red").await.acknowledged()?;
//!     stage.say("A minority dies, and a majority still answers.");
//!     stage.crash("n3").await?;
//!     alice.get("color").timeout_ms(4000).await.shows(&["red"])?;
//!     stage.start("n3").await?;
//!     stage.wait_ms(3000).await;
//!     alice.put("color", "blue").after(&written).w(Quorum::All).await.acknowledged()?;
//!     alice.get("color").r(Quorum::One).await.shows(&["blue"])
//!         .map(|_| ())
//! }
//!
//! // Put it into a function with #[test]: a script that is not kept to, or a promise that is broken, fails it.
//! let ending = Scenario::new("a minority dies").nodes(3).clients(&["alice"]).play(script);
//! assert!(ending.is_good(), "{ending}");
//! ```
//!
//! Everything about it is decided by the script and the scenario's seed: it comes out the same each time.

pub mod plan;

pub mod interpose;

pub mod disk;
pub mod socket;
pub mod trace;

mod bad_clients;
pub mod cluster;
mod forgery;
pub mod layouts;
pub mod nemesis;
mod operator;
pub mod workload;

pub mod life;
pub mod vigil;

pub mod story;
pub mod tale;

pub mod explain;
pub mod report;

pub mod shrink;

pub mod history;

pub mod checker;

pub mod scenario;
pub mod scenarios;
