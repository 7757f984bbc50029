#!/usr/bin/env bash
# Finding: in podman's overlay storage an opaque marker in the root of a layer has no effect.
#
# Versions: podman 4.3.1 with the overlay driver, against umoci 0.4.7 (Debian 12).
# Behaviour: `.wh..wh..opq` in a directory hides what lower layers have there; in the root it should hide all of them.
#   umoci empties the root. The overlay driver marks the root of the layer's own directory as opaque, which the kernel
#   does not heed at the root of a lower layer: everything below stays visible. Docker 20.10 and containerd 1.6 agree.
# Why it matters: a tool that replaces a whole file system in one layer gets the old one mixed into it.
# shellcheck source=findings/layers.bash
. "$(dirname "$0")/layers.bash"

layout '[[("old","f","old")],[(".wh..wh..opq","f",""),("new","f","new")]]'
says 'new old' 'new'
