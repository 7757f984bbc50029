# engines: buildkit
# Who a RUN runs as, and what it sees of that.
echo a >a
cat >Dockerfile <<'END'
FROM base:1
USER svc
RUN id > /tmp/1; pwd >> /tmp/1; echo $HOME >> /tmp/1
USER svc:extra
RUN id > /tmp/2
USER 1000
RUN id > /tmp/3
USER 1000:2000
RUN id > /tmp/4
USER 77
RUN id > /tmp/5; echo $HOME >> /tmp/5
USER root
RUN id > /tmp/6; echo $HOME $PWD >> /tmp/6
USER 0:svc
RUN id > /tmp/7
USER root:root
RUN id > /tmp/8
WORKDIR /x
USER svc
WORKDIR y/z
COPY a .
RUN echo x > q
END
