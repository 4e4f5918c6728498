"""A whole search from Python: data, study, leaderboard, comparison, report, a model that answers.

Run it with ``python examples/search_from_python.py``; it takes a few minutes on a CPU, and leaves
what it makes in ``storage/example``. In a notebook, each part is a cell.
"""

import argparse
from pathlib import Path

from qa_hpo import QuestionAnswerer, StudyFile, compare, export, leaderboard, report, run
from qa_hpo.demo import write_demo

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--folder", type=Path, default=Path("storage/example"))
parser.add_argument("--trials", type=int, default=4)
parser.add_argument("--questions", type=int, help="train on so many questions; all if left out")
options = parser.parse_args()
folder: Path = options.folder

# Generated questions and a tiny checkpoint, so that no model hub is needed. With data and a
# checkpoint of your own, give their paths or their names on the hub instead.
write_demo(folder / "demo")

study = StudyFile.from_dict(
    {
        "study": {"name": "example", "storage": f"sqlite:///{folder / 'study.db'}"},
        "data": {
            "train": str(folder / "demo/train-v2.json"),
            "validation": str(folder / "demo/validation-v2.json"),
            "max_length": 128,
            **({"train_limit": options.questions} if options.questions else {}),
        },
        "starts": {"base": str(folder / "demo/base")},
        "search": {
            "learning_rate": {"low": 2e-4, "high": 3e-3, "log": True},
            "epochs": {"choices": [1, 2]},
        },
        "training": {"doc_stride": 32},
        "evaluation": {"doc_stride": 32},
        "artifacts": {"folder": str(folder / "artifacts")},
        "budget": {"trials": options.trials},
    }
)

# One worker per GPU, or one on a CPU. Interrupt it and call it again: it goes on.
board = run(study)
winner, last = board.trials[0], board.trials[-1]
print(f"trial {winner.number} has F1 {winner.best_f1:.2f}, 95% interval {winner.best_f1_interval}")

difference = compare(study, winner.number, last.number).difference
print(
    f"that is {difference.mean:+.2f} beside trial {last.number}, "
    f"95% interval {difference.low:+.2f} to {difference.high:+.2f}"
)
print(f"the report: {report(study, folder / 'report.html')}")

# The same rows later, or from another process.
assert leaderboard(study).trials == board.trials

answerer = QuestionAnswerer.from_pretrained(str(export(study, folder / "winner", force=True)))
answer = answerer.answer(
    "When was the River Falengor dammed?",
    "The River Falengor was mapped by Stefan Daristov. The River Falengor was dammed in 1714.",
)
print(f"When was the River Falengor dammed? {answer.text or 'no answer'}")
