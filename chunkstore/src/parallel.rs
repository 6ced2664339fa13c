//! Running the same work on several threads.

use std::thread;

use crate::error::{Error, Result};

/// Runs `work` on `threads` threads and returns what each made.
///
/// # Errors
/// The first that is not [`Error::Interrupted`], if any is: threads that stop because another failed say that.
pub(crate) fn run<T: Send>(threads: usize, work: impl Fn() -> Result<T> + Sync) -> Result<Vec<T>> {
    let results: Vec<Result<T>> = thread::scope(|scope| {
        let handles: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(&work)).collect();
        handles.into_iter().map(|handle| handle.join().expect("a worker does not panic")).collect()
    });
    let mut made = Vec::with_capacity(results.len());
    let mut interrupted = None;
    for result in results {
        match result {
            Ok(one) => made.push(one),
            Err(Error::Interrupted) => interrupted = Some(Error::Interrupted),
            Err(error) => return Err(error),
        }
    }
    interrupted.map_or(Ok(made), Err)
}
