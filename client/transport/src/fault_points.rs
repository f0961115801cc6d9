//! The points at which a simulation may interfere with connections, and the states that it has to reach.

use quorate_wire::fault_points::Effect::{Refuses, Slows};
use quorate_wire::fault_points::{Point, Table, point};

/// Both tables, for simulations.
pub static TABLE: Table = Table { points: POINTS, marks: MARKS };

/// Every point.
pub const POINTS: &[Point] = &[
    point("lanes: frames are written one by one", Slows),
    point("lanes: few calls at a time", Refuses),
    point("lanes: a pause before a request is handled", Slows),
    point("lanes: a pause before an answer is sent", Slows),
];

/// Every mark.
pub const MARKS: &[&str] = &[
    "lanes: a call failed before it was sent",
    "lanes: a call failed after it was sent",
    "lanes: a request was refused while it arrived",
    "lanes: a request that did not arrive was cut off",
    "lanes: a request's time was over before it had arrived",
    "lanes: a request waited for its turn",
    "lanes: a request waited in vain for its turn",
    "lanes: a large request was let in",
    "lanes: answers that were not taken were cut off",
    "budget: a request waited for room",
    "budget: a request was refused for want of room",
];
