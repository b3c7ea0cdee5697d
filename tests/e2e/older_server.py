"""Run `oncue` without the record kind that pauses rules in oncue.registry."""

from __future__ import annotations

import sys

from oncue.cli import main
from oncue.protocol.records import Deployment, EndpointRecord, FunctionRecord, TokenRecord
from oncue.protocol.topics import REGISTRY
from oncue.view import decoding, projector

if __name__ == "__main__":
    decoding._KINDS[REGISTRY] = FunctionRecord | EndpointRecord | Deployment | TokenRecord
    decoding._TAGS[REGISTRY] -= {"switch"}
    projector.KINDS -= 1
    sys.exit(main())
