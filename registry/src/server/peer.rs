//! [`Peer`]: the other end of a connection, and which local user that is.
//!
//! On loopback the kernel knows both ends: sock_diag(7) looks a TCP socket up by its pair of addresses and tells the
//! user who made it. One lookup serves a connection, at its first request. What cannot be told is nobody: a socket that
//! is closed already, one of another network namespace, one behind a translated address, a user without an id here.
//!
//! `unsafe` is not needed: a netlink message is bytes, and is written and read as such.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::OnceLock;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// The other end of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// The address that it has connected to.
    local: Option<SocketAddr>,
    user: OnceLock<Option<u32>>,
}

impl Peer {
    pub(super) fn new(address: SocketAddr, local: Option<SocketAddr>) -> Peer {
        Peer { address, local, user: OnceLock::new() }
    }

    /// The user who made the socket; `None` when that cannot be told. Looked up once.
    pub(super) fn user(&self, users: &PeerUsers) -> Option<u32> {
        *self.user.get_or_init(|| users.of(self.address, self.local?).ok().flatten())
    }
}

/// Looks up who made a socket.
#[derive(Debug)]
pub(super) struct PeerUsers {
    /// The id that stands for all users without one in this user namespace, when there are any.
    unmapped: Option<u32>,
}

impl PeerUsers {
    /// Fails where the kernel does not tell: tried with a connection of this process.
    pub(super) fn probe() -> io::Result<PeerUsers> {
        let users = PeerUsers { unmapped: unmapped_user() };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        match users.of(client.local_addr()?, client.peer_addr()?)? {
            Some(_) => Ok(users),
            None => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel does not tell whose a socket is"))
            }
        }
    }

    /// The user who made the socket at `client` that is connected to `server`.
    fn of(&self, client: SocketAddr, server: SocketAddr) -> io::Result<Option<u32>> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(netlink::SOCK_DIAG),
        )?;
        // Connected to the kernel, so that nobody else can answer.
        rustix::net::connect(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
        rustix::net::send(&socket, &request(client, server), SendFlags::empty())?;
        let mut answer = [0; ANSWER_BYTES_MAX];
        let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
        let owner = owner(&answer[..length], client, server)?;
        Ok(owner.filter(|owner| Some(*owner) != self.unmapped))
    }
}

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `NLMSG_ERROR` of `linux/netlink.h`.
const NLMSG_ERROR: u16 = 2;
/// `NLM_F_REQUEST`: the kernel is asked for one socket, not for a list.
const NLM_F_REQUEST: u16 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// Bytes of `nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// Bytes of `inet_diag_sockid`: ports, addresses, interface and cookie.
const SOCKET_ID_BYTES: usize = 48;
/// An answer has 72 bytes behind its header, and an error repeats the request.
const ANSWER_BYTES_MAX: usize = 512;
/// TCP states in which a socket has a living user: ESTABLISHED, and FIN_WAIT1 and FIN_WAIT2 after the client has sent
/// its last byte. Listeners are found by the same lookup.
const LIVE_STATES: [u8; 3] = [1, 4, 5];

/// `nlmsghdr` and `inet_diag_req_v2` for the socket at `client` that is connected to `server`.
fn request(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let family = if client.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut body = vec![family, IPPROTO_TCP, 0, 0];
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(addresses(client, server));
    // No interface, and INET_DIAG_NOCOOKIE.
    body.extend([0; 4]);
    body.extend([0xff; 8]);
    let length = u32::try_from(HEADER_BYTES + body.len()).expect("a few dozen bytes");
    let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Ports and addresses as in `inet_diag_sockid`.
fn addresses(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let mut bytes = [client.port().to_be_bytes(), server.port().to_be_bytes()].concat();
    for address in [client, server] {
        let mut field = [0; 16];
        match address {
            SocketAddr::V4(address) => field[..4].copy_from_slice(&address.ip().octets()),
            SocketAddr::V6(address) => field = address.ip().octets(),
        }
        bytes.extend(field);
    }
    bytes
}

/// The user whom an answer names. Sockets that their process has closed live on in the kernel as root's, without an
/// inode: they are nobody's.
fn owner(answer: &[u8], client: SocketAddr, server: SocketAddr) -> io::Result<Option<u32>> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "an answer of sock_diag cannot be read");
    let word = |offset: usize| -> Option<[u8; 4]> { answer.get(offset..offset + 4)?.try_into().ok() };
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    match kind.ok_or_else(malformed)? {
        NLMSG_ERROR => {
            let error = i32::from_ne_bytes(word(HEADER_BYTES).ok_or_else(malformed)?);
            let error = io::Error::from_raw_os_error(error.checked_neg().unwrap_or(0));
            match error.kind() {
                io::ErrorKind::NotFound => Ok(None),
                _ => Err(error),
            }
        }
        SOCK_DIAG_BY_FAMILY => {
            let socket = HEADER_BYTES + 4;
            let state = *answer.get(HEADER_BYTES + 1).ok_or_else(malformed)?;
            let pair = answer.get(socket..socket + 36).ok_or_else(malformed)?;
            // `inet_diag_msg`: expires, rqueue and wqueue stand before uid and inode.
            let user = u32::from_ne_bytes(word(socket + SOCKET_ID_BYTES + 12).ok_or_else(malformed)?);
            let inode = u32::from_ne_bytes(word(socket + SOCKET_ID_BYTES + 16).ok_or_else(malformed)?);
            let same = same_pair(pair, client, server);
            Ok((same && inode != 0 && LIVE_STATES.contains(&state)).then_some(user))
        }
        _ => Err(malformed()),
    }
}

