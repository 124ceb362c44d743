"""The paper's tables and figures as files that can be run, at three scales.

`definition` reads a file, `laboratory` and `commands` do its runs, `numbers` reads what they left,
and `compare` sets it beside the paper's numbers. The page is `endprompt.study.page`.
"""
