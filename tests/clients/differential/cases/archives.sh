# ADD of archives: several, compressed, over what is there, with links.
mkdir t; echo 'first archive' >t/one; echo SECOND >t/two; tar='tar --mtime=@0 --owner=0 --group=0'; $tar -C t -cf 1.tar one; $tar -C t -cf 2.tar two
mkdir -p l/d; echo x >l/d/x; ln l/d/x l/d/y; ln -s x l/d/s; mkfifo l/d/p; chmod 2751 l/d
tar --mtime=@0 --owner=7 --group=8 --sort=name -C l -czf l.tgz d
echo plain >plain
cat >Dockerfile <<'END'
FROM base:1
ADD 1.tar 2.tar /s/
ADD *.tar plain /g/
ADD l.tgz /l
ADD 1.tar /one/two/
COPY 1.tar /kept/
ADD plain /name
END
