# Variables that are empty.
echo a >a
cat >Dockerfile <<'END'
FROM base:1
ARG N
WORKDIR /w
COPY a $N
COPY --chown=$N a /owner
USER svc
USER $N
RUN id -u >/user
LABEL n=$N
ENV E=$N F=f$N
END
