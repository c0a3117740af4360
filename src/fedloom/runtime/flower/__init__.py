"""The bridge to Flower 1.41.0, and the only place that imports it.

Flower carries letters between the server and its clients: one HTTPS port, nodes known by their keys, a mailbox for
each. What a letter says is ours (`runtime/letters.py`). Not used are Flower's round loop, its app bundles (code that
travels), its command line and its client process; nothing phones home.

- `parcels.py`: letters as Flower's objects and back
- `mailroom.py`: the process that holds mailboxes (Flower's SuperLink); `process.py` starts it
- `guard.py`: what stands before it
- `post.py`: the server's hand in it
- `node.py`: a client's
"""

import os

# Flower reads these when it is imported, and calls home without them.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"
