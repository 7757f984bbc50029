# engines: none
# Here-documents.
cat >Dockerfile <<'END'
FROM base:1
ARG A=value
RUN <<EOF
echo one >/one
echo $A >/two
EOF
RUN <<'EOF'
#!/bin/sh
echo "script $A" >/three
EOF
RUN cat <<ONE >/four && cat <<-TWO >/five
$A one
ONE
	two
	TWO
RUN << EOF
echo blank >/six
EOF
COPY <<EOF <<"RAW" /copied/
$A \$A
EOF
$A
RAW
COPY --chmod=600 --chown=svc <<EOF /named
x
EOF
END
