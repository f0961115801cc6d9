//! A new release is rolled out: one node after the other is stopped and started, and nobody notices.

use super::Named;
use crate::scenario::{Broken, Ending, Scenario, Stage};

pub(super) const STORY: Named = Named {
    name: "rolling-restart",
    about: "nodes are restarted one by one while clients go on; every request succeeds",
    play,
};

fn play() -> Ending {
    Scenario::new("five nodes are restarted, one after the other").nodes(5).clients(&["alice"]).play(script)
}

async fn script(stage: Stage) -> Result<(), Broken> {
    let alice = stage.client("alice");
    let mut counted = alice.put("visits", "0").await.acknowledged()?;
    let mut visits = 0;
    for node in ["n1", "n2", "n3", "n4", "n5"] {
        stage.say(&format!("{node} is stopped. Two of the three replicas of a key are enough for majorities."));
        stage.stop(node).await?;
        for _ in 0..2 {
            visits += 1;
            counted = alice.put("visits", &visits.to_string()).after(&counted).timeout_ms(3000).await.acknowledged()?;
            alice.get("visits").timeout_ms(3000).await.shows(&[&visits.to_string()])?;
        }
        stage.start(node).await?;
        // The others reach it again.
        stage.wait_ms(3000).await;
    }
    stage.say("No request failed, and no visit was lost.");
    alice.get("visits").await.shows(&["10"])?;
    Ok(())
}
