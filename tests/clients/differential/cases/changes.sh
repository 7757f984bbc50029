# What RUN leaves: types, modes, owners, removals, attributes.
cat >Dockerfile <<'END'
FROM base:1
RUN mkdir -p /d/e && echo 1 >/d/1 && echo 2 >/d/e/2 && chmod 1700 /d && chown 7:8 /d/1 && ln -s 1 /d/l && mkfifo /d/p
RUN rm /d/1 && rm -r /d/e && mkdir /d/e && echo 3 >/d/e/3 && chmod 4755 /d/e/3
RUN rm -r /home/svc && mv /d/e /moved && chmod 700 /home
RUN rm -r /d && echo file >/d
RUN true
RUN cat /etc/passwd >/dev/null
USER svc
RUN echo mine >/tmp/mine && mkdir /tmp/folder && ln -s /tmp /tmp/l
END
