//! A read meets a replica that has missed a write, answers right, and mends it.

use super::Named;
use crate::plan::Mechanisms;
use crate::scenario::{Broken, Ending, Quorum, Scenario, Stage};

pub(super) const STORY: Named = Named {
    name: "read-repair",
    about: "a read meets a stale replica, answers right all the same, and mends it",
    play,
};

/// All that heals but what the story is about is switched off, so that it is seen alone.
fn play() -> Ending {
    let alone = Mechanisms { fallbacks: false, hints: false, read_repair: true, anti_entropy: false };
    Scenario::new("a read mends a stale replica").mechanisms(alone).clients(&["alice", "bob"]).play(script)
}

async fn script(stage: Stage) -> Result<(), Broken> {
    let (alice, bob) = (stage.client("alice"), stage.client("bob"));
    let primaries = stage.primaries("news").await?;
    let cut_off = primaries[2].as_str();
    let old = alice.put("news", "old").w(Quorum::All).await.acknowledged()?;

    stage.say("One replica is cut off while the key is written. A majority takes the write.");
    stage.partition(&[cut_off]).await?;
    // Long enough that nobody still has something under way for it when the network heals.
    stage.wait_ms(15_000).await;
    alice.put("news", "new").after(&old).timeout_ms(4000).await.acknowledged()?;
    stage.heal().await?;
    stage.wait_ms(5000).await;
    let held = stage.on_disk(cut_off, "news")?;
    stage.demand(held == ["old"], &format!("{cut_off} should still hold the old value, it holds {held:?}"))?;

    stage.say(
        "It is back and knows nothing of it. Bob asks all three: the stale answer is seen, and the newer one wins.",
    );
    bob.get("news").r(Quorum::All).timeout_ms(4000).await.shows(&["new"])?;
    let mended = || stage.on_disk(cut_off, "news").is_ok_and(|held| held == ["new"]);
    stage.until(mended, &format!("{cut_off} was mended in the background")).await?;
    Ok(())
}
