"""Axolotl 0.19.0: the length of a row in packing is its last position plus one.

    pip install axolotl==0.19.0
    python axolotl_packed_lengths.py

`get_dataset_lengths` (axolotl/utils/samplers/utils.py) reads the length of a row with
`position_ids` from its last position, so that a row with a jump counts as longer than it is.
"""

from axolotl.utils.samplers import get_dataset_lengths
from datasets import Dataset

positions = [*range(32), *range(480, 512)]
rows = Dataset.from_list([{"input_ids": [0] * 64, "position_ids": positions}])
print("tokens 64, length", int(get_dataset_lengths(rows)[0]))
