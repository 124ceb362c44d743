"""RULER (Hsieh et al., 2024): the prompts of NVIDIA's generator and its scoring.

>>> from endprompt.eval.ruler import Data, samples, score
>>> rows = list(samples("vt", 4096, 10, seed=42, tokenizer="path/to/model"))
>>> score("vt", [{"pred": answer, "outputs": row.outputs} for answer, row in zip(answers, rows)])

| module | holds |
| --- | --- |
| `tasks` | the 13 tasks and `Sample` |
| `templates`, `words` | the wording, from lm-eval; the words, from wonderwords |
| `data`, `standin`, `sentences` | essays, SQuAD, HotpotQA: given, from the hub, or made up |
| `build`, `generate` | one prompt of a size; the size that fits a length |
| `counting` | token counts without tokenising everything |
| `files` | cells of task and length as JSONL files, on several cores |
| `scoring` | scores, averages, effective length, intervals |
"""

from endprompt.eval.ruler.counting import TokenCounter
from endprompt.eval.ruler.data import NOT_COMPARABLE, Data, Source
from endprompt.eval.ruler.generate import Cell, TooShort, samples, wrap_of
from endprompt.eval.ruler.scoring import LengthScore, Summary, TaskScore, score, summarise
from endprompt.eval.ruler.tasks import TASKS, Sample, Task, find_task

__all__ = [
    "NOT_COMPARABLE",
    "TASKS",
    "Cell",
    "Data",
    "LengthScore",
    "Sample",
    "Source",
    "Summary",
    "Task",
    "TaskScore",
    "TokenCounter",
    "TooShort",
    "find_task",
    "samples",
    "score",
    "summarise",
    "wrap_of",
]
