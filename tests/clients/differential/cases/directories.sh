# Working directories in all forms, and their owners.
echo a >a
cat >Dockerfile <<'END'
FROM base:1
WORKDIR rel
WORKDIR /a/../b/./c/
WORKDIR ..
COPY a here
RUN ln -s /b /lnk && ln -s /nowhere/deep /dangle
WORKDIR /lnk/in
COPY a there
WORKDIR /dangle
COPY a x
USER svc
WORKDIR /
WORKDIR own/ed
WORKDIR "/with quotes"
WORKDIR //double//slash
ENV D=/var/$BASE
WORKDIR $D
WORKDIR ${D}/../x/
END
