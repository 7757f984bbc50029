//! [`Patience`]: how long a peer may dawdle, in either direction. [`PatientWriter`] bounds the way out of a
//! connection; [`receive`](super::receive) bounds the way in. hyper itself bounds how long a request's head takes.
//!
//! Waiting for the peer uses patience up and every byte that moves earns some back, so one budget bounds silence
//! *and* trickle: nothing at all is borne for the whole of it, a byte a minute for hardly longer, and whoever is
//! as fast as [`BYTES_PER_SECOND_MIN`] is never cut off. Time that the server itself takes does not count.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::time::{Instant, Sleep};

use super::limits::BYTES_PER_SECOND_MIN;

/// How much waiting is left.
#[derive(Clone, Copy, Debug)]
struct Budget {
    most: Duration,
    left: Duration,
}

impl Budget {
    fn spend(&mut self, waited: Duration) {
        self.left = self.left.saturating_sub(waited);
    }

    fn earn(&mut self, bytes: usize) {
        let earned = bytes as f64 / BYTES_PER_SECOND_MIN as f64;
        self.left = self.left.saturating_add(Duration::from_secs_f64(earned)).min(self.most);
    }
}

/// What is left of the patience with one direction of one connection.
#[derive(Debug)]
pub(super) struct Patience {
    budget: Budget,
    /// Since when the peer is waited for, and the end of that.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Patience {
    /// Bears `most` of waiting, and again whenever enough bytes have moved.
    pub(super) fn new(most: Duration) -> Patience {
        Patience { budget: Budget { most, left: most }, waiting: None }
    }

    /// `bytes` moved, and nobody is waited for any more.
    pub(super) fn moved(&mut self, bytes: usize) {
        if let Some((since, _)) = self.waiting.take() {
            self.budget.spend(since.elapsed());
        }
        self.budget.earn(bytes);
    }

    /// The peer is waited for; ready when that has been borne long enough.
    pub(super) fn poll_spent(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let begin = || (Instant::now(), Box::pin(tokio::time::sleep(self.budget.left)));
        self.waiting.get_or_insert_with(begin).1.as_mut().poll(context)
    }
}

/// An I/O object whose writes fail when the patience with its reader is spent.
pub(super) struct PatientWriter<T> {
    inner: T,
    patience: Patience,
}

impl<T> PatientWriter<T> {
    pub(super) fn new(inner: T, most: Duration) -> PatientWriter<T> {
        PatientWriter { inner, patience: Patience::new(most) }
    }

    /// Passes `result` on, unless it is one `Pending` too many. `bytes` tells how many a success has moved.
    fn watch<R>(
        &mut self,
        context: &mut Context<'_>,
        result: Poll<io::Result<R>>,
        bytes: impl FnOnce(&R) -> usize,
    ) -> Poll<io::Result<R>> {
        match result {
            Poll::Ready(done) => {
                self.patience.moved(done.as_ref().map_or(0, bytes));
                Poll::Ready(done)
            }
            Poll::Pending => self
                .patience
                .poll_spent(context)
                .map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the client stopped reading"))),
        }
    }
}

impl<T: Read + Unpin> Read for PatientWriter<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: Write + Unpin> Write for PatientWriter<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.watch(context, result, |&written| written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(context);
        self.watch(context, result, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_shutdown(context);
        self.watch(context, result, |()| 0)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(context, buffers);
        self.watch(context, result, |&written| written)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// A peer that reads nothing, or one byte whenever it is waited for `pause`.
    struct Reader {
        pause: Option<Duration>,
        waiting: Option<Pin<Box<Sleep>>>,
    }

    impl Write for Reader {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            let Some(pause) = self.pause else { return Poll::Pending };
            let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
            let waited = waiting.as_mut().poll(context);
            if waited.is_ready() {
                self.waiting = None;
            }
            waited.map(|()| Ok(1))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    /// Writes to a reader until it is given up: the bytes it took until then.
    fn write_to(pause: Option<Duration>, patience: Duration) -> usize {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut connection = PatientWriter::new(Reader { pause, waiting: None }, patience);
            for written in 0.. {
                let one = poll_fn(|context| Pin::new(&mut connection).poll_write(context, b"x"));
                if let Err(error) = one.await {
                    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                    return written;
                }
            }
            unreachable!()
        })
    }

    #[test]
    fn a_client_that_reads_nothing_is_given_up() {
        assert_eq!(write_to(None, Duration::from_millis(1)), 0);
    }

    /// Each pause is shorter than the patience; without a least speed this would go on for ever.
    #[test]
    fn a_client_that_reads_a_crumb_now_and_then_is_given_up() {
        assert!(write_to(Some(Duration::from_millis(10)), Duration::from_millis(40)) < 8);
    }

    #[test]
    fn waiting_costs_and_bytes_earn() {
        let minute = Duration::from_secs(60);
        let rate = usize::try_from(BYTES_PER_SECOND_MIN).unwrap();
        // What each of a hundred rounds waits and moves; the round at whose waiting the patience is spent.
        let table = [
            (60, usize::MAX, Some(0)),
            (59, 1, Some(1)),
            (59, 59 * rate, None),
            (30, 30 * rate, None),
            (30, 29 * rate, Some(30)),
            (1, 0, Some(59)),
            (0, 0, None),
        ];
        for (waits_seconds, moves, spent) in table {
            let mut budget = Budget { most: minute, left: minute };
            let round = (0..100).find(|_| {
                budget.spend(Duration::from_secs(waits_seconds));
                let spent = budget.left.is_zero();
                budget.earn(moves.min(1 << 40));
                assert!(budget.left <= minute, "patience is not saved up");
                spent
            });
            assert_eq!(round, spent, "{waits_seconds} s for {moves} bytes");
        }
    }
}
