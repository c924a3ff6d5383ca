"""The environment of a run, for its provenance: versions, commit, machine, date and command line."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pathlens.tables import plain_json
from pathlens.version import __version__

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "numpy", "scipy", "pandas", "pyarrow")


def provenance(**stated: Any) -> dict[str, Any]:
    """The provenance of a table or manifest, as plain JSON: what is stated and the environment.

    Always there: ``date`` (UTC, ISO 8601), ``command`` (the command line as a list), ``versions`` (``python`` and the
    packages; null for those not installed), ``commit`` (of the package's own checkout, null outside one; ``-dirty``
    where tracked files differ) and ``hardware``. No package is imported for it; the GPU is named only where torch is
    loaded already.

    Args:
        **stated: what only the caller knows, such as ``seed`` and ``model``; it takes precedence over the environment.

    Raises:
        NumericsError: a value is NaN or infinite.
        UsageError: a value is not text, a number, a path, or a list or mapping of such.
    """
    environment = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
            "pathlens": __version__,
        },
        "commit": _commit(),
        "hardware": _hardware(),
    }
    return plain_json({**environment, **stated}, "the provenance")


def _command() -> list[str]:
    """The command line, with only the name of the program, whose folder depends on the machine."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return [Path(sys.argv[0]).name, *sys.argv[1:]]
    module = spec.name.removesuffix(".__main__")
    return [*(["pathlens"] if module == "pathlens" else ["python", "-m", module]), *sys.argv[1:]]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that this code is of: of its checkout, or what pip noted when it installed from a repository."""
    folder = Path(__file__).resolve().parent
    # Tracked, because a virtual environment may lie inside a checkout of something else.
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is not None:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", "..")
        return commit and commit + ("-dirty" if changed else "")
    try:
        noted = metadata.distribution("pathlens").read_text("direct_url.json")
        return json.loads(noted)["vcs_info"]["commit_id"] if noted else None
    except (metadata.PackageNotFoundError, ValueError, KeyError):
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    # Without GIT_DIR and its like, which a hook or another tool may have set for another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True, env=environment)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def _hardware() -> dict[str, Any]:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    hardware: dict[str, Any] = {
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "cores_allowed": allowed,
        "memory_bytes": _memory(),
        "gpus": [],
    }
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda"):
        hardware["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            hardware["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return hardware


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
