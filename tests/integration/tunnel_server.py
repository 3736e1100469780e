"""Servers that the tests of tunnels run in a sandbox, standard library only: HTTP, a WebSocket echo, raw TCP."""

import base64
import hashlib
import http.server
import json
import socketserver
import struct
import threading

WEB, RAW = 8080, 9000

PAGE = """<!doctype html><title>waiting</title><p id=said></p>
<script>
  const said = document.getElementById("said");
  async function run() {
    const data = await (await fetch("data.json?x=1")).json();
    const socket = new WebSocket(new URL("ws", location.href).href.replace("http", "ws"), ["echo.v1"]);
    socket.onopen = () => socket.send("from the page");
    socket.onmessage = (event) => {
      said.textContent = data.word + ", " + event.data + ", " + socket.protocol;
      socket.close(1000);
    };
    socket.onclose = (event) => { document.title = "closed " + event.code; };
    socket.onerror = () => { document.title = "broken"; };
  }
  run().catch((error) => { document.title = "failed: " + error; });
</script>
"""


class Web(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.partition("?")[0]
        if self.headers.get("Upgrade", "").lower() == "websocket":
            self.echo()
        elif path == "/":
            self.answer("text/html", PAGE.encode())
        elif path == "/data.json":
            self.answer("application/json", json.dumps({"word": "hello", "headers": self.headers.items()}).encode())
        elif path == "/go":
            self.send_response(302)
            self.send_header("Location", "/data.json")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path == "/big":
            self.send_response(200)
            self.send_header("Content-Length", str(64 << 20))
            self.end_headers()
            for number in range(64):
                self.wfile.write(bytes([number]) * (1 << 20))
        elif path == "/events":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(b"data: first\n\n")
            self.rfile.read(1)  # until the other side has gone
        else:
            self.send_error(404)

    def do_POST(self):
        left, digest = int(self.headers["Content-Length"]), hashlib.sha256()
        while left:
            data = self.rfile.read(min(left, 1 << 20))
            digest.update(data)
            left -= len(data)
        self.answer("text/plain", digest.hexdigest().encode())

    def answer(self, kind, body):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def echo(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        if "Sec-WebSocket-Protocol" in self.headers:
            self.send_header("Sec-WebSocket-Protocol", self.headers["Sec-WebSocket-Protocol"])
        self.end_headers()
        self.close_connection = True
        while True:
            head, length = struct.unpack("!BB", self.rfile.read(2))
            length &= 127
            if length == 126:
                length = struct.unpack("!H", self.rfile.read(2))[0]
            elif length == 127:
                length = struct.unpack("!Q", self.rfile.read(8))[0]
            mask = self.rfile.read(4)
            data = bytes(byte ^ mask[place % 4] for place, byte in enumerate(self.rfile.read(length)))
            size = struct.pack("!B", length) if length < 126 else struct.pack("!BH", 126, length)
            self.wfile.write(struct.pack("!B", head) + size + data)
            if head & 15 == 8:
                return

    def log_message(self, *_):
        pass


class Raw(socketserver.StreamRequestHandler):
    """Says what came, once all of it has."""

    def handle(self):
        data = self.rfile.read()
        self.wfile.write(b"%d bytes " % len(data) + hashlib.sha256(data).hexdigest().encode())


class Threads(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True


web = http.server.ThreadingHTTPServer(("127.0.0.1", WEB), Web)
raw = Threads(("127.0.0.1", RAW), Raw)
threading.Thread(target=raw.serve_forever, daemon=True).start()
print("ready", flush=True)
web.serve_forever()
