"""Talk with a program that runs on: lines in, lines out, and a signal at the end."""

import signal
import sys

from sandboxlib import PIPE, Sandbox

SERVER = "for line in iter(input, ''): print(line[::-1], flush=True)"

with Sandbox() as sb, sb.popen([sys.executable, "-c", SERVER], stdin=PIPE, stdout=PIPE, text=True) as server:
    for word in ("stressed", "drawer"):
        print(word, file=server.stdin, flush=True)
        print(word, "->", server.stdout.readline().strip())
    server.send_signal(signal.SIGTERM)
    print("ended by signal", -server.wait(timeout=10))
