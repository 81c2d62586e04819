"""gptlab: the whole life of a GPT-2-class language model on the machine you have.

    import gptlab

    run = gptlab.train("mini-gpt", "training.minutes=10", data=["my-book.txt"])
    model = gptlab.open_model(run.folder)

Importing this imports nothing heavy: each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptlab.errors import GptlabError, UserError
    from gptlab.evaluation.answers import Answer, answer
    from gptlab.evaluation.classify import Classification
    from gptlab.evaluation.conversation import Conversation, Parameters
    from gptlab.evaluation.samples import complete
    from gptlab.export.export import export_model
    from gptlab.generation.decoder import Decoder
    from gptlab.generation.sampling import Sampling
    from gptlab.lab import classify, evaluate, prepare, study, train
    from gptlab.model.classifier import GPTClassifier, RNNClassifier
    from gptlab.model.gpt import GPT, GPTShape
    from gptlab.model.rnn import RNN, RNNShape
    from gptlab.report.diff import RunDiff, diff_runs
    from gptlab.report.listing import RunRow, list_runs
    from gptlab.report.report import write_report
    from gptlab.run.open import OpenModel, open_model
    from gptlab.run.run import Run
    from gptlab.studies.study import Study
    from gptlab.text.dialogue import Message, Template
    from gptlab.text.tokenizer import Tokenizer
    from gptlab.training.evaluate import Evaluation
    from gptlab.training.recipe import Recipe, load_recipe

__version__ = "0.1.0"

_HOMES = {
    "Answer": "evaluation.answers",
    "Classification": "evaluation.classify",
    "Conversation": "evaluation.conversation",
    "Decoder": "generation.decoder",
    "Evaluation": "training.evaluate",
    "GPT": "model.gpt",
    "GPTClassifier": "model.classifier",
    "GPTShape": "model.gpt",
    "GptlabError": "errors",
    "Message": "text.dialogue",
    "OpenModel": "run.open",
    "Parameters": "evaluation.conversation",
    "RNN": "model.rnn",
    "RNNClassifier": "model.classifier",
    "RNNShape": "model.rnn",
    "Recipe": "training.recipe",
    "Run": "run.run",
    "RunDiff": "report.diff",
    "RunRow": "report.listing",
    "Sampling": "generation.sampling",
    "Study": "studies.study",
    "Template": "text.dialogue",
    "Tokenizer": "text.tokenizer",
    "UserError": "errors",
    "answer": "evaluation.answers",
    "classify": "lab",
    "complete": "evaluation.samples",
    "diff_runs": "report.diff",
    "evaluate": "lab",
    "export_model": "export.export",
    "list_runs": "report.listing",
    "load_recipe": "training.recipe",
    "open_model": "run.open",
    "prepare": "lab",
    "study": "lab",
    "train": "lab",
    "write_report": "report.report",
}

__all__ = [
    "GPT",
    "RNN",
    "Answer",
    "Classification",
    "Conversation",
    "Decoder",
    "Evaluation",
    "GPTClassifier",
    "GPTShape",
    "GptlabError",
    "Message",
    "OpenModel",
    "Parameters",
    "RNNClassifier",
    "RNNShape",
    "Recipe",
    "Run",
    "RunDiff",
    "RunRow",
    "Sampling",
    "Study",
    "Template",
    "Tokenizer",
    "UserError",
    "__version__",
    "answer",
    "classify",
    "complete",
    "diff_runs",
    "evaluate",
    "export_model",
    "list_runs",
    "load_recipe",
    "open_model",
    "prepare",
    "study",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gptlab' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gptlab.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
