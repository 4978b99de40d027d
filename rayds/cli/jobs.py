"""`rayds submit` and `rayds jobs`: commands as jobs of a Ray cluster."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any, NoReturn

import click

from rayds import __version__
from rayds.cli._common import Command, Group, extra_words, note, opt, stacked
from rayds.cli._tables import table
from rayds.errors import RaydsError, UsageError

if TYPE_CHECKING:
    from rayds.cli._remote import Remote
    from rayds.jobs import Access, Job, Jobs

SUBMIT_EXAMPLES = """
    rayds submit -- convert -i s3://bucket/coco -f rayds -o s3://bucket/items
    rayds submit --address http://127.0.0.1:8265 --no-wait -- convert ...
    rayds submit --env-file s3.env -- convert -i s3://bucket/voc -f yolo ...
"""
JOBS_EXAMPLES = """
    rayds jobs list
    rayds jobs logs -f rayds-convert-0f3a91c2
    rayds jobs stop rayds-convert-0f3a91c2
"""

cluster_options = stacked(
    opt("--address", metavar="URL", section="Cluster",
        help="The cluster's Jobs server; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS or http://127.0.0.1:8265."),
    opt("--require-auth", is_flag=True, section="Cluster", help="Fail when the cluster takes jobs without a token."),
    opt("--insecure", is_flag=True, section="Cluster", help="Send the token over plain http to another machine."),
)  # fmt: skip

json_option = opt("--json", "as_json", is_flag=True, section="Output", help="Print JSON on stdout.")


@click.command(cls=Command, takes_extra=True, extra="-- COMMAND ...", examples=SUBMIT_EXAMPLES)
@cluster_options
@opt(
    "--name",
    metavar="NAME",
    section="Job",
    help="A name for the job, part of its id; default: the command's.",
)
@opt(
    "--wait/--no-wait",
    default=True,
    section="Job",
    help="Show the job's output until it ends (the default), or not.",
)
@opt(
    "--env-file",
    metavar="FILE",
    section="Job",
    help="KEY=VALUE lines: variables of the job. Ray's dashboard shows them to those who may open it.",
)
@opt(
    "--num-cpus",
    type=click.FloatRange(min=0),
    metavar="N",
    section="Job",
    help="CPUs to reserve for the command itself, which then may run on a worker node; its tasks take theirs apart.",
)
@opt(
    "--ship",
    type=click.Choice(("auto", "always", "never")),
    default="auto",
    show_default=True,
    section="Job",
    help="Send this rayds and local plug-ins along: where the cluster's differs, always, or never.",
)
@opt(
    "--python",
    metavar="PROGRAM",
    section="Job",
    help="The cluster's Python that has Ray; default: the one that runs Ray's workers.",
)
@json_option
@click.pass_context
def submit(
    ctx: click.Context,
    address: str | None,
    require_auth: bool,
    insecure: bool,
    name: str | None,
    wait: bool,
    env_file: str | None,
    num_cpus: float | None,
    ship: str,
    python: str | None,
    as_json: bool,
) -> None:
    """Run a command of rayds as a job of a Ray cluster.

    The command is checked here first. Files that it names (label maps, scripts, small models) go along; its data must be
    where all nodes see it: in a bucket or a shared folder. Ctrl-C leaves the job running and says how to follow it.

    Exit code: that of the command; 130 when the job was stopped, or no longer followed.
    """
    from rayds.cli._remote import check_command
    from rayds.cli.main import cli
    from rayds.jobs import check_secrets, open_access, rayds_digest
    from rayds.jobs import env_file as read_env

    words = extra_words(ctx)
    check_secrets(words)
    remote = check_command(words, cli)
    variables = read_env(env_file) if env_file else {}
    if variables:
        _warn(f"{', '.join(variables)}: Ray's dashboard shows a job's variables to all who may open it")
    access = open_access(address, insecure=insecure, require_auth=require_auth, warn=_warn, note=note)
    jobs = _connect(access)
    told = _check_cluster(jobs, remote, python)
    lacks = told["digest"] != rayds_digest()
    python = python or told["executable"]
    ship_rayds = ship == "always" or (ship == "auto" and lacks)
    id = _send(jobs, remote, variables, name, num_cpus, python, ship_rayds, ship != "never")
    if not wait:
        click.echo(json.dumps({"id": id, "address": access.url}) if as_json else id)
        _tell_how(id, access.url)
        return
    note(f"job {id}")
    job = _follow(jobs, id, to_stderr=as_json)
    if as_json:
        click.echo(json.dumps(job.to_json(), indent=2))
    _end(job)


def _connect(access: Access) -> Jobs:
    """The jobs of a cluster of the same Ray as this one."""
    from rayds.jobs import Jobs

    jobs = Jobs(access)
    import ray

    if access.version != ray.__version__:
        raise UsageError(
            f"{access.url} runs Ray {access.version}, this is {ray.__version__}; both must be the same: "
            f"pip install 'ray[data,default]=={access.version}'"
        )
    return jobs


def _check_cluster(jobs: Jobs, remote: Remote, python: str | None) -> dict[str, Any]:
    """Compare the cluster with this machine and the paths with its nodes; what the cluster told of itself."""
    import ray

    from rayds.jobs import check_paths, check_versions, look

    told = jobs.probe(python, remote.inputs, remote.outputs)
    check_versions(told, tuple(sys.version_info[:3]), ray.__version__, jobs.access.url)
    if remote.inputs or remote.outputs:
        check_paths(told, remote.inputs, remote.outputs, {p: look(p) for p in remote.inputs}, _warn)
    return told


def _send(
    jobs: Jobs, remote: Remote, variables: dict[str, str], name: str | None, num_cpus: float | None, python: str,
    ship_rayds: bool, ship_plugins: bool,
) -> str:  # fmt: skip
    """Pack what goes along, and send the job; returns its id."""
    from rayds.jobs import Package, local_plugins

    with tempfile.TemporaryDirectory(prefix="rayds-job-") as folder:
        package = Package(folder)
        if ship_rayds:
            note(f"sending rayds {package.add_rayds()}, which the cluster's nodes lack")
        for dist in local_plugins() if ship_plugins else []:
            package.add_plugin(dist)
            note(f"sending the plug-in {dist.name}")
        words = remote.shipped(package.add_file)
        for file in dict.fromkeys(remote.files):
            note(f"sending {file}")
        return jobs.submit(
            shlex.join([python, "-m", "rayds", *words]),
            package,
            variables,
            kind=name or remote.name,
            metadata={
                "rayds_command": shlex.join(["rayds", *words]),
                "rayds_version": __version__,
                "name": name or "",
            },
            num_cpus=num_cpus,
        )


def _follow(jobs: Jobs, id: str, to_stderr: bool = False) -> Job:
    """Show what a job prints until it ends; Ctrl-C leaves it running."""
    try:
        for text in jobs.follow(id):
            click.echo(text, nl=False, err=to_stderr)
        return jobs.job(id)
    except KeyboardInterrupt:
        note(f"\njob {id} goes on")
        _tell_how(id, jobs.access.url)
        raise click.exceptions.Exit(130) from None


def _tell_how(id: str, url: str) -> None:
    note(f"follow it: rayds jobs logs -f {id} --address {url}")
    note(f"stop it:   rayds jobs stop {id} --address {url}")


def _end(job: Job) -> NoReturn:
    """End with the job's code, and say why when that is not 0."""
    from rayds.jobs import exit_code

    code = exit_code(job)
    if code:
        note(f"job {job.id}: {job.status}")
        if job.code is None:  # its process did not end by itself: the log does not say why
            note(job.message)
    raise click.exceptions.Exit(code)


