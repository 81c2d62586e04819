"""Quality by the minute: validation loss against time beside nanoGPT, and of size = "auto" beside fixed depths.

    nanogpt   trains nanoGPT on the recipe's tokens at each learning rate; one that is in the JSON is not trained again
    cross     when a run of ours first was as good as nanoGPT's best at its end
    sizes     the recipe with size = "auto" and with fixed depths, for each length; a finished run is not run again

section.key=value changes the recipe, before the options or behind `--`. Hours by default; nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from output import HERE, machine, print_columns, write
from start import gptlab

if TYPE_CHECKING:
    from gptlab.run.run import Run
    from gptlab.settings import Tree

TIE = 0.01
"""Losses that differ by less are called equal: one per cent of perplexity."""

Curve = Sequence[tuple[float, float]]
"""(seconds trained, loss) in the order of time."""


def compare_rates(options: argparse.Namespace) -> None:
    """nanoGPT at each of the rates; the JSON is written after each."""
    from nanogpt_run import train_nanogpt

    from gptlab.training.prepare import prepare
    from gptlab.training.progress import Progress
    from gptlab.training.recipe import load_recipe

    recipe = load_recipe(options.recipe, *options.changes)
    if recipe.model.size == "auto":
        raise SystemExit("model.size = auto is ours: nanoGPT wants a recipe with a shape")
    data = prepare(recipe, Progress())
    chosen = {
        **recipe.model.numbers(), "dropout": recipe.model.dropout, "tie_head": recipe.model.tie_head,
        "batch_size": recipe.training.batch_size, "precision": recipe.training.precision, "seed": recipe.seed,
    }  # fmt: skip
    setting = {
        "runs": f"{recipe.name}, {', '.join(f'{k} {v}' for k, v in chosen.items())}, {options.minutes:g} minutes",
        "text": comparable(data.fingerprints, data.rows.context, recipe.validation.sampled_rows),
    }
    kept = read(options.out) if Path(options.out).exists() else {"setting": setting, "rates": {}}
    if kept["setting"] != setting:
        raise SystemExit(f"{options.out} holds other runs: {kept['setting']}. --out FILE names another file")
    what = "nanoGPT, compiled, on the recipe's tokens; neither compiling nor validating is in its seconds"
    result = {"what": what, **kept, **machine(None)}
    for rate in options.rates:
        if f"{rate:g}" not in result["rates"]:
            result["rates"][f"{rate:g}"] = train_nanogpt(recipe, data, options.nanogpt, rate, options.minutes)
            write(result, options)
    print_scores(f"nanoGPT, {setting['runs']}", result["rates"], ("steps", "tokens_per_second"))


def cross(options: argparse.Namespace) -> None:
    """Both curves are of the rows of `validation_sampled`; nanoGPT's best rate is the one with the least whole loss."""
    from gptlab.run.run import Run

    run, peer = Run.open(Path(options.run)), read(options.nanogpt_json)
    text = comparable(
        run.origin["data"]["fingerprints"], run.recipe["model"]["context"], run.recipe["validation"]["sampled_rows"]
    )
    if text != peer["setting"]["text"]:
        raise SystemExit(f"another text was scored: {text} in {run.folder}, {peer['setting']['text']} by nanoGPT")
    lines = run.metrics("validation_sampled") or run.metrics("validation")  # a small set is always scored whole
    ours = [(line["seconds"], line["loss"]) for line in lines]
    learned = {rate: each for rate, each in peer["rates"].items() if each["validation"]}
    if not learned:
        raise SystemExit(f"{options.nanogpt_json}: at each of its rates nanoGPT diverged; try lower ones")
    theirs = {rate: [(point["seconds"], point["loss"]) for point in each["curve"]] for rate, each in learned.items()}
    best = min(learned, key=lambda rate: learned[rate]["validation"]["loss"])
    end, target = theirs[best][-1]
    seconds = reached(ours, target)
    result = {
        "what": "when our run first was as good as nanoGPT's best at its end; between two points linear in log seconds",
        **machine(None), "run": str(run.folder), "setting": peer["setting"],
        "nanogpt": {"rate": best, "seconds": end, "loss": target, "validation": learned[best]["validation"]},
        "ours": {"seconds": seconds, "curve": ours, **run.evaluation.get("best", {})},
        "ratio": seconds and seconds / end,
    }  # fmt: skip
    write(result, options)
    draw(ours, theirs, best, Path(options.out))
    least = f"not reached; the least is {min(loss for _, loss in ours):.4f}"
    print(f"nanoGPT, rate {best}: {target:.4f} after {end:,.0f} s")
    print(f"{run.name}: {least if seconds is None else f'{seconds:,.0f} s, {seconds / end:.3f} of its time'}")


