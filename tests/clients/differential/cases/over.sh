# Content over content of another type.
mkdir -p file/x dir; echo n >file/x/p; echo d >dir/in; mkdir -p l; echo new >l/a
cat >Dockerfile <<'END'
FROM base:1
RUN mkdir -p /a/x /target && echo old >/a/x/q && ln -s /target /link && echo t >/target/t && ln -s target/t /file-link
COPY file /a/
COPY dir /link
COPY dir/in /link/two
COPY dir/in /file-link
COPY l /target/
END