def _warn(text: str) -> None:
    click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {text}", err=True)


@click.group(cls=Group, examples=JOBS_EXAMPLES)
def jobs() -> None:
    """List, follow and stop the jobs of a cluster."""


def _jobs(address: str | None, require_auth: bool, insecure: bool) -> Jobs:
    from rayds.jobs import Jobs, open_access

    return Jobs(open_access(address, insecure=insecure, require_auth=require_auth, warn=_warn, note=note))


@jobs.command(name="list", cls=Command)
@cluster_options
@opt("--all", "everything", is_flag=True, section="Output", help="Other jobs of the cluster too.")
@json_option
def list_jobs(
    address: str | None, require_auth: bool, insecure: bool, everything: bool, as_json: bool
) -> None:
    """List the jobs that rayds sent, the latest first."""
    found = _jobs(address, require_auth, insecure).list()
    found = [j for j in found if everything or (j.ours and not j.probe)]
    if as_json:
        click.echo(json.dumps([j.to_json() for j in found], indent=2))
        return
    rows = [(j.id, j.status, _when(j.start), _lasted(j), j.command) for j in found]
    click.echo(table(("id", "status", "started", "ran", "command"), rows) if rows else "no jobs")


@jobs.command(cls=Command)
@click.argument("id")
@cluster_options
@json_option
def status(id: str, address: str | None, require_auth: bool, insecure: bool, as_json: bool) -> None:
    """Tell how the job ID is. Exit code 0, also for a failed job."""
    job = _jobs(address, require_auth, insecure).job(id)
    if as_json:
        click.echo(json.dumps(job.to_json(), indent=2))
        return
    click.echo(f"{job.id}: {job.status}")
    click.echo(f"command: {job.command}")
    click.echo(f"started: {_when(job.start)}, ran {_lasted(job)}")
    click.echo(job.message)


@jobs.command(cls=Command)
@click.argument("id")
@opt(
    "-f",
    "--follow",
    is_flag=True,
    section="Output",
    help="Go on until the job ends; the exit code is the job's.",
)
@cluster_options
def logs(id: str, follow: bool, address: str | None, require_auth: bool, insecure: bool) -> None:
    """Print what the job ID has printed."""
    found = _jobs(address, require_auth, insecure)
    found.job(id)
    if follow:
        _end(_follow(found, id))
    click.echo(found.logs(id), nl=False)


@jobs.command(cls=Command)
@click.argument("id")
@cluster_options
@opt(
    "--wait/--no-wait",
    default=True,
    section="Output",
    help="Wait until it has stopped (the default), or not.",
)
@json_option
def stop(id: str, address: str | None, require_auth: bool, insecure: bool, wait: bool, as_json: bool) -> None:
    """Stop the job ID. What it was writing is not published."""
    found = _jobs(address, require_auth, insecure)
    asked = found.stop(id)
    end = time.monotonic() + 60
    job = found.job(id)
    while wait and not job.ended:
        if time.monotonic() > end:
            raise RaydsError(
                f"job {id} is still {job.status} a minute after it was asked to stop; see 'rayds jobs status'"
            )
        time.sleep(0.2)
        job = found.job(id)
    if as_json:
        click.echo(json.dumps(job.to_json(), indent=2))
    else:
        click.echo(f"{id}: {job.status}" if asked else f"{id} had ended already: {job.status}")


def _when(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "not yet"


def _lasted(job: Job) -> str:
    if job.start is None:
        return "-"
    seconds = int((job.end or time.time()) - job.start)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
