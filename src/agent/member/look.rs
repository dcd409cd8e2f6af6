//! A look at the API server that a member's turn does not wait for.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

/// One look at a time, and not more often than is asked for.
#[derive(Debug)]
pub(super) struct Look<T> {
    began: Option<Instant>,
    task: Option<JoinHandle<T>>,
}

// === impl Look ===

impl<T> Default for Look<T> {
    fn default() -> Self {
        Self { began: None, task: None }
    }
}

impl<T: Send + 'static> Look<T> {
    /// What was seen, once.
    pub(super) async fn seen(&mut self) -> Option<T> {
        self.task.take_if(|task| task.is_finished())?.await.ok()
    }

    /// The last look has ended, and began so long ago.
    pub(super) fn is_due(&self, every: Duration) -> bool {
        self.task.is_none() && self.began.is_none_or(|at| at.elapsed() >= every)
    }

    /// Looks.
    pub(super) fn begin(&mut self, look: impl Future<Output = T> + Send + 'static) {
        self.began = Some(Instant::now());
        self.task = Some(tokio::spawn(look));
    }
}