/// Whether the kernel's pair is the one asked for. A socket of IPv6 may be connected to a mapped address of IPv4, in
/// which case either form is right.
fn same_pair(pair: &[u8], client: SocketAddr, server: SocketAddr) -> bool {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let mapped = |address: SocketAddr| match canonical(address) {
        SocketAddr::V4(address) => SocketAddr::new(address.ip().to_ipv6_mapped().into(), address.port()),
        address => address,
    };
    pair == addresses(canonical(client), canonical(server))
        || pair == addresses(mapped(client), mapped(server))
}

/// The overflow id, unless every id of the machine has one of its own here: in a user namespace it stands for all
/// others.
fn unmapped_user() -> Option<u32> {
    /// What the kernel starts with.
    const OVERFLOW_USER: u32 = 65534;
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if map.split_whitespace().eq(["0", "0", "4294967295"]) {
        return None;
    }
    let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
    Some(overflow.and_then(|id| id.trim().parse().ok()).unwrap_or(OVERFLOW_USER))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn me() -> Option<u32> {
        Some(rustix::process::geteuid().as_raw())
    }

    /// A client's socket of `family` that is connected to `server`.
    fn connect(family: AddressFamily, server: SocketAddr) -> TcpStream {
        let socket = rustix::net::socket(family, SocketType::STREAM, None).unwrap();
        rustix::net::connect(&socket, &server).unwrap();
        TcpStream::from(socket)
    }

    #[test]
    fn a_socket_is_its_makers_in_both_families_and_when_one_is_mapped_to_the_other() {
        let users = PeerUsers::probe().unwrap();
        for (listen, connect_to, family) in [
            ("127.0.0.1:0", "127.0.0.1", AddressFamily::INET),
            ("127.0.0.1:0", "::ffff:127.0.0.1", AddressFamily::INET6),
            ("[::ffff:127.0.0.1]:0", "127.0.0.1", AddressFamily::INET),
            ("[::ffff:127.0.0.1]:0", "::ffff:127.0.0.1", AddressFamily::INET6),
            ("[::1]:0", "::1", AddressFamily::INET6),
            ("[::]:0", "127.0.0.1", AddressFamily::INET),
        ] {
            // A machine without IPv6 has nothing to look up.
            let Ok(listener) = TcpListener::bind(listen) else { continue };
            let server = SocketAddr::new(connect_to.parse().unwrap(), listener.local_addr().unwrap().port());
            let _client = connect(family, server);
            let (accepted, peer) = listener.accept().unwrap();
            let peer = Peer::new(peer, accepted.local_addr().ok());
            assert_eq!(peer.user(&users), me(), "{listen} {connect_to}");
        }
    }

    #[test]
    fn a_closed_socket_is_nobodys_although_the_kernel_calls_it_roots() {
        let users = PeerUsers::probe().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, address) = listener.accept().unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let half_closed = Peer::new(address, accepted.local_addr().ok());
        assert_eq!(half_closed.user(&users), me(), "it still reads");
        drop(client);
        let closed = Peer::new(address, accepted.local_addr().ok());
        assert_eq!(closed.user(&users), None);
        let listening = listener.local_addr().unwrap();
        assert_eq!(users.of(listening, address).unwrap(), None, "a listener is not connected");
        assert_eq!(users.of("127.0.0.1:9".parse().unwrap(), listening).unwrap(), None);
    }

    #[test]
    fn answers_that_are_cut_or_of_another_socket_tell_nothing() {
        let (client, server): (SocketAddr, SocketAddr) =
            ("127.0.0.1:1000".parse().unwrap(), "127.0.0.1:5000".parse().unwrap());
        let answer = |pair: Vec<u8>, state: u8, user: u32, inode: u32| {
            let mut answer = vec![0; HEADER_BYTES];
            answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
            answer.extend([AF_INET, state, 0, 0]);
            answer.extend(pair);
            answer.extend([0; 12 + 12]);
            answer.extend(user.to_ne_bytes());
            answer.extend(inode.to_ne_bytes());
            answer
        };
        let whole = answer(addresses(client, server), 1, 7, 99);
        assert_eq!(owner(&whole, client, server).unwrap(), Some(7));
        for (pair, state, inode) in [
            (addresses(server, client), 1, 99),
            (addresses(client, server), 10, 99),
            (addresses(client, server), 6, 99),
            (addresses(client, server), 2, 99),
            (addresses(client, server), 5, 0),
        ] {
            assert_eq!(owner(&answer(pair, state, 0, inode), client, server).unwrap(), None);
        }
        for length in 0..whole.len() {
            assert!(owner(&whole[..length], client, server).is_err(), "{length}");
        }
    }
}
