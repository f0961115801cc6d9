//! What R = 1 and W = 1 can miss, and what a majority of both does instead.

use super::Named;
use crate::scenario::{Broken, Ending, Quorum, Scenario, Stage};

pub(super) const STORY: Named = Named {
    name: "one-is-enough",
    about: "with R = 1 and W = 1 an acknowledged write can be missed; majorities refuse rather than mislead",
    play,
};

fn play() -> Ending {
    Scenario::new("what R = 1 and W = 1 can miss").clients(&["alice", "bob"]).play(script)
}

async fn script(stage: Stage) -> Result<(), Broken> {
    let (alice, bob) = (stage.client("alice"), stage.client("bob"));
    let primaries = stage.primaries("stock").await?;
    let coordinator = primaries[0].as_str();
    stage.say("Alice and the node that coordinates her writes are cut off from Bob and the other two nodes.");
    stage.partition(&[coordinator, "alice"]).await?;
    // Until the nodes have noticed; before that, requests only take longer.
    stage.wait_ms(15_000).await;

    stage.say("Alice writes with W = 1. It is acknowledged, and it is durable: on one disk.");
    alice.put("stock", "7").w(Quorum::One).await.acknowledged()?;

    stage.say(
        "Bob reads with R = 1 and finds nothing. R + W = 2 is not above N = 3: the two need not meet in any replica.",
    );
    bob.get("stock").r(Quorum::One).timeout_ms(4000).await.shows(&[])?;

    stage
        .say("With majorities that cannot be: on Alice's side there is none, and she is told so, reading and writing.");
    alice.get("stock").timeout_ms(4000).await.failed()?;
    alice.put("stock", "6").await.refused()?;
    stage.say("Bob's side has one, and goes on.");
    bob.put("stock", "8").await.acknowledged()?;
    bob.get("stock").await.shows(&["8"])?;

    stage.say("After the partition everything that was acknowledged is there, and nothing that was refused.");
    stage.heal().await?;
    stage.wait_ms(4000).await;
    bob.get("stock").r(Quorum::All).await.shows(&["7", "8"])?;
    Ok(())
}
