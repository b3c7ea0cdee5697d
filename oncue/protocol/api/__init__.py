"""Request and response bodies of the HTTP API (`/v1`).

The OpenAPI document is generated from these Structs; server and client share them. JSON names are
the field names. Ids are hex, times unix microseconds, sizes bytes.
"""

from oncue.protocol.api.base import Page, Problem, Request, Response
from oncue.protocol.api.blobs import BlobsMissing, BlobsRequest
from oncue.protocol.api.events import DeadInfo, Dismissed, DismissRequest, Emitted, EventInfo
from oncue.protocol.api.registry import (
    EndpointInfo,
    EndpointRequest,
    FunctionInfo,
    FunctionRequest,
    ParameterInfo,
    Registered,
    RevokedToken,
    TokenInfo,
    TokenRequest,
    parameter_infos,
)
from oncue.protocol.api.rules import (
    Deployed,
    DeployRequest,
    ExplainStep,
    Explanation,
    Fired,
    FunctionChange,
    RuleFile,
    RuleInfo,
)
from oncue.protocol.api.server import Health, Me
from oncue.protocol.api.tasks import (
    Accepted,
    AttemptInfo,
    BatchRequest,
    CancelRequest,
    FailureInfo,
    Outcome,
    RetryPolicy,
    TaskInfo,
    TaskRequest,
    TimelineEntry,
)
from oncue.protocol.api.triggers import TriggerDecision, TriggerFile, TriggerInfo, TriggerShown

__all__ = [
    "Accepted",
    "AttemptInfo",
    "BatchRequest",
    "BlobsMissing",
    "BlobsRequest",
    "CancelRequest",
    "DeadInfo",
    "DeployRequest",
    "Deployed",
    "DismissRequest",
    "Dismissed",
    "Emitted",
    "EndpointInfo",
    "EndpointRequest",
    "EventInfo",
    "ExplainStep",
    "Explanation",
    "FailureInfo",
    "Fired",
    "FunctionChange",
    "FunctionInfo",
    "FunctionRequest",
    "Health",
    "Me",
    "Outcome",
    "Page",
    "ParameterInfo",
    "Problem",
    "Registered",
    "Request",
    "Response",
    "RetryPolicy",
    "RevokedToken",
    "RuleFile",
    "RuleInfo",
    "TaskInfo",
    "TaskRequest",
    "TimelineEntry",
    "TokenInfo",
    "TokenRequest",
    "TriggerDecision",
    "TriggerFile",
    "TriggerInfo",
    "TriggerShown",
    "parameter_infos",
]
