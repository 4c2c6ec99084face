"""What Hydra's launchers leave undone where a job or a cluster is lost, in the process that waits.

submitit's would end at the first lost job, while the others go on unwatched. Ray's would wait for
ever for a cluster whose head was started anew, which has never heard of the jobs; would be ended
without a report when the head stays away; and would be aborted by SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from dollyllama.interrupt import end_on_sigterm

_SECONDS = 2.0
#: What Ray's launcher asks for where nothing else is said.
_OBJECT_STORE_BYTES = 75 * 2**20


def prepare(launcher: Any) -> None:
    """Make this process, which is about to launch a sweep, ready for losses.

    launcher: its config. ValueError or ConnectionError when Ray cannot be had.
    """
    if ".submitit_launcher." in launcher._target_:
        _outlive_jobs()
    elif launcher._target_.endswith(".RayLauncher"):
        _join_cluster(launcher.ray.init)


def _outlive_jobs() -> None:
    """Let a lost job cost its own cell alone: say so, and wait for the others."""
    from submitit import Job
    from submitit.core.utils import UncompletedJobError

    results = Job.results

    def results_if_any(job: Any) -> list[Any]:
        try:
            return list(results(job))
        except UncompletedJobError:
            log = job.paths.stderr
            print(f"job {job.job_id} is lost ({job.state}); what it wrote: {log}", file=sys.stderr)
            return [JobReturn(status=JobStatus.COMPLETED)]

    Job.results = results_if_any


def _join_cluster(settings: Any) -> None:
    """Join Ray's cluster, or start one, before its launcher does: what Ray sets up is mended."""
    import ray
    from hydra_plugins.hydra_ray_launcher._launcher_util import start_ray

    settings.setdefault("object_store_memory", _OBJECT_STORE_BYTES)
    start_ray(settings)
    end_on_sigterm()  # in place of Ray's handler, which aborts

    address = ray.get_runtime_context().gcs_address
    joined = ray._raylet.GcsClient(address=address).cluster_id

    def watch() -> None:
        lost = "was started anew and does not know of this sweep"
        try:
            while ray._raylet.GcsClient(address=address).cluster_id == joined:
                time.sleep(_SECONDS)
        except ray.exceptions.RpcError:
            lost = "does not answer any more"
        print(f"Ray's head {lost}", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()
