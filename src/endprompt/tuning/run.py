"""A search for the RoPE scaling of a model: probe every candidate, verify some, rank both.

Each result is a file of its own in the run's folder, so that a killed run resumes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from endprompt import rope
from endprompt.cues import CueWriter
from endprompt.data import holdout, run_text
from endprompt.distances import by_quarter
from endprompt.eval.engine import Coder, Engine
from endprompt.eval.window import require_room, window_check
from endprompt.io import claims, digests, files, records, result_files
from endprompt.io.provenance import Computation
from endprompt.io.secrets import redact
from endprompt.models import checkpoint as models
from endprompt.models import embedded, precision
from endprompt.models.families import Family
from endprompt.record import ScalingProbe, Window
from endprompt.train import gaps, position_check
from endprompt.tuning import candidates, probe
from endprompt.tuning.candidates import Candidate

RESULT = "tune_scaling.json"
COMMAND = "tune-scaling"
Watch = Callable[[str, float, float], None]
"""Called with what is done, how much of it, and how much there is."""


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    scalings  rules to try; none: those of `candidates.USUAL` that the model can have
    rows      of the probe
    verify    candidates to read at the target
    needles   asked at the target, and as many spans to recall verbatim
    """

    model: str | None
    target: int
    out: Path
    text: tuple[str, ...] = ()
    scalings: tuple[str, ...] = ()
    rows: int = 8
    verify: int = 5
    needles: int = 16
    seed: int = 0
    dtype: str = "auto"


def tune(request: Request, *, say: Callable[[str], None], watch: Watch) -> dict[str, Any]:
    """Search, verify and write `tune_scaling.json`; returns what stands in it.

    Raises RopeError for a model or a target that can't be extended, TextError for too little text,
    OutputError for a folder of another run.
    """
    model = embedded.resolve(request.model)
    with claims.output(request.out, COMMAND, reads=[model, *request.text]) as held:
        search = _Search(request, model, held, say, watch)
        with files.writing_errors(request.out):
            ranked = search.probed()
            verified = search.verified(ranked)
            result = _result(search, ranked, verified)
            result_files.write(request.out / RESULT, COMMAND, result)
    return result


