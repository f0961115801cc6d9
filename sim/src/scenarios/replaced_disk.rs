//! A node comes back with an empty disk: it takes writes at once, and does not say "not found" of what it has lost.

use super::Named;
use crate::scenario::{Broken, Ending, Quorum, Scenario, Stage};

pub(super) const STORY: Named = Named {
    name: "replaced-disk",
    about: "a node with an empty disk takes writes, speaks of nothing that it may have lost, and is filled by the others",
    play,
};

fn play() -> Ending {
    Scenario::new("a disk is replaced").nodes(3).clients(&["alice", "bob"]).play(script)
}

async fn script(stage: Stage) -> Result<(), Broken> {
    let (alice, bob) = (stage.client("alice"), stage.client("bob"));
    for (key, value) in [("a", "1"), ("b", "2"), ("c", "3")] {
        alice.put(key, value).w(Quorum::All).await.acknowledged()?;
    }

    stage.say(
        "The disk of n3 dies, and n3 comes back with a new one. Its name is the old one, its disk is not: it recovers.",
    );
    stage.crash("n3").await?;
    stage.empty_disk("n3")?;
    stage.demand(stage.on_disk("n3", "a")?.is_empty(), "its disk is empty")?;
    stage.start("n3").await?;

    stage.say(
        "Whoever reads meanwhile is never told that there is nothing. n3 does not count until the others have told it.",
    );
    for (key, value) in [("a", "1"), ("b", "2"), ("c", "3")] {
        bob.get(key).timeout_ms(4000).await.shows(&[value])?;
    }
    for (key, value) in [("a", "1"), ("b", "2"), ("c", "3")] {
        let filled = || stage.on_disk("n3", key).is_ok_and(|held| held == [value]);
        stage.until(filled, &format!("n3 holds {key} again")).await?;
    }

    stage.say("Now it counts again: a read of all three is answered.");
    stage.wait_ms(5000).await;
    bob.get("b").r(Quorum::All).strict().timeout_ms(4000).await.shows(&["2"])?;
    Ok(())
}
