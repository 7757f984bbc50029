//! `rimg save`: images as one tar archive that rimg, docker, podman and skopeo read.
