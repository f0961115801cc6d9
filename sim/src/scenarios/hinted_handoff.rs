//! A healthy node stands in for one that is down, and hands over what it was given when that one is back.

use super::Named;
use crate::scenario::{Broken, Ending, Quorum, Scenario, Stage};

pub(super) const STORY: Named = Named {
    name: "hinted-handoff",
    about: "a healthy node stands in for a dead one; strict requests refuse that, and say so",
    play,
};

fn play() -> Ending {
    Scenario::new("a node stands in for a dead one").nodes(5).clients(&["alice", "bob"]).play(script)
}

async fn script(stage: Stage) -> Result<(), Broken> {
    let (alice, bob) = (stage.client("alice"), stage.client("bob"));
    let primaries = stage.primaries("profile").await?;
    let dead = primaries[1].as_str();
    let old = alice.put("profile", "old").w(Quorum::All).await.acknowledged()?;

    stage.say("One of the three primaries of the key dies, and the others notice.");
    stage.crash(dead).await?;
    stage.wait_ms(15_000).await;

    stage.say("Alice asks for all three and for nobody else: a strict read fails, because there are only two.");
    alice.get("profile").r(Quorum::All).strict().timeout_ms(4000).await.failed()?;

    stage.say(
        "A write that is not strict finds a third: a node that is none of them stands in. The reply does not hide it: it is flagged degraded.",
    );
    let new = alice.put("profile", "new").after(&old).w(Quorum::All).timeout_ms(4000).await.acknowledged()?;
    stage.demand(new.is_degraded(), "the reply says that somebody stood in")?;
    bob.get("profile").timeout_ms(4000).await.shows(&["new"])?;

    stage.say("The dead node comes back, with its old value. Whoever stood in for it hands over what it was given.");
    let held = stage.on_disk(dead, "profile")?;
    stage.demand(held == ["old"], &format!("{dead} should still hold the old value, it holds {held:?}"))?;
    stage.start(dead).await?;
    let delivered = || stage.on_disk(dead, "profile").is_ok_and(|held| held == ["new"]);
    stage.until(delivered, &format!("{dead} has got what it had missed, though nobody read or wrote the key")).await?;
    bob.get("profile").r(Quorum::All).strict().timeout_ms(4000).await.shows(&["new"])?;
    Ok(())
}
