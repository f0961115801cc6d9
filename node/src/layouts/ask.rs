//! Asking many peers the same.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::ControlFlow;
use std::time::Duration;

use quorate_wire::NotApplied;
use quorate_wire::ids::NodeId;
use quorate_wire::random::Random;
use tokio::task::JoinSet;

use super::PEER_TIMEOUT;
use crate::peer_wire::Ask;
use crate::peers::{AskError, Peers};
use crate::supervise;

/// How many peers are asked at once: bounds what one round costs this node, and a round over all 1,000 members to half a minute.
const PEERS_AT_ONCE: usize = 64;

/// Asks many peers the same, [`PEERS_AT_ONCE`] at a time; the answers are in the order of the nodes.
pub(super) async fn ask<Q>(peers: &Peers, random: &Random, nodes: &[NodeId], question: &Q) -> Vec<(NodeId, Answer<Q>)>
where
    Q: Ask<Answer: Send> + Clone + Send + 'static,
{
    ask_within(peers, random, nodes, question, PEER_TIMEOUT).await
}

pub(super) async fn ask_within<Q>(
    peers: &Peers,
    random: &Random,
    nodes: &[NodeId],
    question: &Q,
    timeout: Duration,
) -> Vec<(NodeId, Answer<Q>)>
where
    Q: Ask<Answer: Send> + Clone + Send + 'static,
{
    in_batches(nodes, |node| {
        let (peers, request_id, question) = (peers.clone(), random.u64(), question.clone());
        async move { peers.ask(node, request_id, question, timeout).await }
    })
    .await
}

/// Asks many peers the same, and hands on each answer as it comes, until somebody has heard enough.
pub(super) async fn ask_until<Q, B>(
    peers: &Peers,
    random: &Random,
    nodes: &[NodeId],
    question: &Q,
    timeout: Duration,
    mut hear: impl FnMut(NodeId, Answer<Q>) -> ControlFlow<B>,
) -> Option<B>
where
    Q: Ask<Answer: Send> + Clone + Send + 'static,
{
    for batch in nodes.chunks(PEERS_AT_ONCE) {
        let mut calls = JoinSet::new();
        for node in batch.iter().copied() {
            let (peers, request_id, question) = (peers.clone(), random.u64(), question.clone());
            let call = async move { (node, peers.ask(node, request_id, question, timeout).await) };
            calls.spawn(supervise::watched("layouts: a call", call));
        }
        while let Some(done) = calls.join_next().await {
            let (node, answer) = done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            if let ControlFlow::Break(enough) = hear(node, answer) {
                return Some(enough);
            }
        }
    }
    None
}

pub(super) type Answer<Q> = Result<<Q as Ask>::Answer, AskError>;

async fn in_batches<F>(nodes: &[NodeId], call: impl Fn(NodeId) -> F) -> Vec<(NodeId, F::Output)>
where
    F: Future<Output: Send> + Send + 'static,
{
    let mut answers = BTreeMap::new();
    for batch in nodes.chunks(PEERS_AT_ONCE) {
        let mut calls = JoinSet::new();
        for node in batch.iter().copied() {
            let call = call(node);
            calls.spawn(supervise::watched("layouts: a call", async move { (node, call.await) }));
        }
        while let Some(done) = calls.join_next().await {
            // A panic in a call is this task's own.
            let (node, answer) = done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            answers.insert(node, answer);
        }
    }
    answers.into_iter().collect()
}

/// Why a peer did not do what it was asked, for people.
pub(super) fn reason(error: AskError) -> String {
    match error {
        AskError::Refused(NotApplied::Refused { why }) => why,
        AskError::Refused(other) => other.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_come_in_the_order_of_the_nodes_whoever_is_late() {
        let nodes: Vec<NodeId> = (0..9).map(|i| NodeId::new(&format!("n{i}")).expect("legal")).collect();
        let answers = in_batches(&nodes, |node| async move {
            if node == NodeId::new("n0").expect("legal") {
                tokio::task::yield_now().await;
            }
            Err::<(), _>(AskError::NotSent(node.to_string()))
        });
        let answers = answers.await;
        assert_eq!(answers.iter().map(|(node, _)| *node).collect::<Vec<_>>(), nodes);
        assert!(answers.iter().all(|(node, answer)| *answer == Err(AskError::NotSent(node.to_string()))));
    }
}
