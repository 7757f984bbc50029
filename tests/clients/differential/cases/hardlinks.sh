# Names of one file in the context, in stages, and in RUN.
echo x >a; ln a b; mkdir d; ln a d/c; echo y >d/alone
cat >Dockerfile <<'END'
FROM base:1 AS one
COPY . /y/
RUN echo z >/z && ln /z /z2 && mkdir /zz && ln /z /zz/z3
FROM base:1
COPY --from=one /y /from/
COPY --from=one /z /z2 /few/
RUN ln /etc/passwd /pass
END
