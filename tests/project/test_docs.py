"""What the documentation says is what the package does: every code block, command, option, code and link."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image

import pathlens
from pathlens import analyses, errors
from pathlens.cli import app, entry, main
from pathlens.cli.options import parse_range
from pathlens.models import LoadedModel, load_model, save_weights, state_sha256
from pathlens.results.lesions import DELETE_BLOCKS
from pathlens.results.reordering import REORDER_BLOCKS
from pathlens.tables import read_table
from tests.helpers import ROOT
from tests.helpers.data_files import image_folder, noise, png, write

DOCS = ROOT / "docs"
RESULTS = ROOT / "results"
PAGES = sorted([ROOT / "README.md", RESULTS / "README.md", *DOCS.glob("*.md")])


# most of the time here is tracing, which more threads only disturb
pytestmark = pytest.mark.usefixtures("one_thread")


def fenced(page: Path, language: str) -> list[tuple[int, str]]:
    """The code blocks of a language, each with the line where its code begins."""
    text = page.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n"), match[1]) for match in found]


def shell_lines(page: Path) -> list[str]:
    return [line for _, code in fenced(page, "sh") for line in code.splitlines() if line.strip()]


def table_rows(page: Path, heading: str) -> list[list[str]]:
    """Cells of the Markdown table whose first column has this heading."""
    lines = page.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_the_main_entry_points_have_examples():
    for function in (pathlens.find_blocks, pathlens.deleted):
        assert ">>> " in (function.__doc__ or "")


# README: Python


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run documented code in, with the journals of sweeps in it too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that documented commands name, small and untrained."""
    folder = tmp_path_factory.mktemp("files")
    for _, code in fenced(ROOT / "README.md", "python"):
        first = code.splitlines()[0]
        if re.fullmatch(r"# \w+\.py", first):
            (folder / first.removeprefix("# ")).write_text(code)
    resnet56 = load_model("resnet56", "random").model.state_dict()
    published = {"state_dict": {f"module.{name}": value for name, value in resnet56.items()}, "best_prec1": 0.1}
    torch.save(published, folder / "resnet56-4bfd9763.th")
    torch.save(load_model("torchvision:resnet18", "random", num_classes=2).model.state_dict(), folder / "photos.pth")
    write(folder / "cifar10-jpeg" / "test.parquet", [png(pixels) for pixels in noise(12, 32, 32, 3)])
    image_folder(folder / "photos", {"cat": 4, "dog": 4})
    diverged = load_model("resnet20", "random").model.state_dict()
    diverged["conv1.weight"].fill_(float("nan"))
    torch.save(diverged, folder / "diverged.pth")
    (folder / "notes.txt").write_text("mine")
    for run in ("effective", "effective-lesions"):
        shutil.copytree(RESULTS / "digits54", folder / "runs" / run)
    trained = load_model()
    save_weights(folder / "runs" / "effective" / "weights.safetensors", trained.model, {})
    return folder


@pytest.fixture(scope="module")
def _traced_once() -> Iterator[None]:
    """Many commands are about the same network: its blocks are found once for all of them."""
    found: dict[object, object] = {}
    find = analyses.view_of

    def view_of(model: torch.nn.Module, example: torch.Tensor, *more: str | None, **options: bool) -> object:
        key = (state_sha256(model), tuple(example.shape), *more, *options.items())
        if key not in found:
            found[key] = find(model, example, *more, **options)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analyses, "view_of", view_of)
        yield


@contextlib.contextmanager
def linked(files: Path, workplace: Path) -> Iterator[None]:
    for path in files.iterdir():
        (workplace / path.name).symlink_to(path)
    yield


