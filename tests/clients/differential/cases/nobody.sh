# engines: buildkit
# root is 0 where no file says so.
echo a >a
cat >Dockerfile <<'END'
FROM scratch
COPY --chown=root a /one
COPY --chown=root:root a /two
COPY --chown=5:root a /three
USER root
WORKDIR /four
USER root:root
WORKDIR /five
COPY a six
END
