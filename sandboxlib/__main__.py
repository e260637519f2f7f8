"""``python -m sandboxlib``: see `sandboxlib.cli`."""

from __future__ import annotations

import sys

from sandboxlib.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
