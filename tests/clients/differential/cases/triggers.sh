# engines: none
# ONBUILD over several stages.
echo a >a
cat >Dockerfile <<'END'
FROM base:1 AS one
ARG V=outer
ENV W=w
ONBUILD ARG V=inner
ONBUILD RUN echo $V $W > /on
ONBUILD COPY a /on-a
ONBUILD ENV X=$V
ONBUILD USER svc
ONBUILD WORKDIR /ow
ONBUILD RUN <<EOT
echo doc > /tmp/doc
EOT
FROM one AS two
RUN echo $V $X > /tmp/after
ONBUILD LABEL second=1
FROM two
CMD x
END
