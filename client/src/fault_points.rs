//! The points at which a simulation may interfere with the client, and the states that it has to reach.

use quorate_wire::fault_points::Effect::{Refuses, Slows};
use quorate_wire::fault_points::{Point, Table, point};

/// Both tables, for simulations.
pub static TABLE: Table = Table { points: POINTS, marks: MARKS };

/// Every point.
pub const POINTS: &[Point] = &[
    point("client: acknowledged writes are sent again", Slows),
    point("client: writes go to any primary first", Slows),
    point("client: somebody who is no primary is asked first", Slows),
    point("client: an attempt's time is cut short", Refuses),
    point("client: the connection is closed after an answer", Refuses),
    point("client: a pause before a dial", Slows),
];

/// Every mark.
pub const MARKS: &[&str] = &[
    "client: an unknown write was acknowledged by a retry",
    "client: an unknown write was repeated where it had gone",
    "client: a request went to a second node",
    "client: a write ended indeterminate",
    "client: the budget for retries was empty",
    "client: a newer route table came with an answer",
    "client: a member has moved",
    "client: a node that had refused is asked after the others",
    "client: a silent connection was given up",
    "update: siblings were merged in another round",
];
