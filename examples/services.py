"""Two services that find each other by name, one of them published, on networks of this host (as root)."""

import urllib.request

from sandboxlib import Network, Sandbox

# The store has no way out, and only who is on its network reaches it.
FRONT, BACK = Network.bridge("front"), Network.bridge("back", internal=True)
STORE = """
import http.server
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"forty-two")
http.server.HTTPServer(("", 80), Answer).serve_forever()
"""
WEB = """
import http.server, urllib.request
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with urllib.request.urlopen("http://store/") as found:
            text = b"the store says " + found.read()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text)
http.server.HTTPServer(("", 80), Answer).serve_forever()
"""

with (
    Sandbox(network=BACK, hostname="store") as store,
    Sandbox(network=[FRONT, BACK], hostname="web", ports={"127.0.0.1:0": 80}) as web,
    Sandbox(network=FRONT, hostname="guest") as guest,
):
    for sandbox, source in ((store, STORE), (web, WEB)):
        sandbox.popen(["python3", "-c", source])
        sandbox.wait_for(port=80, timeout=30)
    with urllib.request.urlopen(f"http://127.0.0.1:{web.port(80)}/") as page:
        print(page.read().decode())
    print("web is at", web.addresses())
    reach = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=2).status)"
    print(
        "the guest reaches web:", guest.run(["python3", "-c", reach, "http://web/"], text=True).stdout.strip()
    )
    tried = guest.run(["python3", "-c", reach, f"http://{store.addresses()['back'][0]}/"])
    print("the guest reaches the store:", tried.returncode == 0)
