# engines: none
# Here-documents in COPY, ADD and RUN, their tabs, quotes and descriptors.
echo a >a
cat >Dockerfile <<'END'
FROM base:1
ARG A=val
ENV E="e v"
COPY <<EOT /one
$A ${E} \$A "q" 'q' \\ \n
EOT
COPY <<-"EOT" <<-X2 a /dir/
	tab $A
	EOT
	tab $A
		two
	X2
ADD <<EOT /added/
x
EOT
ADD --chmod=755 <<script.sh /bin2/
#!/bin/sh
script.sh
RUN <<EOT sh
echo piped $A > /piped
EOT
RUN 3<<EOT cat /dev/fd/3 > /fd; true
fd
EOT
RUN <<EOT

echo leading > /lead
EOT
RUN <<-EOT
	#!/bin/sh
	echo $A > /scr
	EOT
RUN <<EOT cat > /cat && echo after >> /cat
# not a comment
line \
cont
EOT
END
