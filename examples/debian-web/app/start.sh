#!/bin/sh
# Starts the application, then nginx in front of it. Neither needs root, and both write below /tmp only.
set -eu
work=$(mktemp -d /tmp/web.XXXXXX)
python3 /srv/app/server.py "$work/app.sock" &
while [ ! -S "$work/app.sock" ]; do
    kill -0 $! || exit 1
    sleep 0.05
done
sed -e "s|@WORK@|$work|g" -e "s|@PORT@|$PORT|g" /srv/app/nginx.conf >"$work/nginx.conf"
exec nginx -e "$work/error.log" -c "$work/nginx.conf"
