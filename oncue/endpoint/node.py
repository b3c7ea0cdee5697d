"""Process of a node: `python -m oncue.endpoint.node --block ID --agent ADDRESS`.

One a node of a batch job, started by the job's launcher. The secret key of the block is in the
variable ONCUE_NODE_SECRET. It is read once: this process starts itself anew without it, so that
tasks do not find it in /proc. Only then is the rest imported (nodes/command.py).
"""

from __future__ import annotations

import os
import sys

from oncue.endpoint.nodes.block_secret import hide_secret


def main() -> int:
    hide_secret(os.environ)
    from oncue.endpoint.nodes.command import run_node

    return run_node()


if __name__ == "__main__":
    sys.exit(main())
