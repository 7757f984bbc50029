# Every instruction that only changes the configuration.
cat >Dockerfile <<'END'
FROM base:1
LABEL one=1 two="a b" three=$BASE
EXPOSE 80 90-92/udp 443/tcp
VOLUME /v /w
VOLUME ["/a b"]
USER svc
WORKDIR /srv
WORKDIR app
STOPSIGNAL SIGINT
SHELL ["/bin/sh", "-ec"]
ENTRYPOINT entry $point
CMD echo "hi"
HEALTHCHECK --interval=5s --timeout=1m30s --retries=2 CMD true --yes
MAINTAINER me <me@example.com>
ONBUILD RUN echo $LATER
ONBUILD COPY x /
END
