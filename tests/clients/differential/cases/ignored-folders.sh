# .dockerignore: folders, stars, exceptions below what is excluded.
mkdir -p a/b/c d/e x.tmp; for f in a/1 a/b/2 a/b/c/3 d/4 d/e/5 x.tmp/6 y.tmp top; do echo "$f" >"$f"; done
printf '%s\n' 'a' '!a/b/c' '*.tmp' 'd/*' '!d/e' '/top' >.dockerignore
cat >Dockerfile <<'END'
FROM base:1
COPY . /src/
END
