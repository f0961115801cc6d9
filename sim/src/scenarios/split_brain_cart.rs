//! The shopping cart of the Dynamo paper: both sides of a partition take writes, and nothing is lost when it heals.

use super::Named;
use crate::scenario::{Broken, Ending, Quorum, Scenario, Stage};

pub(super) const STORY: Named = Named {
    name: "split-brain-cart",
    about: "both sides of a partition take writes; the reader sees both and merges them",
    play,
};

fn play() -> Ending {
    Scenario::new("a cart that is filled on both sides of a partition").clients(&["alice", "bob"]).play(script)
}

async fn script(stage: Stage) -> Result<(), Broken> {
    let (alice, bob) = (stage.client("alice"), stage.client("bob"));

    stage.say("Alice begins a cart. All three nodes keep it.");
    let begun = alice.put("cart", "milk").w(Quorum::All).await.acknowledged()?;

    stage.say("The network breaks in two, with Alice and n1 on one side, Bob and the others on the other one.");
    stage.partition(&["n1", "alice"]).await?;

    stage.say("Both go on shopping. W = 1 asks for one replica, and each side has one, so both writes are taken.");
    alice.put("cart", "milk, eggs").after(&begun).w(Quorum::One).timeout_ms(4000).await.acknowledged()?;
    let seen = bob.get("cart").r(Quorum::One).timeout_ms(4000).await.shows(&["milk"])?;
    bob.put("cart", "milk, bread").after(&seen).w(Quorum::One).timeout_ms(4000).await.acknowledged()?;

    stage.say("The network heals. Neither write knew of the other, so neither replaces it: they stand as siblings.");
    stage.heal().await?;
    stage.wait_ms(4000).await;
    let both = bob.get("cart").r(Quorum::All).await.shows(&["milk, bread", "milk, eggs"])?;

    stage.say("Bob merges them, as the application knows how, and says what he has seen: his write replaces both.");
    bob.put("cart", "milk, bread, eggs").after(&both).w(Quorum::All).await.acknowledged()?;
    alice.get("cart").r(Quorum::One).await.shows(&["milk, bread, eggs"])?;
    Ok(())
}
