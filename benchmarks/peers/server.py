"""A stack's server, in a process of its own.

python -m peers.server     takes `Serve` as JSON on standard input, gives `Ready`; serves until it is killed
"""

from __future__ import annotations

import sys
from importlib import import_module

from peers.children import Ready, Serve, allow_many_connections
from zcrpc.lab.processes import hear, say


def main() -> None:
    """Errors go to standard error, status 1."""
    order = hear(Serve)
    allow_many_connections()
    adapter = import_module(f"peers.adapters.{order.adapter}")
    try:
        adapter.RUNTIME.run(adapter.serve(order.download_bytes, lambda port: say(Ready(port))))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