@pytest.mark.slow
def test_python_of_the_readme(workplace, capsys):
    names: dict[str, object] = {"__name__": "readme"}
    ran = 0
    for line, code in fenced(ROOT / "README.md", "python"):
        if not re.match(r"# \w+\.py\n", code):
            exec(compile("\n" * line + code, "README.md", "exec"), names)  # the lines are those of the page
            ran += 1
    assert ran >= 4
    assert "layer4.1" in capsys.readouterr().out
    assert len(read_table(workplace / "runs" / "python" / "delete-blocks.csv").rows) == 5


# README: commands

SIZES = ("--limit", "--blocks", "--count", "--swaps", "--samples", "--batch-size", "--epochs", "--points")


def reduced(arguments: list[str]) -> list[str]:
    """The same command over few images, blocks and samples."""
    verb, *rest = arguments
    kept, given = [], {}
    words = iter(rest)
    for word in words:
        if word in SIZES:
            given[word] = next(words)
        else:
            kept.append(word)
    for name in given.keys() & {"--blocks", "--count", "--swaps"}:
        assert parse_range(given[name], name)
    for name in given.keys() - {"--blocks", "--count", "--swaps"}:
        assert int(given[name]) > 0
    if verb in ("blocks", "unravel", "report"):
        assert not given
        return [verb, *kept]
    if verb == "train":
        # into a folder of its own: the one that is named holds the run that later commands read
        kept[kept.index("--out") + 1] += "-short"
        return [verb, *kept, "--epochs", "1", "--limit", "40", "--validation", "12"]
    few = {"--limit": "4", "--batch-size": "3"}
    if verb == "path-gradients":
        few |= {"--max-samples": "2", "--draws": "1"}
    elif verb == "reorder-blocks":
        few |= {"--swaps": "1:2", "--samples": "2"}
    elif verb == "signal-propagation":
        few["--limit"] = "6"  # no batch of a single image, which batch norms refuse
    elif verb == "loss-surface":
        few["--points"] = "3"
    elif verb == "blockdrop":
        few |= {"--epochs": "1", "--train-limit": "16", "--train-batch-size": "8", "--selection": "4"}
    elif "--count" in given:
        few |= {"--count": "1:2"} if "--search" in kept else {"--count": "1:2", "--samples": "2"}
    elif verb != "decompose":
        few |= {"--blocks": "0:1"}
    return [verb, *kept, *(word for pair in few.items() for word in pair)]


def pathlens_arguments(line: str) -> list[str] | None:
    """What a documented line gives to pathlens, or None where it is no such command."""
    words = shlex.split(line, comments=True)
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        options = get_args_parser().parse_args(words[1:])
        assert options.module
        assert options.training_script == "pathlens"
        return list(options.training_script_args)
    return words[1:] if words[0] == "pathlens" else None


COMMANDS = [line for line in shell_lines(ROOT / "README.md") if line.startswith(("pathlens ", "torchrun "))]


@pytest.mark.usefixtures("_traced_once")
@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_the_readme(line, workplace, files, capsys):
    arguments = pathlens_arguments(line)
    assert arguments
    small = reduced(arguments)
    with linked(files, workplace):
        code = main(small)
    out, err = capsys.readouterr()
    assert code == 0, err
    told = {
        "blocks": "multiply",
        "reorder-blocks": "swaps",
        "path-gradients": "length",
        "signal-propagation": "second moment grows by",
        "loss-surface": "filter-normalised",
        "decompose": "constants",
        "train": "validation",
    }
    assert told.get(small[0], "" if small[0] in ("unravel", "report") else "intact") in out
    named = {small[i]: Path(small[i + 1]) for i, word in enumerate(small) if word in ("--out", "--picture")}
    if small[0] in ("unravel", "report"):
        assert named["--out"].stat().st_size > 1000
    elif "--out" in named:
        stem = "history" if small[0] == "train" else small[0]
        assert {"manifest.json", f"{stem}.csv", f"{stem}.png"} <= set(os.listdir(named["--out"]))
    if "--picture" in named:
        assert named["--picture"].stat().st_size > 1000


