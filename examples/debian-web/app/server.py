"""The application behind nginx: says who serves, on a Unix socket."""

import http.server
import json
import os
import pwd
import socketserver
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({
            "greeting": "hello from a container",
            "user": pwd.getpwuid(os.getuid()).pw_name,
            "workdir": os.getcwd(),
            "path": self.path,
        }, sort_keys=True).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "nginx"  # a Unix socket's peer has no address

    def log_message(self, format, *args):
        pass


socketserver.UnixStreamServer(sys.argv[1], Handler).serve_forever()
