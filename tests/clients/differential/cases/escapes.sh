# engines: buildkit
echo a >a
cat >Dockerfile <<'END'
# escape=`
FROM base:1
ENV A=`
b B="x`"y" C=a`$A
# comment
RUN echo one && `
# inside
  echo two > /o `
  && true
LABEL x="a\b" y=c:\d z='`'
COPY a C:\x
END
