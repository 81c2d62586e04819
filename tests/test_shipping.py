"""What a stranger gets: a wheel with all that belongs inside, and a quickstart that keeps its promise."""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command, cwd, **environment):
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_wheel_and_sdist_build_and_the_installed_wheel_finds_its_recipes(tmp_path):
    run(sys.executable, "-m", "build", "--outdir", str(tmp_path / "dist"), str(ROOT), cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    shipped = {
        folder: {path.name for path in (ROOT / "src/gptlab" / folder).glob("*.toml")}
        for folder in ("recipes", "studies")
    }
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for folder, files in shipped.items():
        inside = {Path(name).name for name in names if re.fullmatch(rf"gptlab/{folder}/[^/]+\.toml", name)}
        assert inside == files
    assert any(name.endswith("report.html.jinja") for name in names)
    assert any(name.endswith("LICENSE") for name in names)
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("requirements.lock") for name in archive.getnames())
    target = tmp_path / "installed"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target), str(wheel), cwd=tmp_path)
    listed = run(
        sys.executable, "-c", "import sys; from gptlab.cli import main; main(['recipes'])", cwd=tmp_path,
        PYTHONPATH=str(target),
    )  # fmt: skip
    listed_names = {line.split()[0] for line in listed.splitlines() if line.startswith("  ")}
    assert listed_names == {Path(name).stem for files in shipped.values() for name in files}


@pytest.mark.slow
def test_quickstart_reaches_a_quarter_of_the_unigram_model_in_its_four_minutes(tmp_path):
    run(str(Path(sys.executable).parent / "gptlab"), "quickstart", cwd=tmp_path, GPTLAB_CACHE=str(tmp_path / "cache"))
    scores = json.loads((tmp_path / "runs/quickstart/evaluation.json").read_text())["best"]["validation"]
    assert scores["perplexity"] <= scores["unigram_perplexity"] / 4
