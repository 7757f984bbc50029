# Destinations of COPY: files, folders, globs, links, slashes.
mkdir -p d/sub e
echo a >d/a; echo b >d/sub/b; echo c >e/c; echo f >f; echo g >g.txt
ln -s a d/link; ln -s ../f d/up; ln -s d folder-link; ln -s f file-link; ln -s nowhere d/dangling
chmod 640 f; chmod 711 d/sub; chmod 4755 d/a
cat >Dockerfile <<'END'
FROM base:1
COPY f /file
COPY f /folder/
COPY f /new/deep/name
COPY d /d
COPY d /d2/
COPY d/ e /both/
COPY d/sub/ /contents
COPY *.txt f /glob/
COPY f* /fs/
COPY file-link /of-file
COPY folder-link /of-folder
COPY ["f", "/json name/"]
WORKDIR /w
COPY f .
COPY f sub/
COPY f ../up
COPY d/./sub/../a /odd
COPY e /bin/
COPY f /bin/in-link
COPY f /etc
END
