//! Every story that has a name comes out as it says, each time; and so does one of a user's own.

#[path = "../examples/last_seat.rs"]
#[allow(dead_code, unreachable_pub, reason = "it is a program of its own; its story is what is played here")]
mod last_seat;

use std::collections::BTreeSet;

use quorate_sim::explain::explain;
use quorate_sim::scenario::{Broken, Quorum, Scenario, Stage};
use quorate_sim::scenarios::{ALL, named};

#[test]
fn every_named_story_comes_out_as_it_says() {
    let names: BTreeSet<_> = ALL.iter().map(|story| story.name).collect();
    assert_eq!(names.len(), ALL.len(), "two stories have one name");
    for story in ALL {
        let ending = (story.play)();
        assert!(ending.is_good(), "{}:\n{ending}", story.name);
        assert!(ending.lines.len() > 8, "{} tells nothing:\n{ending}", story.name);
        assert!(story.about.len() < 110, "{} is more than a line", story.name);
    }
}

#[test]
fn a_story_is_told_in_the_same_words_each_time() {
    let story = named("split-brain-cart").expect("it is one of them");
    let (one, other) = ((story.play)(), (story.play)());
    assert_eq!(one.to_string(), other.to_string());
    assert_eq!(explain(&one.tale, "cart"), explain(&other.tale, "cart"));
    assert!(named("no-such-story").is_none());
}

#[test]
fn what_heals_without_a_request_is_told_with_both_its_ends() {
    for (name, key, what, told) in [
        ("hinted-handoff", "profile", "handoff", "hands over to n5 what it kept for it"),
        ("anti-entropy", "ledger", "exchange", "exchanges it with n"),
    ] {
        let ending = (named(name).expect("it is one of them").play)();
        let text = explain(&ending.tale, key);
        assert!(text.contains(told), "{told:?} is missing:\n{text}");
        let hops = ending.tale.hops(key);
        let mut arrived = hops.iter().filter(|hop| hop.what == what && hop.came && hop.arrived_us.is_some());
        assert!(arrived.any(|hop| hop.from != hop.to && !hop.refused), "{what} with both its ends:\n{hops:#?}");
    }
}

#[test]
fn the_example_works() {
    let ending = last_seat::play();
    assert!(ending.is_good(), "{ending}");
}

#[test]
fn what_does_not_come_as_demanded_is_told() {
    async fn wrong(stage: Stage) -> Result<(), Broken> {
        let alice = stage.client("alice");
        alice.put("key", "one").w(Quorum::All).await.acknowledged()?;
        alice.get("key").await.shows(&["two"])?;
        Ok(())
    }
    let ending = Scenario::new("a wrong demand").clients(&["alice"]).play(wrong);
    assert!(!ending.is_good());
    let broken = ending.broken.clone().expect("it was demanded in vain");
    assert!(broken.contains("should find \"two\"") && broken.contains("found \"one\""), "{broken}");
    assert!(ending.to_string().contains(&format!("BROKEN: {broken}")), "{ending}");
}

#[test]
fn strangers_and_impossible_demands_are_told() {
    type Told = (&'static str, fn(Stage) -> std::pin::Pin<Box<dyn Future<Output = Result<(), Broken>>>>);
    let told: [Told; 4] = [
        ("nobody is called \"n9\": there are alice, n1, n2, n3", |stage| {
            Box::pin(async move { stage.partition(&["n1", "n9"]).await })
        }),
        ("no node is called \"alice\"", |stage| Box::pin(async move { stage.crash("alice").await })),
        ("n1 runs: a disk is exchanged only", |stage| Box::pin(async move { stage.empty_disk("n1") })),
        ("no client is called \"carol\", only: alice", |stage| {
            Box::pin(async move {
                let _ = stage.client("carol");
                Ok(())
            })
        }),
    ];
    for (what, script) in told {
        let ending = Scenario::new("strangers").clients(&["alice"]).play(script);
        let broken = ending.broken.unwrap_or_default();
        assert!(broken.contains(what), "{what:?} is not in {broken:?}");
    }
}

#[test]
fn refused_and_unknown_are_not_the_same() {
    async fn script(stage: Stage) -> Result<(), Broken> {
        let alice = stage.client("alice");
        stage.power_cut(&["n1", "n2", "n3"]).await?;
        let wrote = alice.put("key", "one").await;
        let broken = wrote.acknowledged().expect_err("nobody is there");
        stage.demand(broken.0.contains("should be acknowledged"), "the text says what was wanted")
    }
    let ending = Scenario::new("nobody is there").clients(&["alice"]).play(script);
    assert!(ending.is_good(), "{ending}");
}
