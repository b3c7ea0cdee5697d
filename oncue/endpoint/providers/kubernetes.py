"""Provider of Kubernetes Jobs, by kubectl: one Job a block, one pod a node.

The Job's name is the mark, so the API itself refuses a second one. Pods are never restarted, and
not tried again: a block that fails has ended. The block's secret is a Secret of the same name,
which is deleted when the Job has ended.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from oncue.endpoint.options.providers import KubernetesOptions
from oncue.endpoint.providers.commands import CommandHung, Commands, Finished
from oncue.endpoint.providers.confirmation import Confirmation, exit_reason
from oncue.endpoint.providers.job_files import TAIL_BYTES, JobFiles
from oncue.endpoint.providers.jobs import (
    JobEnding,
    JobRequest,
    JobState,
    JobStatus,
    SchedulerAway,
    SubmissionRefused,
    SubmissionUnclear,
)

LABEL = "oncue.mark"
#: kubectl did not reach the API, so nothing was submitted.
_UNREACHED = re.compile(r"connection refused|was refused|no such host|no route to host|network is unreachable")
_REFUSED = ("Forbidden", "Invalid", "NotFound", "BadRequest", "error validating", "exceeded quota", "Unauthorized")
#: Variables by which kubectl finds and enters a cluster: of a pod, of clouds' logins, of proxies.
_LOGIN = ("KUBERNETES_", "AWS_", "AZURE_", "GOOGLE_", "CLOUDSDK_", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy")
_DELETED = JobStatus(JobState.ENDED, "deleted", "the Job was deleted", ending=JobEnding.CANCELLED)
_MOST_LOGS = 5  # read in one call


class KubernetesProvider:
    """Jobs of one namespace."""

    def __init__(self, options: KubernetesOptions, files: JobFiles, environ: Mapping[str, str] | None = None) -> None:
        self._options = options
        self._commands = Commands(options.command_timeout_ms / 1000, environ, also=_LOGIN)
        self._confirmation = Confirmation(files, self._ask_again, at_once=True)

    def _run(self, *words: str, stdin: str = "") -> Finished:
        """Run kubectl. Raises CommandHung, SchedulerAway if it cannot be started."""
        return self._commands.run("kubectl", *words, f"--namespace={self._options.namespace}", stdin=stdin)

    def _kubectl(self, *words: str) -> str:
        """Return the answer of kubectl. Raises SchedulerAway."""
        done = self._run(*words)
        if done.code != 0:
            raise SchedulerAway(done.why, command="kubectl")
        return done.out

    def submit(self, request: JobRequest) -> str:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests(request, self._options)})
        try:
            done = self._run("create", "--filename=-", "--output=name", stdin=text)
        except CommandHung as e:
            raise SubmissionUnclear(e.message, command="kubectl") from None
        if done.code == 0:
            return request.mark
        if _UNREACHED.search(done.err):
            raise SchedulerAway(done.why, command="kubectl")
        if any(word in done.why for word in _REFUSED):
            raise SubmissionRefused(done.why, command="kubectl", remedy="correct `provider:` in endpoint.yaml")
        # A link that broke, or AlreadyExists: this try or an earlier one may have gone through.
        raise SubmissionUnclear(done.why, command="kubectl")

    def jobs(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        listed = {job: _status(*facts) for job, facts in self._listed().items() if job in ids}
        known = self._confirmation.complete(ids, listed, whole=True)
        ended = [job for job, status in known.items() if status.state is JobState.ENDED]
        if ended:
            self._kubectl("delete", "secrets", *ended, "--ignore-not-found", "--wait=false")
        for job in [job for job in ended if known[job].exit][:_MOST_LOGS]:
            tail = self._run("logs", f"job/{job}", "--tail=40")
            known[job] = JobStatus(
                **{name: getattr(known[job], name) for name in JobStatus.__struct_fields__ if name != "stderr_tail"},
                stderr_tail=tail.out[-TAIL_BYTES:].strip(),
            )
        return known

    def find(self, marks: Sequence[str]) -> dict[str, str]:
        return {job: job for job in self._listed() if job in marks}

    def _listed(self) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Return the Jobs with their pods, by name."""
        out = self._kubectl("get", "jobs,pods", f"--selector={LABEL}", "--output=json")
        try:
            items = json.loads(out)["items"]
            found: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
                item["metadata"]["name"]: (item, []) for item in items if item["kind"] == "Job"
            }
            for item in items:
                mark = item["metadata"].get("labels", {}).get(LABEL, "")
                if item["kind"] == "Pod" and mark in found:
                    found[mark][1].append(item)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SchedulerAway(f"kubectl: its answer is not understood: {out[:200]!r}", command="kubectl") from None
        return found

    def _ask_again(self, job: str) -> JobStatus | None:
        found = self._kubectl("get", "job", job, "--ignore-not-found", "--output=name")
        return None if found.strip() else _DELETED

    def cancel(self, ids: Sequence[str]) -> None:
        self._kubectl("delete", "jobs,secrets", *ids, "--ignore-not-found", "--wait=false")
        self._confirmation.cancelled(ids)


