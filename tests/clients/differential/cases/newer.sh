# engines: none
# What today's BuildKit has and Debian's has not.
mkdir -p app/keys app/sub; echo k >app/keys/k; echo m >app/x.md; echo s >app/sub/s; ln -s s app/sub/l
cat >Dockerfile <<'END'
FROM base:1
COPY --parents app/sub/s app/./x.md /p/
COPY --parents **/l /l/
COPY --exclude=*.md --exclude=keys app /e/
COPY --parents --exclude=app/keys app /pe/
COPY --link app/sub /link/
COPY --chmod=u=rwX,go=rX app /symbolic/
EXPOSE 90 80/TCP 8000-8001/udp
HEALTHCHECK --interval=1.5s --start-period=1h CMD ["a", "b"]
ONBUILD RUN true
CMD ["tab	", "é", "\u0001", "quote\""]
ENV V=1
ARG V=2 W
RUN true
END
