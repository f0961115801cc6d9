//! When every owner of a key is gone: a sloppy write is taken all the same, a strict one is refused, and neither lies about it.

use super::Named;
use crate::scenario::{Broken, Ending, Quorum, Scenario, Stage};

pub(super) const STORY: Named = Named {
    name: "sloppy-or-strict",
    about: "all owners of a key are down: sloppy writes succeed and say so, strict ones are refused; nothing is lost",
    play,
};

fn play() -> Ending {
    Scenario::new("all owners of a key are down").nodes(6).clients(&["alice", "bob"]).play(script)
}

async fn script(stage: Stage) -> Result<(), Broken> {
    let (alice, bob) = (stage.client("alice"), stage.client("bob"));
    let primaries = stage.primaries("cart").await?;
    let owners: Vec<&str> = primaries.iter().map(String::as_str).collect();
    let milk = alice.put("cart", "milk").w(Quorum::All).await.acknowledged()?;

    stage.say("All three owners of the key lose their power at once, and the others notice.");
    stage.power_cut(&owners).await?;
    stage.wait_ms(20_000).await;

    stage.say(
        "Both look at the cart first, which tells them that the owners are gone: nobody else can say what is in it.",
    );
    alice.get("cart").timeout_ms(8000).await.failed()?;
    bob.get("cart").timeout_ms(8000).await.failed()?;

    stage.say("Bob insists on owners. Nobody can give him that: his write is refused, and certainly not applied.");
    bob.put("cart", "bob's").after(&milk).strict().timeout_ms(4000).await.refused()?;

    stage.say(
        "Alice does not. Two of the other nodes keep her write for the owners, and the reply says that they stood in.",
    );
    let bread = alice.put("cart", "milk, bread").after(&milk).timeout_ms(4000).await.acknowledged()?;
    stage.demand(bread.is_degraded(), "the reply says that somebody stood in")?;

    stage.say("A read finds what they keep: it has seen no owner, and says so as well.");
    alice.get("cart").timeout_ms(4000).await.shows(&["milk, bread"])?;

    stage.say("The owners come back with the old cart, and get the new one handed over. It replaces what Alice had seen, no more.");
    for owner in &owners {
        stage.start(owner).await?;
    }
    for owner in &owners {
        let delivered = || stage.on_disk(owner, "cart").is_ok_and(|held| held == ["milk, bread"]);
        stage.until(delivered, &format!("{owner} has the new cart")).await?;
    }
    bob.get("cart").r(Quorum::All).strict().timeout_ms(4000).await.shows(&["milk, bread"])?;
    Ok(())
}
