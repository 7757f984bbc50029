# What ENTRYPOINT does to a CMD, inherited or not, and their empty forms.
cat >Dockerfile <<'END'
FROM base:1 AS one
CMD ["one"]
ENTRYPOINT ["two"]
FROM one AS three
ENTRYPOINT ["four"]
FROM three
CMD []
SHELL ["/bin/sh", "-c"]
HEALTHCHECK NONE
END
