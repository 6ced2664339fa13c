//! Replies at once if the result is ready; otherwise a task replies later, which holds no thread of the kernel's.

use std::future::Future;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use chunkstore::{Error, Result};
use tokio::runtime::Handle;

/// Does `work` and calls `reply` with what came of it: here if that is known at once, otherwise on the runtime, and
/// after `limit` with an error.
pub(crate) fn answer<T: Send + 'static>(
    runtime: &Handle,
    limit: Option<Duration>,
    work: impl Future<Output = Result<T>> + Send + 'static,
    reply: impl FnOnce(Result<T>) + Send + 'static,
) {
    let mut work = Box::pin(work);
    let entered = runtime.enter();
    // This waker does nothing: a task polls again, with its own.
    let first = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    drop(entered);
    match first {
        Poll::Ready(result) => reply(result),
        Poll::Pending => drop(runtime.spawn(async move { reply(within(limit, work).await) })),
    }
}

async fn within<T>(limit: Option<Duration>, work: impl Future<Output = Result<T>>) -> Result<T> {
    let Some(limit) = limit else { return work.await };
    let done = tokio::time::timeout(limit, work).await;
    done.unwrap_or_else(|_| Err(Error::unreachable(format!("no answer within {} seconds", limit.as_secs()))))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use tokio::runtime::Runtime;

    use super::*;

    #[test]
    fn what_is_known_is_answered_on_the_calling_thread() {
        let runtime = Runtime::new().unwrap();
        let (tell, told) = mpsc::channel();
        answer(runtime.handle(), None, async { Ok(7) }, move |result| {
            tell.send((result.unwrap(), thread::current().id())).unwrap();
        });
        assert_eq!(told.recv().unwrap(), (7, thread::current().id()));
    }

    #[test]
    fn what_has_to_wait_is_answered_elsewhere() {
        let runtime = Runtime::new().unwrap();
        let (tell, told) = mpsc::channel();
        let (open, gate) = tokio::sync::oneshot::channel::<u8>();
        answer(runtime.handle(), None, async { Ok(gate.await.unwrap()) }, move |result| {
            tell.send((result.unwrap(), thread::current().id())).unwrap();
        });
        open.send(9).unwrap();
        let (value, thread) = told.recv().unwrap();
        assert_eq!(value, 9);
        assert_ne!(thread, thread::current().id());
    }

    #[test]
    fn what_never_comes_is_an_error_in_the_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let waited = runtime.block_on(within(Some(Duration::from_mins(2)), std::future::pending::<Result<u8>>()));
        assert!(matches!(waited, Err(Error::Unreachable { .. })));
    }
}
