"""The README's Python, run as it stands."""

import contextlib
import io
import pathlib
import re

README = pathlib.Path(__file__).resolve().parents[2] / "README.md"


def test_the_readmes_python_runs():
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, str(README), "exec"), {})
    first, second, why = printed.getvalue().splitlines()
    assert first == "0 [1 2 3 4 5 6 7]"
    assert second == "80 [1 2 3 4 5 7 8]"
    assert why.startswith("96 of 100 tokens are reused"), why
