"""Every file of ours is read by one reader, and a damaged one is one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import endprompt
from endprompt import record
from endprompt.errors import DataError, EndPromptError
from endprompt.io import records
from io_records import VALID

SOURCE = Path(endprompt.__file__).parent


def test_every_kind_of_file_has_an_example_here() -> None:
    assert set(VALID) == set(record.KINDS)


@pytest.mark.parametrize("kind", record.KINDS, ids=lambda kind: kind.__name__)
def test_what_was_written_is_read_back_whole(kind: type[record.Record], tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(VALID[kind] | {"a key of a later version": 1.5}))
    found = records.read(path, kind).plain()
    assert json.loads(json.dumps(found)) == VALID[kind] | {"a key of a later version": 1.5}


def refusal(path: Path, kind: type[record.Record]) -> str:
    with pytest.raises(DataError) as caught:
        records.read(path, kind)
    said = str(caught.value)
    assert "\n" not in said
    assert str(path) in said
    return said


@pytest.mark.parametrize("kind", record.KINDS, ids=lambda kind: kind.__name__)
def test_a_damaged_file_is_one_line_with_a_remedy(
    kind: type[record.Record], tmp_path: Path
) -> None:
    path, whole = tmp_path / "file.json", json.dumps(VALID[kind])
    for content in (b"", whole[:-2].encode(), b"\xff\xfe", b"[" * 5000, b"[]", b"null", b"7"):
        path.write_bytes(content)
        assert kind.remedy in refusal(path, kind)
    path.write_text(json.dumps({**VALID[kind], "schema_version": 99}))
    assert "update endprompt" in refusal(path, kind)
    path.unlink()
    assert "No such file" in refusal(path, kind)


def test_the_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"arms": [{"name": "base"}, {"name": 7}]}))
    assert "has a wrong arms.1.name" in refusal(path, record.Run)
    path.write_text(json.dumps({"target": 512}))
    assert "lacks arms" in refusal(path, record.Run)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything inside a JSON value."""
    inside = (
        list(value.items()) if isinstance(value, dict)
        else list(enumerate(value)) if isinstance(value, list) else []
    )  # fmt: skip
    return [path] * bool(path) + [p for key, one in inside for p in places(one, (*path, key))]


json_values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.just([]), st.just({}), st.just([[[]]]),
)  # fmt: skip


@given(st.data())
def test_a_value_of_another_kind_is_read_or_refused_in_words(data: st.DataObject) -> None:
    import tempfile

    kind = data.draw(st.sampled_from(record.KINDS))
    changed = json.loads(json.dumps(VALID[kind]))
    *way, last = data.draw(st.sampled_from(places(changed)))
    inside = changed
    for key in way:
        inside = inside[key]
    inside[last] = data.draw(json_values)
    content = json.dumps(changed)[: data.draw(st.integers(0, 400))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.json"
        path.write_text(content)
        try:
            records.read(path, kind)
        except EndPromptError as error:
            assert "\n" not in str(error)  # noqa: PT017


READERS = {
    "io/result_files.py",  # whether a file is ours
    "data/manifest.py", "data/prepare.py", "data/remote.py",  # sealed by a checksum of their own
    "data/readers.py",
    "data/json_rows.py",  # the user's files, line by line
    "eval/results.py",  # JSON lines, each a type of its own
    "eval/ruler/counting.py",  # what a tokenizer says of itself
    "export/verify.py", "export/checkpoint.py",  # config.json is Transformers'
    "models/checkpoint.py", "models/checkpoint_files.py",
    "models/adapters.py",  # adapter_config.json is PEFT's
    "io/progress.py",  # tolerant: a missing or half-written file is no progress yet
    "io/claims.py", "io/digests.py", "train/checkpoints.py",  # marks: what is none is no mark
}  # fmt: skip
"""Files that parse JSON which is none of our records."""


def test_no_record_of_ours_is_parsed_elsewhere() -> None:
    parsing = re.compile(r"json\.loads?\(|model_validate_json\(")
    found = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if parsing.search(path.read_text())
    }
    assert found <= READERS | {"io/records.py"}
