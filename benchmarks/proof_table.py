"""The proof's tables in README.md and docs/results.md, out of the results that `make proof` leaves.

    .venv/bin/python benchmarks/proof_table.py [RESULTS]

RESULTS is the folder of `endprompt study proof --results`. A table stands between
`<!-- proof: NAME -->` and `<!-- end -->` and is replaced; the numbers around it are not, and have
to be gone over by hand. Arms that are not there yet are left out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from endprompt.compare.results import Scores, joined
from endprompt.study import definition
from endprompt.study.definition import QUARTERS, Arm, Measure, Study
from endprompt.study.numbers import Place
from endprompt.study.real_model import Model, Unit

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "proof"
WINDOW = 8192
CHOSEN = ("base", "yarn", "yarn-h1.5", "short", "pose", "endprompt", "recall-anchors-no-jump",
          "recall-anchors", "fact-anchors")  # fmt: skip
"""Arms of the README, in its order."""
WORDS = {
    "base": "base, at 8K",
    "recall-anchors-no-jump": "`recall-anchors` without the jump (control)",
    "short": "`short`: plain short text (control)",
    "yarn": "YaRN by 4, untrained",
    "yarn-h1.5": "YaRN by 6, untrained",
    "yarn-h2": "YaRN by 8, untrained",
}
UNTAUGHT = ("json-kv", "mrcr")


class Finished(Model):
    """The results of arms by their names alone: no model is read."""

    _window = WINDOW

    def result(self, unit: Unit) -> Path:
        seed = "untrained" if unit.seed is None else f"seed{unit.seed}"
        name = f"{Path(unit.text).stem}-{seed}-{unit.arm.built().name}"
        files = [
            path for path in self._results.glob(f"{name}-????????.json")
            if path.stem[: -len("-12345678")] == name
        ]  # fmt: skip
        if len(files) > 1:
            raise SystemExit(f"results of {name} under two settings: {', '.join(map(str, files))}")
        return files[0] if files else self._results / f"{name}.json"


class Proof:
    """The results that are there, on the texts and seeds that the README's arms share.

    Arms that lack one of those are left out.

    text  its number in the study: the first seed's results on it alone
    """

    def __init__(self, results: Path, text: int | None = None) -> None:
        self.results = results
        whole = definition.load("proof")
        own = whole.real_model
        shared = [(own.texts, own.seeds), (own.texts, 1), (own.texts[:1], 1)]
        for texts, seeds in shared if text is None else [(own.texts[text : text + 1], 1)]:
            real_model = own.model_copy(update={"texts": texts, "seeds": seeds})
            self.study: Study = whole.model_copy(update={"real_model": real_model})
            self.model = Finished([self.study], "", results, results)
            lacking = {unit.name for unit in self.model.todo()}
            arms = self.study.arms_at("smollm2")
            if lacking.isdisjoint(CHOSEN):
                break
        self.arms = {name: arm for name, arm in arms.items() if name not in lacking}

    def scores(self, name: str, measure: Measure) -> Scores | None:
        """Values of an arm, None where it has none."""
        arm: Arm = self.arms[name]
        by_place = self.model.values(self.study, arm, measure)
        places: list[Place] = [place for place in measure.at if place in by_place]
        return joined([by_place[place] for place in places]) if places else None

    def cell(self, name: str, measure: Measure) -> str:
        """A mean, with a star where it is not the main arm's by its 95 % interval.

        The base is asked at its window, others at the target: no star there.
        """
        scores = self.scores(name, measure)
        if scores is None:
            return ""
        mean = scores.estimate.mean
        shown = f"{mean / 100:.2f}".lstrip("0") if measure.unit == "%" else f"{mean:.3f}"
        alone = name == self.study.main or self.study.main not in self.arms
        if alone or (name == "base" and measure not in self.study.measures):
            return shown
        main = self.scores(self.study.main, measure)
        apart = main.minus(scores) if main else None
        return shown + ("*" if apart and apart.estimate.sign else "")

    def row(self, name: str, measures: Sequence[Measure]) -> str:
        """A line of a table."""
        cells = [self.cell(name, measure) for measure in measures]
        return f"| {WORDS.get(name, f'`{name}`')} | {' | '.join(cells)} |"


def measure_of(proof: Proof, name: str) -> Measure:
    """A measure of the study by its name."""
    return next(measure for measure in proof.study.measures if measure.name == name)


def table(heads: Sequence[str], rows: Sequence[str]) -> str:
    """A table of Markdown."""
    return "\n".join([f"| {' | '.join(heads)} |", "| --- |" + " --- |" * (len(heads) - 1), *rows])


def chosen(proof: Proof) -> str:
    """Some arms at the target, the base at its own window."""
    return _summary(proof, [name for name in CHOSEN if name in proof.arms])


def summary(proof: Proof) -> str:
    """Every arm, likewise."""
    return _summary(proof, list(proof.arms))


def second_text(proof: Proof) -> str:
    """The arms that were run on the second text, likewise."""
    second = Proof(proof.results, text=1)
    return _summary(second, list(second.arms))


def _summary(proof: Proof, names: Sequence[str]) -> str:
    at = {
        "needles, farthest quarter ↑": "needles, farthest quarter",
        "needles ↑": "needles",
        "untaught tasks, farthest quarter ↑": "untaught, farthest quarter",
        "untaught tasks ↑": "untaught tasks",
        "loss, last quarter of the text ↓": "loss of the last quarter of the text",
        "loss up to 8K ↓": "loss up to 8K",
    }
    measures = [measure_of(proof, name) for name in at.values()]
    rows = []
    for name in names:
        own = measures
        if name == "base":  # asked at its window
            own = [measure.model_copy(update={"at": (1,)}) for measure in measures[:4]]
            own += [measures[4].model_copy(update={"at": ()}), measures[5]]
        rows.append(proof.row(name, own))
    return table(["arm", *at], rows)


def by_quarter(proof: Proof) -> str:
    """Accuracy by quarter at the target and at the old window."""
    kinds = {"needles": measure_of(proof, "needles")}
    for task in UNTAUGHT:
        kinds[f"`{task}`"] = measure_of(proof, "untaught tasks").model_copy(
            update={"tasks": (task,)}
        )
    rows = []
    for name in proof.arms:
        cells = []
        for measure in kinds.values():
            for place in ("target", 1):
                if place == "target" and name == "base":
                    cells.append("")
                    continue
                quarters = [
                    proof.cell(
                        name, measure.model_copy(update={"at": (place,), "quarter": quarter})
                    )
                    for quarter in QUARTERS
                ]
                cells.append(" ".join(cell.rstrip("*") for cell in quarters))
        rows.append(f"| {WORDS.get(name, f'`{name}`')} | {' | '.join(cells)} |")
    heads = [f"{kind}, {place}" for kind in kinds for place in ("32K", "8K")]
    return table(["arm, farthest quarter first", *heads], rows)


def inside(proof: Proof) -> str:
    """What is asked inside the old window, and losses of answers at the target."""
    names = ("needles at 8K", "untaught tasks at 8K", "recall of text", "untaught, nats",
             "loss of the other text, up to 8K")  # fmt: skip
    heads = ["needles at 8K ↑", "untaught tasks at 8K ↑", "verbatim recall, nats ↓",
             "untaught tasks, nats ↓", "loss of another text up to 8K ↓"]  # fmt: skip
    measures = [measure_of(proof, name) for name in names]
    rows = []
    for name in proof.arms:
        own = list(measures)
        if name == "base":
            own[2:4] = [measure.model_copy(update={"at": (1,)}) for measure in own[2:4]]
        rows.append(proof.row(name, own))
    return table(["arm", *heads], rows)


TABLES = {
    "chosen": chosen,
    "summary": summary,
    "by quarter": by_quarter,
    "inside": inside,
    "second text": second_text,
}


def filled(page: str, proof: Proof) -> str:
    """A page with its tables made anew."""

    def made(match: re.Match[str]) -> str:
        return f"{match[1]}\n{TABLES[match[2]](proof)}\n{match[3]}"

    return re.sub(r"(<!-- proof: ([a-z ]+) -->)\n.*?(<!-- end -->)", made, page, flags=re.DOTALL)


def main() -> None:
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    proof = Proof(results)
    for page in (ROOT / "README.md", ROOT / "docs" / "results.md"):
        page.write_text(filled(page.read_text(), proof))


if __name__ == "__main__":
    main()
