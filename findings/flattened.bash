# shellcheck shell=bash
# Sourced by the findings about go-containerregistry: a Go module with `layer` and `flattened`, to which a finding adds its
# main.go. Needs Go; the module comes from Go's module proxy into a temporary folder.
set -euo pipefail
scratch=$(mktemp -d)
trap 'chmod -R u+w "$scratch"; rm -rf "$scratch"' EXIT
export GOPATH=$scratch/go GOFLAGS=-mod=mod
mkdir "$scratch/probe" && cd "$scratch/probe"
cat >go.mod <<GOMOD
module probe
go 1.24
require github.com/google/go-containerregistry v0.22.1
GOMOD
cat >flattened.go <<"GO"
package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func layer(headers ...tar.Header) v1.Layer {
	var bytesOf bytes.Buffer
	writer := tar.NewWriter(&bytesOf)
	for _, header := range headers {
		content := header.Uname
		header.Uname, header.Mode, header.Size = "", 0755, int64(len(content))
		if err := writer.WriteHeader(&header); err != nil {
			panic(err)
		}
		fmt.Fprint(writer, content)
	}
	writer.Close()
	return must(tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(bytesOf.Bytes())), nil
	}))
}

func flattened(layers ...v1.Layer) string {
	reader, text := tar.NewReader(mutate.Extract(must(mutate.AppendLayers(empty.Image, layers...)))), ""
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return "[" + text + " ]"
		}
		if err != nil {
			panic(err)
		}
		text += fmt.Sprintf(" %s(%c%s)%s", header.Name, header.Typeflag, header.Linkname, must(io.ReadAll(reader)))
	}
}

GO

# says TEXT: runs the program and compares what it prints.
says() {
    local seen
    go mod tidy >/dev/null 2>&1
    seen=$(go run .)
    echo "go-containerregistry v0.22.1: $seen"
    [ "$seen" = "$1" ] || {
        echo "changed: expected $1"
        exit 1
    }
}
