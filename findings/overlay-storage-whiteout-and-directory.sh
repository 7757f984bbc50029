#!/usr/bin/env bash
# Finding: in podman's overlay storage a directory that a layer removes and makes anew has its old content again.
#
# Versions: podman 4.3.1 with the overlay driver, against umoci 0.4.7 (Debian 12).
# Behaviour: a layer with `.wh.d` and then a directory `d` removes the old `d` by the image specification and brings a new
#   one. umoci does so. The overlay driver first makes the whiteout device `d` and then puts a directory in its place
#   that is not marked opaque, so the lower layer's files show through. Docker 20.10 and containerd 1.6 do the same.
# Why it matters: a removed file, such as a key or an old configuration, is back in the running container, while other
#   tools on the same image say that it is gone.
# shellcheck source=findings/layers.bash
. "$(dirname "$0")/layers.bash"

layout '[[("d","d",""),("d/old","f","old")],[(".wh.d","f",""),("d","d",""),("d/new","f","new")]]'
says 'd d/new d/old' 'd d/new'
