# --chown and --chmod, names and numbers.
mkdir -p d/sub; echo a >d/a; echo x >d/sub/x; ln -s a d/l; chmod 600 d/a; chmod 700 d/sub
cat >Dockerfile <<'END'
FROM base:1
COPY --chown=svc d /name
COPY --chown=svc:extra d /both
COPY --chown=7 d /number
COPY --chown=7:8 d /numbers/deep/
COPY --chown=root d /root-name
COPY --chown=root:svc d/a /mixed
COPY --chmod=640 d/a /mode
USER svc
COPY d/a /of-root
ADD --chown=svc d/a /added
WORKDIR /of-svc/deep
WORKDIR /home/svc
END
