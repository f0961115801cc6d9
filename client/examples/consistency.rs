//! What R + W <= N can do to you: reads that miss a write which was acknowledged before they began. Start a cluster first:
//! `quorate dev`.
//!
//! Two clients take turns: one writes a number and waits until it is acknowledged, then the other reads it. Once with one
//! replica each (R + W = 2, N = 3), where a read may ask a replica that the write has not reached yet; once with majorities
//! (R + W = 4), where every read overlaps every write.

#![allow(clippy::print_stdout, reason = "an example talks to whoever runs it")]

use quorate_client::{Blind, Cause, Client, Error, Profile, Typed};

const ROUNDS: u64 = 2000;

#[tokio::main]
async fn main() -> Result<(), Error> {
    for (profile, promise) in [
        (Profile::Fast, "R = W = One: eventual, a read may miss a write for a while"),
        (Profile::Balanced, "R = W = Majority: a read sees what was acknowledged, unless it says `degraded`"),
        (Profile::Safe, "the same, strict: it always does, or it fails"),
    ] {
        let writer = Client::from_dev()?.profile(profile).connect().await?;
        let reader = Client::from_dev()?.profile(profile).connect().await?;
        let (stale, degraded) = take_turns(&writer, &reader, &format!("consistency/{profile}")).await?;
        println!("{promise}");
        println!("  {stale} of {ROUNDS} reads missed the write before them, {degraded} replies were degraded");
    }
    Ok(())
}

/// How many reads missed the write before them, and how many replies were flagged.
async fn take_turns(writer: &Client, reader: &Client, key: &str) -> Result<(u64, u64), Error> {
    let (mut stale, mut degraded) = (0, 0);
    // What an earlier run left is replaced by the first write.
    let mut cause = match writer.get(key).await {
        Ok(read) => Cause::from(read),
        Err(Error::NotFound { .. }) => Cause::from(Blind),
        Err(error) => return Err(error),
    };
    for round in 0..ROUNDS {
        let written = writer.put(key, Typed(round), cause).await?;
        let read = reader.get(key).allow_absent().await?;
        let fresh = read.decode_all::<u64>()?.contains(&round);
        stale += u64::from(!fresh);
        degraded += u64::from(written.quorum().degraded) + u64::from(read.quorum().degraded);
        cause = Cause::from(written);
    }
    Ok((stale, degraded))
}
