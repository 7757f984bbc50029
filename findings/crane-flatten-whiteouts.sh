#!/usr/bin/env bash
# Finding: go-containerregistry loses what a layer puts where it has removed something.
#
# Versions: github.com/google/go-containerregistry v0.22.1, mutate.Extract, which `crane export` and `crane flatten` use.
# Behaviour: a layer may remove a directory of the layers below (`.wh.a`) and bring its own directory `a`; the image
#   specification lets whiteouts count for lower layers alone. Extract takes the whiteout for this layer too: the new
#   directory and everything in it are missing, without an error. An opaque marker inside the new directory
#   (`a/.wh..wh..opq`) gives the right result, so whether files are lost depends on the tool that wrote the layer.
# Why it matters: "rm -r a && mkdir a && …" in one build step is everyday work.
# shellcheck source=findings/flattened.bash
. "$(dirname "$0")/flattened.bash"

cat >main.go <<'GO'
package main

import (
	"archive/tar"
	"fmt"
)

func main() {
	lower := layer(tar.Header{Name: "a/", Typeflag: tar.TypeDir}, tar.Header{Name: "a/old", Typeflag: tar.TypeReg, Uname: "old"})
	directory, file := tar.Header{Name: "a/", Typeflag: tar.TypeDir}, tar.Header{Name: "a/new", Typeflag: tar.TypeReg, Uname: "new"}
	whiteout := layer(tar.Header{Name: ".wh.a", Typeflag: tar.TypeReg}, directory, file)
	opaque := layer(directory, tar.Header{Name: "a/.wh..wh..opq", Typeflag: tar.TypeReg}, file)
	fmt.Println(flattened(lower, whiteout), flattened(lower, opaque))
}
GO
says '[ ] [ a(5) a/new(0)new ]'
