"""Told when a job ends, and sure that it was us: python examples/webhook_receiver.py 9000 whsec_...

GET /v1/webhook-secret tells the secret. The service calls a private address only where its operator allows it.
"""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

port, secret = int(sys.argv[1]), sys.argv[2]


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            event = Webhook(secret).verify(body, dict(self.headers.items()))
        except WebhookVerificationError:
            self.send_response(401)
        else:
            print(event["type"], event["job_id"], flush=True)
            self.send_response(204)
        self.end_headers()


HTTPServer(("127.0.0.1", port), Receiver).serve_forever()
