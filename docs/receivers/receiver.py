"""A receiver of deliveries: it verifies their signatures and takes each record once.

    WEBHOOK_SECRET=whsec_… python3 docs/receivers/receiver.py 127.0.0.1:9000
"""
import base64
import binascii
import hashlib
import hmac
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_BODY_BYTES = 16 << 20  # at least the largest record of the topics
TOLERANCE = 300  # seconds: an older request may be one that somebody has recorded


def verify(key, headers, body):
    """Tells whether a delivery was signed with the key, and lately (Standard Webhooks)."""
    record = headers.get("webhook-id", "")
    timestamp = headers.get("webhook-timestamp", "")
    if not record or not timestamp.isascii() or not timestamp.isdigit():
        return False
    if abs(time.time() - int(timestamp)) > TOLERANCE:
        return False
    # The signature is over the bytes as they came: verify them before anything reads them.
    signed = f"{record}.{timestamp}.".encode() + body
    expected = b"v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())
    # While a secret is rotated there are two signatures, and one has to match.
    return any([hmac.compare_digest(expected, given.encode()) for given in headers.get("webhook-signature", "").split()])


class Receiver(BaseHTTPRequestHandler):
    """Takes deliveries. A real one keeps the ids where it keeps what it does with the records, in the
    same transaction: then a record is never taken twice, and never lost."""

    protocol_version = "HTTP/1.1"  # connections are used again
    timeout = 30
    key = b""
    done = set()  # of webhook-id
    lock = threading.Lock()

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True  # the body is still in it
            return self.answer(413)  # it will never fit
        body = self.rfile.read(int(length))
        if not verify(self.key, self.headers, body):
            return self.answer(401)
        record = self.headers["webhook-id"]
        with self.lock:
            if record not in self.done:
                # What this receiver does with a record.
                print(record, body.decode(errors="replace"), flush=True)
                self.done.add(record)
        self.answer(204)  # also the second time: it has the record

    def answer(self, status):
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


def main():
    try:
        secret = os.environ.get("WEBHOOK_SECRET", "")
        Receiver.key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        pass
    if not Receiver.key:
        sys.exit("WEBHOOK_SECRET must be the subscription's secret, whsec_…")
    host, _, port = sys.argv[1].rpartition(":")
    server = ThreadingHTTPServer((host, int(port)), Receiver)
    print(f"listening on http://{host}:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
