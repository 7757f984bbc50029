# Which of ENV and ARG counts, and what the configuration keeps.
cat >Dockerfile <<'END'
ARG GLOBAL=global
ARG TAG=1
FROM base:$TAG AS first
ENV V=env W=env
ARG V=arg
RUN echo $V $W $BASE >/run-1
LABEL v=$V
ENV X=x$V
ARG W
RUN echo $W $V >/run-2
ARG GLOBAL
RUN echo $GLOBAL >/run-3
ENV GLOBAL=hidden
RUN echo $GLOBAL >/run-4
ARG BASE=again
RUN echo $BASE >/run-5
ARG PATH=/nowhere:$PATH
RUN echo $PATH >/run-6
FROM first
RUN echo $V $W $X $GLOBAL $BASE $PATH >/run-7
ARG ONE=1 TWO=$ONE
RUN echo $ONE $TWO >/run-8
ENV A=a B=$A
ENV C=c$A D="two words" E=it\'s
RUN printf "%s|" "$A" "$B" "$C" "$D" "$E" >/env
END