def comparable(checksums: Mapping[Any, str], context: int, sampled_rows: int) -> dict[str, Any]:
    """What two losses must have in common: the tokens learned from, and the rows scored."""
    splits = {name: checksums[name] for name in ("train", "validation")}
    return {**splits, "context": context, "sampled_rows": sampled_rows}


def reached(curve: Curve, target: float) -> float | None:
    """Seconds until the loss first was at or below the target; None where it never was. Between two points it is taken
    to fall in a straight line over the logarithm of time."""
    before: tuple[float, float] | None = None
    for seconds, loss in curve:
        if loss <= target:
            if before is None:
                return seconds
            share = (before[1] - target) / (before[1] - loss)
            return float(before[0] * (seconds / before[0]) ** share)
        before = seconds, loss
    return None


def draw(ours: Curve, theirs: Mapping[str, Curve], best: str, out: Path) -> None:
    """The curves as SVG and PNG beside the JSON; nanoGPT's best at its end as a line."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    from gptlab.report.drawing import BLUE, GRID, INK, ORANGE, STYLE

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.2), layout="constrained")
        axes = figure.add_subplot(xscale="log", xlabel="minutes trained", ylabel="validation loss (nats per token)")
        for name, curve in {
            **{f"nanoGPT, rate {rate}": curve for rate, curve in theirs.items()},
            "gptlab": ours,
        }.items():
            colour, line = (BLUE, "s-") if curve is ours else (ORANGE, "o-" if curve is theirs[best] else "--")
            minutes, losses = [at / 60 for at, _ in curve], [loss for _, loss in curve]
            axes.plot(minutes, losses, line, color=colour, markersize=3, label=name)
        axes.axhline(theirs[best][-1][1], color=INK, linewidth=0.8, linestyle=":")
        axes.grid(color=GRID, linewidth=0.6)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.legend()
        for ending in (".svg", ".png"):
            figure.savefig(out.with_suffix(ending), dpi=200)


def compare_sizes(options: argparse.Namespace) -> None:
    """Runs are kept in runs/ beside the JSON, each with the recipe that it was given."""
    what = 'size = "auto" beside fixed depths: the validation set by the best checkpoint'
    result = {"what": what, **machine(None), "recipe": options.recipe, "changes": options.changes, "minutes": {}}
    for minutes in options.minutes:
        depths = {"auto": None, **{f"depth-{depth}": depth for depth in options.depths}}
        found = {name: figures(train(options, minutes, name, depth)) for name, depth in depths.items()}
        compared = verdict({name: each["validation"]["loss"] for name, each in found.items()})
        result["minutes"][f"{minutes:g}"] = {**compared, "runs": found}
        write(result, options)
        title = (
            f"{minutes:g} minutes: auto {compared['auto']}, {compared['difference']:+.4f} to {compared['best_fixed']}"
        )
        print_scores(title, found, ("depth", "parameters", "tokens"))


def train(options: argparse.Namespace, minutes: float, name: str, depth: int | None) -> Run:
    """The run of this depth and length, by `gptlab train` in a process of its own."""
    from gptlab.run.files import write_text
    from gptlab.run.run import Run
    from gptlab.settings import to_toml

    runs = Path(options.out).parent / "runs"
    name = f"{Path(options.recipe).stem}-{minutes:g}min-{name}"
    recipe = runs / f"{name}.toml"
    runs.mkdir(parents=True, exist_ok=True)
    write_text(recipe, to_toml(sized(options.recipe, depth)))
    words = [gptlab(), "train", str(recipe), *options.changes, f"training.minutes={minutes:g}"]
    subprocess.run([*words, "--name", name, "--runs", str(runs)], check=True, stdout=sys.stderr)
    return Run.open(runs / name)


def sized(recipe: str, depth: int | None) -> Tree:
    """The recipe with width 64 · depth and heads of 64, as "auto" has them; None: with size = "auto", and without all
    that this chooses for itself."""
    from gptlab.settings import read_toml
    from gptlab.training.auto import CHOSEN
    from gptlab.training.recipe import find_recipe, load_recipe

    tree = read_toml(find_recipe(recipe))
    dropped = {"model.size", "model.n_layer", "model.n_head", "model.n_embd", *(CHOSEN if depth is None else ())}
    for section in ("model", "training", "optimizer"):
        tree[section] = {k: v for k, v in tree.get(section, {}).items() if f"{section}.{k}" not in dropped}
    shape = {"size": "auto"} if depth is None else {"n_layer": depth, "n_head": depth, "n_embd": 64 * depth}
    tree["model"] |= {**shape, "context": load_recipe(recipe).model.numbers()["context"]}
    return tree


def figures(run: Run) -> dict[str, Any]:
    """What is told of a run, from its files."""
    return {
        "depth": run.recipe["model"]["n_layer"], "dropout": run.recipe["model"]["dropout"],
        "parameters": run.origin["parameters"], "tokens": run.metrics("step")[-1]["tokens"],
        "seconds": run.state["elapsed_seconds"], "validation": run.evaluation["best"]["validation"],
    }  # fmt: skip


def verdict(losses: Mapping[str, float]) -> dict[str, Any]:
    """Whether the loss of "auto" is below the least of the others', and by how much."""
    best = min((name for name in losses if name != "auto"), key=lambda name: losses[name])
    difference = losses["auto"] - losses[best]
    auto = "ties" if abs(difference) < TIE else "wins" if difference < 0 else "loses"
    return {"auto": auto, "best_fixed": best, "difference": difference}


