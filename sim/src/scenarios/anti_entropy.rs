//! A replica that has missed a write gets it although nobody reads the key, by comparing hash trees.

use super::Named;
use crate::plan::Mechanisms;
use crate::scenario::{Broken, Ending, Quorum, Scenario, Stage};

pub(super) const STORY: Named = Named {
    name: "anti-entropy",
    about: "replicas compare their hash trees and exchange what differs, though nobody reads or writes",
    play,
};

/// All that heals but what the story is about is switched off, so that it is seen alone.
fn play() -> Ending {
    let alone = Mechanisms { fallbacks: false, hints: false, read_repair: false, anti_entropy: true };
    Scenario::new("replicas compare notes").mechanisms(alone).clients(&["alice"]).play(script)
}

async fn script(stage: Stage) -> Result<(), Broken> {
    let alice = stage.client("alice");
    let primaries = stage.primaries("ledger").await?;
    let cut_off = primaries[2].as_str();
    let old = alice.put("ledger", "page 1").w(Quorum::All).await.acknowledged()?;

    stage.say("One replica is cut off while the key is written.");
    stage.partition(&[cut_off]).await?;
    // Long enough that nobody still has something under way for it when the network heals.
    stage.wait_ms(15_000).await;
    alice.put("ledger", "page 2").after(&old).timeout_ms(4000).await.acknowledged()?;
    let held = stage.on_disk(cut_off, "ledger")?;
    stage.demand(held == ["page 1"], &format!("{cut_off} should still hold page 1, it holds {held:?}"))?;

    stage.say(
        "The network heals, and no client does anything. The owners of a partition compare hash trees now and then.",
    );
    stage.heal().await?;
    let exchanged = || stage.on_disk(cut_off, "ledger").is_ok_and(|held| held == ["page 2"]);
    stage.until(exchanged, &format!("{cut_off} has got what it had missed")).await?;
    stage.say("All three hold the same again.");
    alice.get("ledger").r(Quorum::All).strict().await.shows(&["page 2"])?;
    Ok(())
}
