"""Networks from a user's own Python file, named ``path/file.py:CALLABLE``."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from torch import Tensor, nn

from pathlens.errors import ModelError, PathlensError, described, one_line


def is_user_spec(spec: str) -> bool:
    """Whether a spec names a Python file: ``FILE.py`` or ``FILE.py:CALLABLE``."""
    return spec.endswith(".py") or spec.rpartition(":")[0].endswith(".py")


def load_user_model(spec: str) -> tuple[nn.Module, Tensor | None, tuple[str, ...]]:
    """Run a user's callable.

    What the file prints goes to stderr, because stdout is for results. Wrappers of ``torch.compile`` and
    ``DataParallel`` are taken off and reported.

    The file may import modules and packages that lie beside it, also when the network runs. A call imports them anew
    where one of them has changed or those of another folder were imported, so that they are this file's, as they are
    now; a network that imports them when it runs finds those of the file that was loaded last. What was imported before
    the call that first needed it stays.

    Args:
        spec: ``path/file.py:CALLABLE``, split at the last colon.

    Returns:
        The module, the example input (on the CPU) or None, and notes.

    Raises:
        ModelError: the file or callable is missing, raises, or returns something else.
    """
    if spec.endswith(".py"):
        raise ModelError(f"{spec}: which callable in it builds the network? Give {spec}:CALLABLE")
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not os.path.isfile(path):
        raise ModelError(f"{spec}: no file {file}: check the path")
    with _running(path, spec):
        module = _import(path)
        if not hasattr(module, name):
            public = [n for n in vars(module) if not n.startswith("_") and callable(getattr(module, n))]
            names = difflib.get_close_matches(name, public, n=3) or public[:6]
            raise ModelError(f"{file} has no {name!r}: it has {', '.join(names) or 'no callable'}")
        build = getattr(module, name)
        if not callable(build):
            raise ModelError(f"{spec} is a {type(build).__name__}, not a callable that returns a network")
        # A module instance is callable too, but calling it would run its forward pass.
        result = build if isinstance(build, nn.Module) else build()
    return _model_of(result, spec)


def _model_of(result: object, spec: str) -> tuple[nn.Module, Tensor | None, tuple[str, ...]]:
    model, example = result if isinstance(result, tuple | list) and len(result) == 2 else (result, None)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{spec} returned {described(result)}: return a torch.nn.Module, or a pair of module and example input"
        )
    if example is not None and not isinstance(example, Tensor):
        raise ModelError(f"{spec} returned {described(example)} as example input: return one tensor with a batch axis")
    if example is not None and (example.is_meta or not example.dim()):
        lacks = "values (meta)" if example.is_meta else "a batch axis"
        raise ModelError(f"{spec} returned an example input without {lacks}: return one tensor of shape (N, ...)")
    notes: list[str] = []
    wrappers = (("_orig_mod", "torch.compile"), ("module", "a data-parallel wrapper"))
    while True:
        attribute, what = next(
            (w for w in wrappers if type(model).__name__ in _WRAPPER_CLASSES and hasattr(model, w[0])), (None, None)
        )
        if attribute is None:
            break
        model = getattr(model, attribute)
        notes.append(f"unwrapped {what}")
    return model, None if example is None else example.detach().cpu(), tuple(notes)


_WRAPPER_CLASSES = ("OptimizedModule", "DataParallel", "DistributedDataParallel")


@contextlib.contextmanager
def _running(path: Path, spec: str) -> Iterator[None]:
    """Run foreign code: imports from its folder work, its prints go to stderr, its exceptions become one line."""
    folder = str(path.resolve().parent)
    neighbours = _forget_neighbours(folder)
    before = frozenset(sys.modules) - neighbours
    sys.path.insert(0, folder)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except PathlensError:
        raise
    except (Exception, SystemExit) as error:  # foreign code may raise anything
        raise ModelError(
            f"{spec} raised {type(error).__name__}: {one_line(error, 300)}: run the file alone to see where"
        ) from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
        is_added = folder not in sys.path
        if is_added:  # at the end, where it hides nothing, for what a network imports when it runs
            sys.path.append(folder)
        _loaded.append(_Loaded(folder, before, is_added, _neighbours(folder, before)))


@dataclass(frozen=True)
class _Loaded:
    """A folder of which a file was loaded, and the modules beside it.

    Attributes:
        folder: of the file.
        before: names of the modules that had been imported before.
        is_added: whether the folder was added to ``sys.path``.
        neighbours: name -> hash of the source of each module beside the file, when it was loaded.
    """

    folder: str
    before: frozenset[str]
    is_added: bool
    neighbours: dict[str, str | None]


#: by the last load, with those inside it
_loaded: list[_Loaded] = []


def _forget_neighbours(folder: str) -> frozenset[str]:
    """Let the modules beside the file that was loaded last be imported anew, where they have changed or are another's.

    Args:
        folder: of the file that is loaded next.

    Returns:
        Names of the modules that stay.
    """
    stay: set[str] = set()
    for one in _loaded:
        now = _neighbours(one.folder, one.before)
        if one.folder == folder and now == one.neighbours:
            stay |= now.keys()
        else:
            for name in now:
                sys.modules.pop(name, None)
        if one.is_added:
            with contextlib.suppress(ValueError):
                sys.path.remove(one.folder)
    _loaded.clear()
    return frozenset(stay)


def _neighbours(folder: str, before: frozenset[str]) -> dict[str, str | None]:
    """Modules of a folder that were imported since, with hashes of their sources; None where there is none."""
    new = set(sys.modules) - before
    tops = {name for name in new if "." not in name and _lies_in(folder, name)}
    found: dict[str, str | None] = {}
    for name in (name for name in list(sys.modules) if name.partition(".")[0] in tops):
        try:
            source = Path(str(getattr(sys.modules[name].__spec__, "origin", None))).read_bytes()
        except OSError:
            found[name] = None
        else:
            found[name] = hashlib.sha256(source).hexdigest()
    return found


def _lies_in(folder: str, name: str) -> bool:
    """Whether a module is a file of a folder, or a package in it; not what is installed somewhere below."""
    spec, place = getattr(sys.modules[name], "__spec__", None), os.path.join(folder, name)
    if not isinstance(spec, ModuleSpec):
        return False
    return spec.origin == f"{place}.py" or place in (spec.submodule_search_locations or ())


def _import(path: Path) -> ModuleType:
    resolved = path.resolve()
    # A unique name, because a user's file may have the name of an installed package.
    name = f"pathlens_user_{resolved.stem}_{hashlib.sha256(str(resolved).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, resolved)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look the module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
