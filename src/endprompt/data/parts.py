"""Parts on disk: Arrow files that `datasets` loads and that are read through memory maps.

A part holds one Arrow record batch of two columns: `input_ids`, list<uint16 or uint32>, and
`name`, string. Nothing is copied in reading: a document is a view of the mapped file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from endprompt.errors import DataError

COLUMNS = ("input_ids", "name")


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Documents that lie one behind the other.

    values_T   uint16[T] or uint32[T], the token ids of all its documents
    offsets_N  int[N+1], where each document starts; the last one is T
    names      N names, one at a time: names[i]
    """

    values_T: np.ndarray
    offsets_N: np.ndarray
    names: Sequence[str]

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Name and ids of each document."""
        for number, name in enumerate(self.names):
            yield name, self.values_T[self.offsets_N[number] : self.offsets_N[number + 1]]

    @property
    def lengths_N(self) -> np.ndarray:
        """int64[N], tokens of each document."""
        return np.diff(self.offsets_N).astype(np.int64)


def dtype_for(vocabulary: int) -> np.dtype:
    """uint16 where every id of a vocabulary fits in it, else uint32."""
    return np.dtype(np.uint16 if vocabulary <= 2**16 else np.uint32)


def write(path: Path, arrays: Sequence[np.ndarray], names: Sequence[str], dtype: np.dtype) -> None:
    """Write one part; the same documents give the same bytes."""
    import pyarrow as pa

    offsets = np.zeros(len(arrays) + 1, dtype=np.int32)
    np.cumsum([len(ids) for ids in arrays], out=offsets[1:])
    values = np.concatenate([np.empty(0, dtype), *arrays], dtype=dtype, casting="unsafe")
    ids = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
    batch = pa.record_batch([ids, pa.array(names, pa.string())], names=list(COLUMNS))
    with path.open("wb") as file, pa.ipc.new_stream(file, batch.schema) as stream:
        stream.write_batch(batch)


def read(path: Path) -> Part:
    """Map one part.

    Raises DataError when the file is missing, cut short, or no part.
    """
    import pyarrow as pa

    try:
        batch = pa.ipc.open_stream(pa.memory_map(str(path))).read_next_batch()
        batch.validate()  # a flipped bit must not lead out of the mapped file
        ids, names = (batch.column(name) for name in COLUMNS)
        names.validate(full=True)
        offsets = np.asarray(ids.offsets)
        values = np.asarray(ids.values)
        sound = values.dtype in (np.uint16, np.uint32) and len(names) == len(offsets) - 1
        sound = sound and offsets[0] >= 0 and offsets[-1] <= len(values)
        if not sound or (np.diff(offsets) < 0).any():
            raise pa.ArrowInvalid("offsets that do not fit")
    except (pa.ArrowException, OSError, KeyError, ValueError, StopIteration, MemoryError) as error:
        detail = " ".join(str(error).split())[:200]
        raise DataError(f"part {path} is broken ({detail}): run prepare again") from error
    return Part(values, offsets, _Names(names))


class _Names(Sequence[str]):
    """Names as Arrow holds them: made into str one by one."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: int) -> str:  # ty: ignore[incompatible-method-override]
        return self._array[index].as_py()
