# What is written below a volume after VOLUME.
echo a >a
cat >Dockerfile <<'END'
FROM base:1
VOLUME /v
COPY a /v/copied
RUN echo r >/v/run
END
