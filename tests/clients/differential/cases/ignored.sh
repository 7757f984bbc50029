# .dockerignore with exceptions.
mkdir -p .git/objects/00 api bin src docs/deep node_modules/m
touch .git/objects/00/o bin/t node_modules/m/n; echo go >api/a.go; echo s >src/.env; echo g >src/g.go; echo d >docs/d.md
echo e >docs/deep/e.md; echo k >node_modules/m/keep.md
printf '%s\n' '**' '!**/*.go' '!docs' '**/.env' 'docs/deep' '' '# comment' >.dockerignore
cat >Dockerfile <<'END'
FROM base:1
COPY . /src/
COPY docs /docs
END
