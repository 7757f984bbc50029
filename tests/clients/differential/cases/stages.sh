# engines: buildkit
# COPY --from by name, number, image; a stage on a stage; triggers.
echo a >a
cat >Dockerfile <<'END'
FROM scratch AS empty
FROM base:1 AS Tool
RUN mkdir -p /out/bin && echo tool >/out/bin/tool && ln -s bin/tool /out/tool && ln -s /out/bin /out/bins
ONBUILD RUN echo triggered >/trigger
ONBUILD COPY a /trigger-copy
FROM tool
COPY --from=tool /out /opt/
COPY --from=1 /out/tool /by-number
COPY --from=base:1 /etc/passwd /image/
COPY --from=tool /out/bins/tool /through
END