def test_commands_of_the_other_pages_have_options_that_there_are():
    verbs = typer.main.get_command(app).commands
    parsed = 0
    for page in DOCS.glob("*.md"):
        shown = [
            line.removeprefix("$ ")
            for _, code in fenced(page, "text")
            for line in code.splitlines()
            if line[:2] == "$ "
        ]
        for line in (*shell_lines(page), *shown):
            if arguments := pathlens_arguments(line):
                verbs[arguments[0]].make_context(arguments[0], arguments[1:])
                parsed += 1
    assert parsed > 30


def test_other_lines_of_the_readme_name_what_there_is():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    others = [shlex.split(line, comments=True) for line in shell_lines(ROOT / "README.md") if line not in COMMANDS]
    text = (ROOT / "README.md").read_text()
    others += [shlex.split(code) for code in quoted(text) if code.startswith("make ")]
    assert ["make", "demo"] in others
    assert ["make", "test"] in others
    for program, *words in others:
        if program == "make":
            assert words[0] in targets
            for assignment in words[1:]:
                assert re.search(rf"^{assignment.partition('=')[0]} \?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
        else:
            assert (program, words[0]) == ("pip", "install")
            assert words[1] == "." or words[1].removeprefix(".[").removesuffix("]") in extras


def test_columns_of_the_readme_are_those_of_the_tables():
    described = {name for row in table_rows(ROOT / "README.md", "column") for name in quoted(row[0])}
    assert described == {column.name for column in (*DELETE_BLOCKS.columns, *REORDER_BLOCKS.columns)}


# Results


def test_the_table_in_the_readme_is_that_of_the_figure():
    (excerpt,) = [code for _, code in fenced(ROOT / "README.md", "text")]
    shown = [line.split() for line in excerpt.splitlines()[1:]]
    rows = read_table(RESULTS / "digits54" / "delete-blocks.csv").rows
    assert len(rows) == 55
    assert len(shown) > 3
    for words, row in zip(shown, rows, strict=False):
        error, low, high = (f"{100 * float(row[name] or 0):.2f}" for name in ("error", "error_low", "error_high"))
        which = [row["block"], row["name"], row["stage"], row["kind"]] if row["count"] else ["-", "intact", "-", "-"]
        paired = [] if row["p_holm"] is None else [f"{100 * row['difference']:+.2f}", f"{row['p_holm']:.4f}"]
        loss = f"{row['loss']:.4f}"
        wanted = [*map(str, which), error, low, "-", high, *paired, loss]
        assert words == ["<0.0001" if word == "0.0000" else word for word in wanted]


def run_folders() -> list[Path]:
    return sorted(path.parent for path in RESULTS.rglob("manifest.json"))


@pytest.mark.parametrize("folder", run_folders(), ids=lambda folder: folder.name)
def test_results_are_whole_and_made_as_the_index_says(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, facts in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == facts["sha256"]
    place = folder.relative_to(ROOT).as_posix()
    (line,) = [line for line in shell_lines(RESULTS / "README.md") if f"--out {place}" in line]
    arguments = pathlens_arguments(line)
    assert arguments
    assert arguments[0] == manifest["verb"]
    assert manifest["command"][1:] == arguments
    assert f"]({folder.relative_to(RESULTS).as_posix()}/)" in (RESULTS / "README.md").read_text()


def test_every_folder_of_results_is_in_the_index():
    index = (RESULTS / "README.md").read_text()
    for folder in (path for path in RESULTS.iterdir() if path.is_dir()):
        assert f"`{folder.name}/`" in index or f"]({folder.name}/)" in index


def test_no_result_names_a_place_on_a_machine():
    kinds = (".json", ".csv", ".md")
    written = [path for path in (*RESULTS.rglob("*"), *DOCS.rglob("*"), ROOT / "README.md") if path.suffix in kinds]
    assert written
    for path in written:
        assert not re.search(r"(?<![\w.\]])/(home|root|tmp|work|Users|mnt|opt|usr|var)/", path.read_text()), path


def test_pictures_are_small():
    pictures = [path for folder in (RESULTS, DOCS) for path in folder.rglob("*.png")]
    assert pictures
    for path in pictures:
        assert path.stat().st_size < 300_000
        with Image.open(path) as picture:
            assert picture.width > 500


# Exit codes


def error_classes() -> list[type[errors.PathlensError]]:
    return [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.PathlensError)]


def test_exit_codes_are_those_of_the_classes():
    rows = table_rows(DOCS / "exit-codes.md", "code")
    documented = {(quoted(name)[0], int(code)) for code, name, _ in rows if name}
    assert documented == {(kind.__name__, kind.exit_code) for kind in error_classes()}
    assert {int(code) for code, name, _ in rows if not name} == {0, entry.INTERRUPTED, entry._BROKEN_PIPE}
    for kind in error_classes():
        assert f"Exit code {kind.exit_code}." in (kind.__doc__ or "")


def exit_examples() -> list[tuple[str, str, int]]:
    (code,) = [code for _, code in fenced(DOCS / "exit-codes.md", "text")]
    return [(c, message, int(n)) for c, message, n in re.findall(r"^\$ (.+)\n(.+)\n\[(\d+)\]$", code, re.MULTILINE)]


def test_there_is_an_example_of_every_exit_code_that_can_be_shown():
    assert [code for *_, code in exit_examples()] == [2, 3, 4, 5, 6, 8]  # 7 needs a full disk


@pytest.mark.usefixtures("_traced_once")
@pytest.mark.parametrize(("command", "message", "code"), exit_examples())
def test_examples_of_exit_codes(command, message, code, workplace, files, capsys):
    with linked(files, workplace):
        assert main(shlex.split(command)[1:]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == message


# Interface and architecture


def test_interface_page_names_everything_public():
    text = (DOCS / "api.md").read_text()
    entries = re.findall(r"^- `(\w+)(?:\((.*?)\))?`:? ?", text, re.MULTILINE)
    documented = {name: arguments for name, arguments in entries if name in pathlens.__all__}
    assert sorted(documented) == sorted(pathlens.__all__)
    for name, arguments in documented.items():
        if inspect.isfunction(getattr(pathlens, name)):
            assert arguments.split(", ") == list(inspect.signature(getattr(pathlens, name)).parameters), name
    for kind in (pathlens.Block, LoadedModel):
        assert {field.name for field in dataclasses.fields(kind)} <= set(quoted(text))
    for attribute in re.findall(r"`view\.(\w+)", text):
        assert hasattr(pathlens.ResidualView, attribute)


def test_interface_page_names_every_option_of_the_studies():
    _, _, rest = (DOCS / "api.md").read_text().partition("The options of these, by keyword:\n\n")
    text, _, _ = rest.partition("\n\n")
    documented = [name for line in text.splitlines() if line.startswith("- `") for name in quoted(line.split(":")[0])]
    accepted = list(inspect.signature(analyses.evaluation.evaluating).parameters)
    assert documented == [name for name in accepted if name not in ("verb", "view", "data", "identity", "networks")]


def test_rooms_are_those_of_the_contracts():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    users = {
        module.removeprefix("pathlens."): {user.removeprefix("pathlens.") for user in contract["allowed_importers"]}
        for contract in contracts
        if contract["type"] == "protected"
        for module in contract["protected_modules"]
    }
    allowed = {quoted(room)[0]: set(quoted(rooms)) for room, _, rooms in table_rows(DOCS / "architecture.md", "room")}
    for room in allowed.keys() - {"errors", "version"}:
        assert (ROOT / "pathlens" / room).is_dir() or (ROOT / "pathlens" / f"{room}.py").is_file(), room
        expected = {user for user, rooms in allowed.items() if room in rooms}
        assert users[room] == ({"__main__"} if room == "cli" else {*expected, "cli"}), room


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target
