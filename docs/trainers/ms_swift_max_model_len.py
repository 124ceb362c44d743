"""ms-swift 4.6.0: `max_model_len` undoes the RoPE scaling that a checkpoint has.

    pip install ms-swift==4.6.0
    python ms_swift_max_model_len.py

`_init_rope_scaling` (swift/arguments/base_args/model_args.py) takes the factor out of the
checkpoint's own dictionary and looks for it there some lines later, to find the window before
scaling. The window after scaling is taken in its place, and the factor becomes 1.
"""

from types import SimpleNamespace

from swift.arguments.base_args.model_args import ModelArguments

args = ModelArguments.__new__(ModelArguments)
args.rope_scaling, args.max_model_len = None, 512
args.model_info = SimpleNamespace(
    rope_scaling={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},  # from 128 tokens
    max_model_len=512,
)
args._init_rope_scaling()
print("factor of the checkpoint 4.0, factor that is trained", args.rope_scaling["factor"])
