//! [`Farewells`]: telling connections that are not served why, without letting them take a place for it.
//!
//! The answer is the same whatever is asked, so nothing is parsed. What the client sends is read and dropped until it
//! hangs up or a second has gone: closing with bytes unread would reset the connection, and the client might see
//! that instead of the answer.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::error::ApiError;
use super::limits::{DRAIN_BYTES_MAX, FAREWELL_TIMEOUT, FAREWELLS_MAX, RETRY_AFTER_SECONDS};

/// Says farewell to so many connections at once.
pub(super) struct Farewells {
    places: Arc<Semaphore>,
}

impl Default for Farewells {
    fn default() -> Farewells {
        Farewells { places: Arc::new(Semaphore::new(FAREWELLS_MAX)) }
    }
}

impl Farewells {
    /// Tells `stream` that its address has too many connections. When that is said to too many already, it is
    /// closed without a word.
    pub(super) fn say(&self, stream: TcpStream) {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            tokio::spawn(async move {
                // Whether it was heard makes no difference.
                let _ = timeout(FAREWELL_TIMEOUT, tell(stream)).await;
                drop(place);
            });
        }
    }
}

async fn tell(mut stream: TcpStream) -> std::io::Result<()> {
    let body = ApiError::too_many("too many connections from your address; try again in a moment").body();
    let head = format!(
        "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Retry-After: {RETRY_AFTER_SECONDS}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), &body].concat()).await?;
    stream.shutdown().await?;
    let mut dropped = vec![0; 16 * 1024];
    let mut left = DRAIN_BYTES_MAX;
    while left > 0 {
        match stream.read(&mut dropped).await? {
            0 => return Ok(()),
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}
