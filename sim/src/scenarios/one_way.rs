//! A link that is dead in one direction: writes arrive, their acknowledgements do not.

use super::Named;
use crate::scenario::{Broken, Ending, Quorum, Scenario, Stage};

pub(super) const STORY: Named = Named {
    name: "one-way-partition",
    about: "a write arrives, its acknowledgement does not: 'unknown' is not 'failed'",
    play,
};

fn play() -> Ending {
    Scenario::new("a link that is dead in one direction").clients(&["alice"]).latency_ms(5).play(script)
}

async fn script(stage: Stage) -> Result<(), Broken> {
    let alice = stage.client("alice");
    let primaries = stage.primaries("account").await?;
    let (coordinator, other) = (primaries[0].as_str(), primaries[1].as_str());
    alice.put("account", "100").w(Quorum::All).await.acknowledged()?;

    stage.say("The coordinator no longer hears one of the other replicas. That one still hears the coordinator.");
    stage.one_way(other, coordinator).await?;

    stage.say(
        "Alice asks for all three replicas. The record reaches all of them, but only two acknowledgements come back.",
    );
    let balance = alice.get("account").r(Quorum::One).await.shows(&["100"])?;
    let paid = alice.put("account", "90").after(&balance).w(Quorum::All).await.unknown()?;
    let held = stage.on_disk(other, "account")?;
    stage.demand(held == ["90"], &format!("{other} should hold 90, it holds {held:?}"))?;

    stage.say("Whoever takes 'unknown' for 'failed' and pays again, pays twice. A majority is enough to see that it was done.");
    alice.get("account").timeout_ms(3000).await.shows(&["90"])?;

    stage.say(
        "When the link works again, the same operation is repeated with its id. It is acknowledged, and done once.",
    );
    stage.heal().await?;
    stage.wait_ms(4000).await;
    let again = paid.again().timeout_ms(4000).await.acknowledged()?;
    stage.demand(again.siblings() == 1, "the repeated write is one value")?;
    alice.get("account").r(Quorum::All).await.shows(&["90"])?;
    Ok(())
}
