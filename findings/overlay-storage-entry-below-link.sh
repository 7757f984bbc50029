#!/usr/bin/env bash
# Finding: in podman's overlay storage a layer with `lib/new` replaces the base's link `lib -> usr/lib` by a directory.
#
# Versions: podman 4.3.1 with the overlay driver, against umoci 0.4.7 (Debian 12).
# Behaviour: layers are unpacked one by one, each into a directory of its own, so the driver cannot see that `lib` is a link
#   in the layer below; it makes the missing parent as a directory, which covers the link. umoci unpacks into one tree and
#   puts the file into usr/lib. Docker 20.10 and containerd 1.6 agree with podman.
# Why it matters: on a usr-merged base the dynamic loader is gone, and nothing in the container starts.
# shellcheck source=findings/layers.bash
. "$(dirname "$0")/layers.bash"

layout '[[("usr","d",""),("usr/lib","d",""),("lib","l","usr/lib"),("usr/lib/loader","f","x")],[("lib/new","f","new")]]'
says 'lib lib/new usr usr/lib usr/lib/loader' 'lib usr usr/lib usr/lib/loader usr/lib/new'
