//! A shopping cart that two devices change at once: nothing is lost, and the siblings are merged. Start a cluster first:
//! `quorate dev`.

#![allow(clippy::print_stdout, reason = "an example talks to whoever runs it")]

use std::collections::BTreeMap;

use quorate_client::{Blind, Client, Error, Read, Typed};
use serde::{Deserialize, Serialize};

/// How many of each article.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Cart {
    items: BTreeMap<String, u32>,
}

impl Cart {
    /// All that is in either cart: what was added on one device is never lost. (An article that was taken out on one of them
    /// comes back: a cart with removals would have to remember them.)
    fn merge(mut self, other: Self) -> Self {
        for (article, count) in other.items {
            let here = self.items.entry(article).or_default();
            *here = count.max(*here);
        }
        self
    }

    fn with(mut self, article: &str, count: u32) -> Self {
        *self.items.entry(article.to_owned()).or_default() += count;
        self
    }
}

const KEY: &str = "cart/ada";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let db = Client::from_dev()?.connect().await?;
    match db.delete(KEY, Blind).await {
        Ok(_) | Err(Error::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    db.put(KEY, Typed(Cart::default().with("tea", 1)), Blind).await?;

    // The telephone and the laptop both read the cart, and then each writes what it made of it.
    let (telephone, laptop) = (db.get(KEY).await?, db.get(KEY).await?);
    db.put(KEY, Typed(telephone.decode::<Cart>()?.with("milk", 2)), &telephone).await?;
    let written = db.put(KEY, Typed(laptop.decode::<Cart>()?.with("bread", 1)), &laptop).await?;
    println!("after both writes the key has {} siblings:", written.siblings());

    let read = db.get(KEY).await?;
    for cart in read.decode_all::<Cart>()? {
        println!("  {:?}", cart.items);
    }
    if let Err(error) = read.one() {
        println!("asking for the one value: {error}");
    }

    // Whoever knows how to merge them puts an end to it, by naming what it has seen.
    let merged = read.resolve(Cart::merge)?;
    println!("merged: {:?}", merged.items);
    db.put(KEY, Typed(merged), &read).await?;

    // `update` does all that: it reads, merges, changes and writes, again if somebody else was faster. The change is one
    // that does no harm if it has to be made again: to see to it that the article is there.
    let add = |article: &'static str| {
        db.update(KEY, move |read: &Read| {
            let mut cart = read.decode_all::<Cart>()?.into_iter().reduce(Cart::merge).unwrap_or_default();
            cart.items.entry(article.to_owned()).or_insert(1);
            Ok(Typed(cart))
        })
    };
    let (cheese, jam, rice) =
        tokio::join!(add("cheese").into_future(), add("jam").into_future(), add("rice").into_future());
    for updated in [cheese, jam, rice] {
        updated?;
    }
    let cart = db.get(KEY).await?.resolve(Cart::merge)?;
    println!("after three updates at once: {:?}", cart.items);
    assert_eq!(cart.items.len(), 6, "nothing is lost");
    db.close().await;
    Ok(())
}
