//! [`Places`]: a bounded number of places (connections, uploads, large documents), of which one address may take
//! a share only, so that no stranger can keep everybody else out.
//!
//! An address is what one person can have: a single IPv4 address, and a whole /64 of IPv6, which is the least that
//! providers hand out. Loopback and the proxies that the operator names speak for many, and may take every place.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limits::{ADDRESS_SHARE_DIVISOR, ADDRESS_SHARE_MIN};

/// A bounded number of places.
#[derive(Debug)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    all: usize,
    /// Places that one address may hold.
    share: usize,
    proxies: Vec<IpAddr>,
    /// Off in tests alone, whose clients are all on this machine.
    loopback_is_free: bool,
    held: Mutex<HashMap<IpAddr, Holder>>,
}

/// What an address holds.
#[derive(Debug, Default)]
struct Holder {
    places: usize,
    /// Whether it was refused before, since it last held nothing.
    refused: bool,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// All are taken.
    All,
    /// The address has its share.
    Share {
        /// Whether that had not happened to it for a while: worth a line in a log.
        first: bool,
    },
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    counted: Option<(Arc<Places>, IpAddr)>,
}

impl Places {
    /// So many places in all; `proxies` may take each of them.
    pub(super) fn new(all: usize, proxies: &[IpAddr]) -> Arc<Places> {
        let all = all.clamp(1, Semaphore::MAX_PERMITS);
        let share = (all / ADDRESS_SHARE_DIVISOR).max(ADDRESS_SHARE_MIN);
        let (free, held) = (Arc::new(Semaphore::new(all)), Mutex::default());
        let proxies = proxies.iter().map(IpAddr::to_canonical).collect();
        Arc::new(Places { free, all, share, proxies, loopback_is_free: true, held })
    }

    /// As [`Places::new`], but this machine is an address like any other.
    #[cfg(test)]
    pub(super) fn counting_loopback(all: usize) -> Arc<Places> {
        let mut places = Places::new(all, &[]);
        Arc::get_mut(&mut places).expect("nobody else has it yet").loopback_is_free = false;
        places
    }

    /// A place for `peer`, if there is one at this moment.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr) -> Result<Place, Full> {
        let permit = self.free.clone().try_acquire_owned().map_err(|_| Full::All)?;
        self.count(permit, peer)
    }

    /// Waits until some place is free, for a peer that is not known yet.
    pub(super) async fn reserve(&self) -> Result<OwnedSemaphorePermit, tokio::sync::AcquireError> {
        self.free.clone().acquire_owned().await
    }

    /// Gives a reserved place to `peer`.
    pub(super) fn count(self: &Arc<Self>, permit: OwnedSemaphorePermit, peer: IpAddr) -> Result<Place, Full> {
        let Some(address) = self.address(peer) else { return Ok(Place { _permit: permit, counted: None }) };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let holder = held.entry(address).or_default();
        if holder.places >= self.share {
            return Err(Full::Share { first: !std::mem::replace(&mut holder.refused, true) });
        }
        holder.places += 1;
        Ok(Place { _permit: permit, counted: Some((Arc::clone(self), address)) })
    }

    /// Resolves when every place was given back. There are none after that.
    pub(super) async fn all_given_back(&self) {
        for _ in 0..self.all {
            match self.free.acquire().await {
                Ok(place) => place.forget(),
                Err(_) => return,
            }
        }
    }

    /// What `peer` is counted as; `None` for those that are not.
    fn address(&self, peer: IpAddr) -> Option<IpAddr> {
        match peer.to_canonical() {
            address if address.is_loopback() && self.loopback_is_free => None,
            address if self.proxies.contains(&address) => None,
            IpAddr::V6(address) => Some(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into()),
            address => Some(address),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((places, address)) = &self.counted else { return };
        let mut held = places.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(holder) = held.get_mut(address) {
            holder.places -= 1;
            // Only those that hold something are remembered, so the map is no larger than the places are many.
            if holder.places == 0 {
                held.remove(address);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_cannot_take_what_others_need() {
        let places = Places::new(400, &[]);
        let mut taken: Vec<Place> = (0..100).map(|_| places.take(ip("192.0.2.1")).unwrap()).collect();
        assert_eq!(places.take(ip("192.0.2.1")).unwrap_err(), Full::Share { first: true });
        assert_eq!(places.take(ip("::ffff:192.0.2.1")).unwrap_err(), Full::Share { first: false });
        taken.push(places.take(ip("192.0.2.2")).unwrap());
        assert!(taken.remove(0).counted.is_some());
        taken.push(places.take(ip("192.0.2.1")).unwrap());
        taken.clear();
        assert!(places.held.lock().unwrap().is_empty());
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let places = Places::new(ADDRESS_SHARE_MIN, &[]);
        let taken: Vec<Place> = (0..ADDRESS_SHARE_MIN - 1)
            .map(|number| places.take(ip(&format!("2001:db8::{number:x}"))).unwrap())
            .collect();
        let other = places.take(ip("2001:db8:0:1::1")).unwrap();
        assert_eq!(places.take(ip("2001:db8:0:2::1")).unwrap_err(), Full::All);
        drop(other);
        let _last = places.take(ip("2001:db8::ffff")).unwrap();
        drop(taken);
        assert_eq!(places.held.lock().unwrap().len(), 1);
    }

    #[test]
    fn this_machine_and_proxies_may_take_every_place() {
        let places = Places::new(400, &[ip("192.0.2.9")]);
        for peer in ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "192.0.2.9", "::ffff:192.0.2.9"] {
            let taken: Vec<Place> = (0..400).map(|_| places.take(ip(peer)).unwrap()).collect();
            assert_eq!(places.take(ip(peer)).unwrap_err(), Full::All, "{peer}");
            drop(taken);
        }
    }
}
