//! What parent and init say to each other over their packet socket.
//!
//! Owns the messages and their encoding. The order is fixed: the parent's go byte (read before init executes), the
//! root file system's descriptor, then from process 1 [`Message::Started`] or [`Message::Failed`], perhaps
//! [`Message::ExecFailed`], and from an init [`Message::Exited`]. Either side takes the end of the stream as the other's
//! death; after [`Message::Started`] it means that the payload's program runs. A side that could not send what it had to
//! shuts the stream down, so that nobody waits for it.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize};

use crate::idmap::UnmappedUser;

/// Larger than any message of ours; a packet that would be longer is cut and then fails to decode.
const MESSAGE_BYTES_MAX: usize = 128 << 10;

/// A set-up operation that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupFailure {
    /// What was attempted, completing "failed to …", with its operand.
    pub operation: String,
    /// The kernel's answer, or 0 where `operation` says it all.
    pub errno: i32,
}

/// A directory or file made in the root because a mount needed something to stand on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stub {
    /// Path from the root, without symbolic links and without a leading `/`.
    pub(crate) path: OsString,
    /// A directory, else an empty file.
    pub(crate) directory: bool,
}

/// From process 1 to its parent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// Set-up is done and the payload is being executed. Carries the terminal's master when there is one.
    Started { stubs: Vec<Stub> },
    /// Set-up failed; init ends.
    Failed(SetupFailure),
    /// An init can no longer learn how the payload ends; it ends.
    Lost(SetupFailure),
    /// The payload's user does not exist in this user namespace; init ends.
    UserUnmapped(UnmappedUser),
    /// The payload's program could not be executed.
    ExecFailed { program: OsString, errno: i32 },
    /// The payload that an init watched has ended.
    Exited { code: i32, signal: Option<i32> },
}

/// Sends a message, with a descriptor if need be.
pub(crate) fn send(socket: BorrowedFd<'_>, message: &Message, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    send_bytes(socket, &bytes, fd)
}

/// Receives the next message; `None` when the other side is gone.
pub(crate) fn receive(socket: BorrowedFd<'_>, wait: bool) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
    let Some((bytes, fd)) = receive_bytes(socket, wait)? else {
        return Ok(None);
    };
    // The exec stub reports a bare errno, because it cannot allocate.
    if let Ok(errno) = <[u8; 4]>::try_from(bytes.as_slice())
        && let errno = i32::from_ne_bytes(errno)
        && (1..4096).contains(&errno)
    {
        let operation = "execute rimg itself as the sandbox's init".to_owned();
        return Ok(Some((Message::Failed(SetupFailure { operation, errno }), None)));
    }
    let message = postcard::from_bytes(&bytes).map_err(io::Error::other)?;
    Ok(Some((message, fd)))
}

/// Sends raw bytes, never raising SIGPIPE.
pub(crate) fn send_bytes(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Sends no more: the other side finds the end of the stream behind what was sent.
pub(crate) fn shut_down(socket: BorrowedFd<'_>) {
    // A socket that is not connected any more has ended already.
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
}

/// Receives one packet; `None` at the end of the stream or, when not waiting, when nothing is there.
pub(crate) fn receive_bytes(
    socket: BorrowedFd<'_>,
    wait: bool,
) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let flags = if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT } | RecvFlags::CMSG_CLOEXEC;
    let mut was_reset = false;
    let count = loop {
        match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
            Ok(received) => break received.bytes,
            Err(Errno::INTR) => {}
            // The other side ended without reading all that it was sent. What it sent itself comes after this error.
            Err(Errno::CONNRESET) if !was_reset => was_reset = true,
            Err(Errno::AGAIN | Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    };
    if count == 0 {
        return Ok(None);
    }
    bytes.truncate(count);
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(Some((bytes, fd)))
}

/// A pair of connected packet sockets, both close-on-exec.
pub(crate) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}
