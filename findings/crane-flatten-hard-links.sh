#!/usr/bin/env bash
# Finding: go-containerregistry flattens a hard link to whatever a later layer put under its target's name.
#
# Versions: github.com/google/go-containerregistry v0.22.1, mutate.Extract, which `crane export` and `crane flatten` use.
# Behaviour: `b` is a hard link to `a` in the lower layer. Where the upper layer replaces `a`, a container sees the old
#   content under `b`, since only the name `a` is covered; Extract writes `b` as a hard link to the new `a`, whose content
#   `b` then has. Where the upper layer removes `a`, Extract writes a hard link to a name that the archive does not hold.
# Why it matters: a flattened image silently differs from the image that ran, or cannot be unpacked. Package managers'
#   files with several names, and multi-call programs, are of this kind.
# shellcheck source=findings/flattened.bash
. "$(dirname "$0")/flattened.bash"

cat >main.go <<'GO'
package main

import (
	"archive/tar"
	"fmt"
)

func main() {
	lower := layer(tar.Header{Name: "a", Typeflag: tar.TypeReg, Uname: "old"}, tar.Header{Name: "b", Typeflag: tar.TypeLink, Linkname: "a"})
	replaced := layer(tar.Header{Name: "a", Typeflag: tar.TypeReg, Uname: "new"})
	removed := layer(tar.Header{Name: ".wh.a", Typeflag: tar.TypeReg})
	fmt.Println(flattened(lower, replaced), flattened(lower, removed))
}
GO
says '[ a(0)new b(1a) ] [ b(1a) ]'
