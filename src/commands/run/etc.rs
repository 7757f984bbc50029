//! The files that every container finds in `/etc`: who it is, and whom to ask for names.

use std::path::PathBuf;

use rimg_runner::spec::EtcFile;

use super::flags::NetworkChoice;

/// `/etc/hostname`, `/etc/hosts` and, where there is a network, `/etc/resolv.conf`.
pub(super) fn files(hostname: &str, network: NetworkChoice) -> Vec<EtcFile> {
    let file = |name: &str, content: Vec<u8>| EtcFile { target: PathBuf::from("/etc").join(name), content };
    let mut hosts = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    hosts.push_str(&format!("127.0.1.1\t{hostname}\n"));
    let resolver = match network {
        // The host's own names are the container's too: it is on the host's network.
        NetworkChoice::Host => {
            if let Ok(own) = std::fs::read_to_string("/etc/hosts") {
                let is_there = own.split_whitespace().any(|word| word == hostname);
                hosts = if is_there { own } else { format!("{own}\n127.0.1.1\t{hostname}\n") };
            }
            std::fs::read("/etc/resolv.conf").unwrap_or_default()
        }
        NetworkChoice::None => Vec::new(),
    };
    hosts.truncate(hosts.floor_char_boundary(EtcFile::SIZE_MAX));
    let resolver = resolver.into_iter().take(EtcFile::SIZE_MAX).collect();
    vec![
        file("hostname", format!("{hostname}\n").into_bytes()),
        file("hosts", hosts.into_bytes()),
        file("resolv.conf", resolver),
    ]
}
