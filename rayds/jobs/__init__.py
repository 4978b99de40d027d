"""Commands as jobs of a Ray cluster: the way in (auth), what goes along (packing), which paths it may name (paths), and
the jobs themselves (client). Nothing here imports Ray before a cluster is asked."""

from rayds.jobs._probe import look
from rayds.jobs.auth import Access, open_access
from rayds.jobs.client import Job, Jobs, check_versions, exit_code
from rayds.jobs.packing import Package, env_file, local_plugins, rayds_digest
from rayds.jobs.paths import check_paths, check_secrets

__all__ = [
    "Access",
    "Job",
    "Jobs",
    "Package",
    "check_paths",
    "check_secrets",
    "check_versions",
    "env_file",
    "exit_code",
    "local_plugins",
    "look",
    "open_access",
    "rayds_digest",
]
