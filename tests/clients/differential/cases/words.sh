# engines: none
# Quotes, escapes and expansions in every place that has them.
echo a >a
cat >Dockerfile <<'END'
FROM base:1
ARG Q="x y" R='$Q' S=$Q T="a\"b" U=a\ b
ENV E1 legacy  value "q" $Q
ENV E2="$Q" E3='$Q' E4=$Q E5=a\ b E6="a\$b" E7=\$Q E8=${Q}z E9=${NONE:-d$R} E10=${Q:+yes} E11=${Q#x} E12=${Q/x/z} E13=${Q%%y} E14="tab	x"
LABEL "a b"="c d" e=f\ g h="multi\
line" legacy.x=1
LABEL legacy two words
LABEL l1="${E2#* }" l2="${E2%* }" l3=${E2//x/} l4=${NONE-z} l5=${NONE+z}
EXPOSE $NONE 80 ${NONE:-81}/udp
VOLUME $E2 /v$R ["x"]
STOPSIGNAL ${NONE:-9}
RUN echo $Q-$R-$S-$T-$U > /o; echo '$E2' $E13 >> /o
CMD ["a", "$Q"]
ENTRYPOINT $Q "x"
END