def print_scores(title: str, found: Mapping[str, Any], columns: Sequence[str]) -> None:
    """A line each: the whole numbers named, and the scores on the whole validation set; then what diverged."""
    scores = ("loss", "perplexity", "perplexity_per_word")
    rows = [
        [name, *(f"{each[key]:,.0f}" for key in columns), *(f"{each['validation'][key]:.4f}" for key in scores)]
        for name, each in found.items()
        if each["validation"]
    ]
    print(f"\n{title}")
    print_columns([["", *(key.replace("_", " ") for key in (*columns, *scores))], *rows])
    for name, each in found.items():
        if each.get("diverged"):
            print(f"  diverged: {name}: {each['diverged']}")


def read(file: str) -> dict[str, Any]:
    """An earlier result."""
    result: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    return result


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = made.add_subparsers(required=True, metavar="nanogpt | cross | sizes")
    peer, both, ours = (verbs.add_parser(name) for name in ("nanogpt", "cross", "sizes"))
    for each, work in ((peer, compare_rates), (both, cross), (ours, compare_sizes)):
        out = HERE / "results" / f"quality-{each.prog.split()[-1]}.json"
        each.set_defaults(work=work, quick=False)
        each.add_argument("--out", metavar="FILE", default=str(out), help="where the JSON goes (default: %(default)s)")
    for each in (peer, ours):
        each.add_argument("changes", nargs="*", metavar="section.key=value", help="changes to the recipe")
        each.add_argument("--recipe", default="wikitext2-cpu", help="(default: %(default)s)")
    peer.add_argument("--nanogpt", metavar="DIR", required=True, help="a checkout of nanoGPT")
    peer.add_argument("--minutes", type=float, default=30, help="of training at each rate (default: %(default)s)")
    peer.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3], help="(default: %(default)s)")
    both.add_argument("run", metavar="RUN", help="a run's folder")
    both.add_argument("--nanogpt-json", metavar="FILE", default=str(HERE / "results" / "quality-nanogpt.json"))
    ours.add_argument("--minutes", type=float, nargs="+", default=[3, 10, 30], help="(default: %(default)s)")
    ours.add_argument("--depths", type=int, nargs="+", default=[2, 4, 6], help="(default: %(default)s)")
    options = made.parse_args()
    options.work(options)


if __name__ == "__main__":
    main()
