//! A value is written, read, replaced and deleted. Start a cluster first: `quorate dev`.

#![allow(clippy::print_stdout, reason = "an example talks to whoever runs it")]

use quorate_client::{Blind, Client, Error, Quorum};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let db = Client::from_dev()?.connect().await?;
    println!("connected to {} nodes", db.nodes().len());

    // Whatever an earlier run left.
    match db.delete("hello", Blind).await {
        Ok(deleted) => println!("deleted {} old values", deleted.replaced()),
        Err(Error::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }

    let written = db.put("hello", "world", Blind).await?;
    println!(
        "written: {} primaries hold it durably, {} were needed",
        written.quorum().acks.primary,
        written.quorum().need
    );

    let read = db.get("hello").r(Quorum::All).explain().await?;
    println!("read: {:?}", read.one()?);
    if let Some(evidence) = read.evidence() {
        for asked in &evidence.asked {
            println!("  {} answered {:?} after {} us", asked.node, asked.said, asked.answered_us.unwrap_or_default());
        }
    }

    // The read is the cause of what follows from it: exactly what it saw is replaced.
    let written = db.put("hello", "everybody", &read).await?;
    println!("replaced {} value, {} is there now", written.replaced(), written.siblings());

    db.delete("hello", &written).await?;
    match db.get("hello").await {
        Err(Error::NotFound { .. }) => println!("deleted"),
        other => println!("somebody else writes to this key: {other:?}"),
    }
    db.close().await;
    Ok(())
}
