//! The node that coordinates a write dies in the middle of it. The client does not know - and can find out.

use super::Named;
use crate::scenario::{Broken, Ending, Quorum, Scenario, Stage};

pub(super) const STORY: Named = Named {
    name: "coordinator-dies",
    about: "a coordinator is killed in the middle of a write: unknown, then retried with the same operation id",
    play,
};

fn play() -> Ending {
    Scenario::new("a coordinator is killed in the middle of a write").clients(&["alice"]).latency_ms(20).play(script)
}

async fn script(stage: Stage) -> Result<(), Broken> {
    let alice = stage.client("alice");
    let primaries = stage.primaries("order").await?;
    let coordinator = primaries[0].as_str();
    alice.put("order", "open").w(Quorum::All).await.acknowledged()?;
    let open = alice.get("order").await.shows(&["open"])?;

    stage.say("Alice pays. A packet takes 20 ms: after 30 ms the coordinator has minted the write, and dies.");
    let paying = alice.put("order", "paid").after(&open).start();
    stage.wait_ms(30).await;
    stage.crash(coordinator).await?;

    stage.say(
        "Alice waits for the one who knows. Nobody may answer in its place: her time runs out, the outcome is unknown.",
    );
    let paid = paying.await.unknown()?;

    stage
        .say("The others may have got the record or not. Here they have: it was on its way when the coordinator died.");
    let seen = alice.get("order").timeout_ms(4000).await.shows(&["paid"])?;

    stage.say(
        "The coordinator is back. Alice repeats the same operation with its id: it is recognised, not done twice.",
    );
    stage.start(coordinator).await?;
    stage.wait_ms(3000).await;
    let again = paid.again().timeout_ms(4000).await.acknowledged()?;
    stage.demand(again.siblings() == 1, "the repeated write is one value")?;
    alice.get("order").r(Quorum::All).await.shows(&["paid"])?;

    stage.say("A new write with the same text would have been another one. This one knows what it replaces.");
    alice.put("order", "shipped").after(&seen).await.acknowledged()?;
    alice.get("order").r(Quorum::All).await.shows(&["shipped"])?;
    Ok(())
}
