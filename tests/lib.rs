//! Helpers that the scenario and end-to-end tests share.

#[path = "kill_nine_values.rs"]
pub mod kill_nine;
pub mod load;
pub mod processes;
