//! The power fails: first for a minority, then for everybody. What was acknowledged was on disks before.

use super::Named;
use crate::scenario::{Broken, Ending, Scenario, Stage};

pub(super) const STORY: Named = Named {
    name: "power-cut",
    about: "a minority loses power, then all nodes do: every acknowledged write is there afterwards",
    play,
};

fn play() -> Ending {
    Scenario::new("the power fails").clients(&["alice", "bob"]).play(script)
}

async fn script(stage: Stage) -> Result<(), Broken> {
    let (alice, bob) = (stage.client("alice"), stage.client("bob"));
    let primaries = stage.primaries("order").await?;
    let coordinator = primaries[0].as_str();

    stage.say("Alice places an order. It is acknowledged when two disks have synced it.");
    alice.put("order", "placed").await.acknowledged()?;

    stage.say("A minority loses power: one node, the very one that coordinated the write.");
    stage.power_cut(&[coordinator]).await?;
    stage.say("Two of three are a majority. The order is there, and it can be changed.");
    let placed = bob.get("order").timeout_ms(4000).await.shows(&["placed"])?;
    let paid = bob.put("order", "paid").after(&placed).timeout_ms(4000).await.acknowledged()?;

    stage.say(
        "The node comes back. A majority of any kind knows the newest state, whatever the node itself has missed.",
    );
    stage.start(coordinator).await?;
    stage.wait_ms(3000).await;
    alice.get("order").timeout_ms(4000).await.shows(&["paid"])?;

    stage.say("Now the power fails for everybody. Nothing is acknowledged while nobody is there.");
    stage.power_cut(&["n1", "n2", "n3"]).await?;
    bob.get("order").await.failed()?;

    stage.say("The power is back. Nodes forget what they had not synced; nothing of that was ever acknowledged.");
    for node in ["n1", "n2", "n3"] {
        stage.start(node).await?;
    }
    stage.wait_ms(3000).await;
    alice.get("order").timeout_ms(4000).await.shows(&["paid"])?;
    bob.put("order", "shipped").after(&paid).timeout_ms(4000).await.acknowledged()?;
    alice.get("order").await.shows(&["shipped"])?;
    Ok(())
}
