"""Services that the HTTP routes call.

Each method takes the caller first where permission matters, checks what that caller may see and do,
and raises the errors of oncue.errors; the handler turns them into problem responses. A method
returns "accepted" only when the record is durable.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from oncue.dispatcher.services.blobs import BlobService
from oncue.dispatcher.services.cancellation import CancellationService
from oncue.dispatcher.services.dead_letters import DeadLetterService
from oncue.dispatcher.services.deployment.deployments import DeploymentService
from oncue.dispatcher.services.endpoints import EndpointService
from oncue.dispatcher.services.events import EventService
from oncue.dispatcher.services.functions import FunctionService
from oncue.dispatcher.services.history.replays import ReplayService
from oncue.dispatcher.services.history.reports import ReportService
from oncue.dispatcher.services.history.simulations import SimulationService
from oncue.dispatcher.services.many_tasks.lists import TaskListService
from oncue.dispatcher.services.many_tasks.retries import RetryService
from oncue.dispatcher.services.rules import RuleService
from oncue.dispatcher.services.status import StatusService
from oncue.dispatcher.services.tasks import TaskService
from oncue.dispatcher.services.tokens import TokenService
from oncue.dispatcher.services.traces import TraceService
from oncue.dispatcher.services.triggers import TriggerService
from oncue.dispatcher.services.view_snapshot import ViewSnapshotService


@dataclass(frozen=True, slots=True)
class Backend:
    """The services of one server."""

    server_id: str
    tasks: TaskService
    cancellation: CancellationService
    task_lists: TaskListService
    retries: RetryService
    blobs: BlobService
    view_snapshots: ViewSnapshotService
    functions: FunctionService
    endpoints: EndpointService
    deployments: DeploymentService
    rules: RuleService
    triggers: TriggerService
    events: EventService
    dead_letters: DeadLetterService
    tokens: TokenService
    status: StatusService
    traces: TraceService
    reports: ReportService
    replays: ReplayService
    simulations: SimulationService
    # Wait until the view has reached an `Oncue-Position`, 2 s at most.
    wait_for: Callable[[str], Awaitable[None]]
    # True once all that other servers have registered is in force here.
    sync_registry: Callable[[], Awaitable[bool]]
