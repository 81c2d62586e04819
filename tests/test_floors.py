"""The picture of the house stays true: which module may import which.

Every folder and module of src/gptlab stands on a floor and imports only floors below, or its own folder.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

from gptlab.cli import VERBS
from gptlab.model.folder import save_model
from gptlab.model.gpt import GPT, GPTShape
from gptlab.text.tokenizer import Tokenizer

SRC = Path(__file__).parents[1] / "src"
ORDER = """environment errors words; settings; device hub catalog; kernels text; data model; run; objectives generation;
evaluation; training; planning checks report; studies serving export; lab; __init__; commands; cli"""
FLOORS = {name: height for height, names in enumerate(ORDER.split(";")) for name in names.split()}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, full module name) of all that `path` imports, also inside functions."""
    package = ".".join(path.relative_to(SRC).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def faults(path: Path) -> Iterator[str]:
    place = list(path.relative_to(SRC / "gptlab").with_suffix("").parts)
    home, me = place[0], ".".join(["gptlab", *place])
    if home not in FLOORS:
        yield f"{path}:1: {home} stands on no floor"
        return
    for line, name in imports(path):
        top, part, *_ = [*name.split("."), ""]
        below = part in (home, "__version__") or FLOORS.get(part, FLOORS["__init__"]) < FLOORS[home]
        if top == "gptlab" and not below:
            yield f"{path}:{line}: {home} imports {name}, which does not stand below it"
        if reason := never(me, home, name):
            yield f"{path}:{line}: {name}: {reason}"


def never(me: str, home: str, name: str) -> str | None:
    """Why the module `me` in the folder `home` must not import `name`, whatever the floors say."""
    parts = [*name.split("."), "", ""]
    if home == "text" and parts[0] == "torch":
        return "text knows nothing of torch"
    if me == "gptlab.model.gpt" and parts[0] == "gptlab":
        return "model/gpt.py can be copied out and works"
    if parts[0] != "gptlab":
        return None
    ours, shared = parts[1:3], [["objectives", "base"], ["data", "batch"]]
    if me == "gptlab.training.loop" and ours[0] in ("objectives", "data", "model") and ours not in shared:
        return "the loop knows no concrete objective, data form or model"
    if home == ours[0] == "objectives" and ours not in shared:
        return "objectives share base.py alone"
    if home == ours[0] == "commands":
        return "commands share nothing; what two need is a function of the lab"
    return "generation: ids in, ids out" if home == "generation" and ours[0] == "text" else None


def test_every_import_goes_down() -> None:
    found = [fault for path in sorted((SRC / "gptlab").rglob("*.py")) for fault in faults(path)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("place", "line", "is_fault"),
    [
        ("model/gpt.py", "from torch import nn", False),
        ("model/gpt.py", "from gptlab.errors import ModelError", True),
        ("model/build.py", "from .gpt import GPT", False),
        ("model/build.py", "from gptlab.data.batch import Batch", True),
        ("data/corpus.py", "def f():\n    import gptlab.model.gpt", True),
        ("text/tokenizer.py", "import torch.nn", True),
        ("training/loop.py", "from gptlab.objectives.base import Objective", False),
        ("training/loop.py", "from gptlab.objectives.language import Language", True),
        ("training/loop.py", "from gptlab.model.gpt import GPT", True),
        ("objectives/dpo.py", "from gptlab.objectives.language import Language", True),
        ("objectives/dpo.py", "from gptlab.objectives.base import Objective", False),
        ("commands/train.py", "from gptlab import __version__, train", False),
        ("commands/train.py", "from gptlab.commands.report import report", True),
        ("run/run.py", "from gptlab import train", True),
        ("run/run.py", "import gptlab", True),
        ("__init__.py", "from gptlab.lab import train", False),
        ("__init__.py", "from gptlab.cli import main", True),
        ("report/report.py", "from gptlab.planning import memory", True),
        ("somewhere/new.py", "import json", True),
    ],
)
def test_the_rules_see_what_they_are_for(
    place: str, line: str, is_fault: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SRC", tmp_path)
    path = tmp_path / "gptlab" / place
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n", encoding="utf-8")
    assert bool(list(faults(path))) == is_fault


def loaded_after(code: str) -> set[str]:
    """The modules a fresh Python has loaded after `code`."""
    code = f"import sys\n{code}\nprint('loaded:', *sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.rpartition("loaded:")[2].split())


def called(*words: str) -> str:
    """A call of the command line that ends well."""
    return f"from gptlab.cli import main\ntry: main({list(words)})\nexcept SystemExit as end: assert not end.code"


def test_importing_gptlab_does_not_import_torch() -> None:
    assert not loaded_after("import gptlab") & {"torch", "numpy", "pydantic", "matplotlib"}


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_loads_nothing_heavy(verb: str) -> None:
    """What keeps `--help` under 0.3 s is what it does not load: torch alone takes more than a second."""
    loaded = loaded_after(called(*verb.split(), "--help"))
    assert not loaded & {"torch", "numpy", "pydantic", "matplotlib", "jinja2", "pyarrow"}


def test_a_model_is_opened_and_writes_without_torchs_compiler(tmp_path: Path) -> None:
    """torch._dynamo would be a third of what it loads."""
    tokenizer = Tokenizer.train(["to be or not to be"], 260)
    save_model(GPT(GPTShape(tokenizer.vocab_size, context=8, n_layer=1, n_head=1, n_embd=8)), tmp_path)
    tokenizer.save(tmp_path)
    assert "torch._dynamo" not in loaded_after(called("generate", str(tmp_path), "to"))