def manifests(request: JobRequest, options: KubernetesOptions) -> list[dict[str, Any]]:
    """Return the Secret and the Job of a block."""
    labels = {LABEL: request.mark, "app.kubernetes.io/managed-by": "oncue"}
    metadata = {"name": request.mark, "labels": labels}
    amounts = {
        "cpu": str(request.cores or options.cores_per_node or ""),
        "memory": str(request.memory or options.memory_per_node or ""),
        "nvidia.com/gpu": str(request.gpus or options.gpus_per_node or ""),
    }
    resources = {name: amount for name, amount in amounts.items() if amount}
    container = {
        "name": "pool",
        "image": options.image,
        "command": ["/bin/sh", "-c", f"{options.worker_init}\nexec /bin/sh -c {_quoted(request.command)}"],
        "envFrom": [{"secretRef": {"name": request.mark}}],
        "resources": {"requests": resources, "limits": resources},
        "volumeMounts": [{"name": claim, "mountPath": path} for claim, path in options.volumes.items()],
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": bool(options.service_account),  # else tasks could use the API
        "enableServiceLinks": False,
        "containers": [container],
        "nodeSelector": options.node_selector,
        "volumes": [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in options.volumes],
    }
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    if options.image_pull_secret:
        pod["imagePullSecrets"] = [{"name": options.image_pull_secret}]
    if request.nodes > 1:
        pod["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {LABEL: request.mark}},
            }
        ]
    spec = {
        "parallelism": request.nodes,
        "completions": request.nodes,
        # A pod that fails is not tried again, and does not end the other nodes of its block.
        **({"completionMode": "Indexed", "backoffLimitPerIndex": 0} if request.nodes > 1 else {"backoffLimit": 0}),
        "activeDeadlineSeconds": request.walltime_s,
        "ttlSecondsAfterFinished": 3600,
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": dict(request.environment)},
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec},
    ]


def _quoted(command: str) -> str:
    return "'" + command.replace("'", "'\\''") + "'"


def _status(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> JobStatus:
    """Return the state of a Job and its pods."""
    nodes = tuple(dict.fromkeys(name for pod in pods if (name := pod.get("spec", {}).get("nodeName"))))
    for condition in job.get("status", {}).get("conditions") or ():
        if condition.get("status") != "True" or condition.get("type") not in ("Complete", "Failed"):
            continue
        reason = condition.get("reason", "")
        code = max((c for pod in pods for c in _exit_codes(pod)), default=None)
        if condition["type"] == "Complete":
            return JobStatus(JobState.ENDED, "Complete", "", nodes, JobEnding.COMPLETED, 0)
        ending = JobEnding.WALLTIME if reason == "DeadlineExceeded" else JobEnding.FAILED
        words = condition.get("message") or reason
        return JobStatus(
            JobState.ENDED, "Failed", f"{words} ({exit_reason(code)})" if code else words, nodes, ending, code
        )
    if any(pod.get("status", {}).get("phase") == "Running" for pod in pods):
        return JobStatus(JobState.RUNNING, "Running", "", nodes)
    reasons = [reason for pod in pods if (reason := _waits_for(pod))]
    return JobStatus(JobState.PENDING, "Pending", reasons[0] if reasons else "its pods are not made yet", nodes)


def _exit_codes(pod: Mapping[str, Any]) -> list[int]:
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    ended = [status.get("state", {}).get("terminated") for status in statuses]
    return [int(state["exitCode"]) for state in ended if state and "exitCode" in state]


def _waits_for(pod: Mapping[str, Any]) -> str:
    status = pod.get("status", {})
    for container in status.get("containerStatuses") or ():
        waiting = container.get("state", {}).get("waiting") or {}
        if waiting.get("reason", "ContainerCreating") != "ContainerCreating":
            return f"{waiting['reason']}: {waiting.get('message', '')}"
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return str(condition.get("message") or condition.get("reason", ""))
    return ""
