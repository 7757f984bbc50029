# Mounts of RUN leave nothing behind.
mkdir src; echo s >src/s
cat >Dockerfile <<'END'
FROM base:1 AS other
RUN echo o >/o
FROM base:1
RUN --mount=type=bind,source=src,target=/m/src cat /m/src/s >/s
RUN --mount=type=bind,from=other,source=/o,target=/m/o cat /m/o >/o
RUN --mount=type=tmpfs,target=/m/t echo t >/m/t/t
RUN --mount=type=cache,target=/m/c,id=differential echo c >/m/c/c
END
