//! A scenario of one's own: two people book the last seat at the same moment, on both sides of nothing but bad luck.
//!
//!     cargo run -p quorate-sim --example last_seat

use std::io::{self, Write};

use quorate_sim::scenario::{Broken, Ending, Quorum, Scenario, Stage};

async fn script(stage: Stage) -> Result<(), Broken> {
    let (alice, bob) = (stage.client("alice"), stage.client("bob"));
    stage.say("One seat is left, and both have seen it.");
    alice.put("seat", "free").w(Quorum::All).await.acknowledged()?;
    let (seen_by_alice, seen_by_bob) =
        (alice.get("seat").await.shows(&["free"])?, bob.get("seat").await.shows(&["free"])?);

    stage.say("Both book it at the same time. No write knows of the other, so both are kept.");
    let alices = alice.put("seat", "alice").after(&seen_by_alice).start();
    let bobs = bob.put("seat", "bob").after(&seen_by_bob).start();
    alices.await.acknowledged()?;
    bobs.await.acknowledged()?;

    stage.say(
        "A store in which the last writer wins would have lost one of them. Here the conflict can be seen and settled.",
    );
    let both = alice.get("seat").r(Quorum::All).await.shows(&["alice", "bob"])?;
    alice.put("seat", "alice").after(&both).w(Quorum::All).await.acknowledged()?;
    bob.get("seat").await.shows(&["alice"])?;
    Ok(())
}

/// The whole of it: five nodes, two clients, and the script.
pub fn play() -> Ending {
    Scenario::new("two people book the last seat").nodes(5).clients(&["alice", "bob"]).play(script)
}

fn main() -> io::Result<()> {
    let ending = play();
    writeln!(io::stdout(), "{ending}")?;
    if ending.is_good() { Ok(()) } else { Err(io::Error::other("it did not go as the script says")) }
}