class _Search:
    """Everything checked, the text prepared, the folder claimed; the model loads when needed."""

    def __init__(
        self,
        request: Request,
        model: str,
        held: claims.Output,
        say: Callable[[str], None],
        watch: Watch,
    ) -> None:
        self.request, self.model, self.say, self.watch = request, model, say, watch
        self.config = models.load_config(model)
        self.family: Family = models.family_of(model, self.config)
        self.base = self.family.base
        rope.factor(self.base.window, request.target)
        self.scalings = candidates.searched(self.family, request.target, request.scalings)
        models.check(model, self.config)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        settings = self._settings(held, device)
        self.dtype: str = settings["dtype"]
        held.require(settings)
        self.tokenizer = models.load_tokenizer(model)
        self.lengths = [self.base.window, request.target]
        self.last = min(256, self.base.window // 4)
        require_room(
            Coder(self.tokenizer), self.lengths, needles=request.needles, last=self.last,
            seed=request.seed,
        )  # fmt: skip
        data = request.out / "data"
        if held.claimed is None:  # what a refused run left may be for another target
            held.reserve()
            (data / holdout.FILE).unlink(missing_ok=True)
        self.text = run_text.prepare_text(
            request.text, self.tokenizer, data, tokens=request.target, count=1,
            row_tokens=probe.text_tokens(self.base.window), fresh=held.claimed is None, say=say,
        )  # fmt: skip
        documents, _ = holdout.training_documents(data)
        self.held_out = holdout.held_out_texts(data)[:1]
        self.rows, self.filler = probe.make_rows(
            documents, CueWriter(self.tokenizer), window=self.base.window, target=request.target,
            count=request.rows, seed=request.seed,
        )  # fmt: skip
        held.claim(settings)
        self._device = device

    def _settings(self, held: claims.Output, device: str) -> dict[str, Any]:
        """What decides about every result, but not how many are verified."""
        request = self.request
        before = (held.claimed or {}).get("dtype")
        fast = request.dtype == "fast" and before in precision.STORED.values()
        return {
            "model": self.model,
            **digests.of_model(self.model),
            "target": request.target,
            "text": [redact(spec) for spec in request.text],
            "scalings": self.scalings,
            "rows": request.rows,
            "needles": request.needles,
            "seed": request.seed,
            "dtype": before if fast else precision.evaluated(request.dtype, device),
        }

    @cached_property
    def network(self) -> Any:
        """The unscaled base."""
        self.say(f"loading {self.model}")
        return models.load(self.model, self.config, dtype=self.dtype).to(self._device)

    @cached_property
    def bank(self) -> gaps.Bank:
        """Keys for gaps, as the base reads them."""
        network = self.network
        self.say(f"reading {self.filler.tokens:,} tokens for the gaps, with the base")
        return gaps.read(network, self.family, self.filler.pieces)

    def parameters(self, candidate: Candidate) -> rope.Parameters:
        """`rope_parameters` of a candidate."""
        return models.scaled_parameters(self.family, candidate.recipe, self.request.target)

    def scaled(self, candidate: Candidate) -> Any:
        """The base's weights with the RoPE of a candidate."""
        config = models.scaled_config(self.model, candidate.recipe, self.request.target)
        attention = self.network.config._attn_implementation
        return models.under(self.network, config, attention=attention)

    def probed(self) -> dict[Candidate, ScalingProbe]:
        """Every candidate with its probe, the best first."""
        probes: dict[Candidate, ScalingProbe] = {}
        first = candidates.by_factor(self.scalings)
        self._probe_all(first, probes)
        best = _ranked(probes)[0]
        self._probe_all(candidates.between(best), probes)
        best = _ranked(probes)[0]
        self._probe_all(candidates.varied(best, self.base, self.parameters(best)), probes)
        return {candidate: probes[candidate] for candidate in _ranked(probes)}

    def _probe_all(self, asked: Sequence[Candidate], probes: dict[Candidate, ScalingProbe]) -> None:
        for number, candidate in enumerate(asked):
            path = self.request.out / "probe" / f"{candidate.name}.json"
            if not path.is_file():
                files.write_json(path, self._probe(candidate, number, len(asked)).plain())
            probes[candidate] = records.read(path, ScalingProbe)
            self.say(f"probe   {candidate.name:<36} {_score(probes[candidate]):.3f}")

    def _probe(self, candidate: Candidate, number: int, of: int) -> ScalingProbe:
        """Depths and answer losses of a candidate; its RoPE is checked first."""
        bank, began = self.bank, time.perf_counter()
        network = self.scaled(candidate)
        parameters, target = self.parameters(candidate), self.request.target
        position_check.require(
            list(position_check.frequencies(network, self.family, parameters, target))
        )
        answers = probe.answer_losses(
            network,
            gaps.FilledGaps(network, self.family, bank),
            self.rows,
            lambda rows: self.watch("probe", number + rows / len(self.rows), of),
        )
        return ScalingProbe(
            scaling=candidate.scaling,
            headroom=candidate.headroom,
            settings=dict(candidate.settings),
            rope_parameters=parameters,
            answers=answers,
            seconds=time.perf_counter() - began,
            computation=Computation.of(network).model_dump(),
        )

    def verified(self, ranked: dict[Candidate, ScalingProbe]) -> dict[Candidate, Window]:
        """Some of the candidates at the true length, in the order in which they were read."""
        by_name = {candidate.name: candidate for candidate in ranked}
        plain = Candidate(self.scalings[0], 1.0).name
        names = candidates.to_verify(list(by_name), plain, self.request.verify)
        checks: dict[Candidate, Window] = {}
        for number, name in enumerate(names):
            path = self.request.out / "verified" / f"{name}.json"
            if not path.is_file():
                self._verify(by_name[name], path, number, len(names))
            checks[by_name[name]] = records.read(path, Window)
            truth = _truth(checks[by_name[name]], self.lengths)
            self.say(f"verify  {name:<36} {truth['answer_loss']:.3f}")
        return checks

    def _verify(self, candidate: Candidate, path: Path, number: int, of: int) -> None:
        """The window check of a candidate at window and target, written."""
        began = time.perf_counter()
        engine = Engine(self.scaled(candidate), self.tokenizer, name=candidate.name)
        check = window_check(
            engine,
            self.held_out,
            lengths=self.lengths,
            needles=self.request.needles,
            quotes=self.request.needles,
            last=self.last,
            seed=self.request.seed,
            progress=lambda done: self.watch("verify", number + done, of),
        )
        seconds = {"seconds": time.perf_counter() - began}
        result_files.write(path, "eval window", check.model_dump(mode="json") | seconds)


def _quarters(values: Sequence[tuple[float, float]]) -> list[float | None]:
    """Means by distance, the farthest first; None where there is no value."""
    return [float(np.mean(some)) if some else None for some in by_quarter(values)]


def _mean(quarters: Sequence[float | None]) -> float:
    """Every quarter of the target counts the same."""
    return float(np.mean([quarter for quarter in quarters if quarter is not None]))


def _score(measured: ScalingProbe) -> float:
    return _mean(_quarters(measured.answers))


def _ranked(probes: dict[Candidate, ScalingProbe]) -> list[Candidate]:
    """From the lowest answer loss to the highest."""
    return sorted(probes, key=lambda candidate: _score(probes[candidate]))


def _truth(check: Window, lengths: Sequence[int]) -> dict[str, Any]:
    """What a window check says at the target, and the loss inside the window."""
    window, target = lengths
    needles = [needle for needle in check.needles if needle.length == target]
    losses = _quarters([(needle.depth, needle.nll_per_token) for needle in needles])
    return {
        "answer_loss": _mean(losses),
        "answer_loss_by_quarter": losses,
        "digits_right": float(np.mean([needle.digits_right for needle in needles])),
        "digits_by_quarter": _quarters([(n.depth, n.digits_right) for n in needles]),
        "verbatim_loss": float(np.mean([q.nll for q in check.quotes if q.length == target])),
        "loss_at_target": float(np.mean([x.nll for x in check.losses if x.length == target])),
        "loss_at_window": float(np.mean([x.nll for x in check.losses if x.length == window])),
    }


def rank_correlation(probed: Sequence[float], truth: Sequence[float]) -> float | None:
    """Spearman's rho; None for fewer than three values, and where all are the same.

    >>> rank_correlation([1.0, 2.0, 3.0], [5.0, 6.0, 9.0])
    1.0
    """
    if len(probed) < 3 or len(set(probed)) == 1 or len(set(truth)) == 1:
        return None
    return round(float(spearmanr(probed, truth).statistic), 6)


def _result(
    search: _Search, ranked: dict[Candidate, ScalingProbe], verified: dict[Candidate, Window]
) -> dict[str, Any]:
    """What is written: candidates and verified ones, the best first, and how well they agree."""
    request = search.request
    probed = [
        {
            "name": candidate.name,
            "set": _assignments(candidate),
            "rope_parameters": measured.rope_parameters,
            "answer_loss": _score(measured),
            "answer_loss_by_quarter": _quarters(measured.answers),
            "seconds": measured.seconds,
        }
        for candidate, measured in ranked.items()
    ]
    truths = {candidate: _truth(check, search.lengths) for candidate, check in verified.items()}
    order = sorted(truths, key=lambda candidate: truths[candidate]["answer_loss"])
    return {
        "model": search.model,
        "window": search.base.window,
        "target": request.target,
        "text": search.text,
        "rows": request.rows,
        "needles": request.needles,
        "seed": request.seed,
        "candidates": probed,
        "verified": [
            {
                "name": candidate.name,
                "rank_by_probe": 1 + list(ranked).index(candidate),
                "probe_loss": _score(ranked[candidate]),
                **truths[candidate],
                "seconds": verified[candidate].seconds,
                "computation": verified[candidate].computation,
            }
            for candidate in order
        ],
        "plain": Candidate(search.scalings[0], 1.0).name,
        "spearman": rank_correlation(
            [_score(ranked[candidate]) for candidate in order],
            [truths[candidate]["answer_loss"] for candidate in order],
        ),
        "best": order[0].name,
        "set": _assignments(order[0]),
    }


def _assignments(candidate: Candidate) -> list[str]:
    """A candidate for `--set`, one key each."""
    return [
        f"{key}={value if isinstance(value, str) else format(value, 'g')}"
        for key, value in candidate.overrides.items()
    ]
