//! Questions that are in flight: a handful of futures, polled together within one task.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// At most N of them, so that polling all of them at each wake-up is cheaper than a task each; always in the order in which
/// they were asked, so that a simulation repeats.
pub(crate) struct Calls<T>(Vec<Pin<Box<dyn Future<Output = T> + Send>>>);

impl<T> Calls<T> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn push(&mut self, call: impl Future<Output = T> + Send + 'static) {
        self.0.push(Box::pin(call));
    }

    /// The next one that ends; nothing if there are none. Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Option<T> {
        poll_fn(|cx| {
            if self.0.is_empty() {
                return Poll::Ready(None);
            }
            for index in 0..self.0.len() {
                if let Poll::Ready(answer) = self.0[index].as_mut().poll(cx) {
                    drop(self.0.remove(index));
                    return Poll::Ready(Some(answer));
                }
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn calls_run_beside_each_other_and_end_in_the_order_of_their_answers() {
        let start = tokio::time::Instant::now();
        let mut calls = Calls::new();
        for (name, ms) in [("slow", 30), ("fast", 10), ("ready", 0)] {
            calls.push(async move {
                if ms > 0 {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                }
                name
            });
        }
        let mut ended = Vec::new();
        while let Some(name) = calls.next().await {
            ended.push(name);
        }
        assert_eq!(ended, ["ready", "fast", "slow"]);
        assert_eq!(start.elapsed(), Duration::from_millis(30));
    }
}
