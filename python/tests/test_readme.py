"""The README's Python, run as it stands."""

import contextlib
import io
import pathlib
import re

import numpy

import firn_kv

README = pathlib.Path(__file__).resolve().parents[2] / "README.md"

PROGRAMS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


def test_the_readmes_python_runs():
    program, cold = PROGRAMS
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, str(README), "exec"), {})
    first, second, why = printed.getvalue().splitlines()
    assert first == "0 [1 2 3 4 5 6 7]"
    assert second == "80 [1 2 3 4 5 7 8]"
    assert why.startswith("96 of 100 tokens are reused"), why


def test_the_readmes_cold_python_runs():
    program, cold = PROGRAMS
    kv = numpy.random.default_rng(1).standard_normal((2, 2, 8, 16, 2, 16)).astype(numpy.float16)
    before = kv.copy()
    given = {"firn": firn_kv, "kv": kv, "names": [f"block {i}" for i in range(8)], "table": [7, 6, 5, 4, 3, 2, 1, 0]}
    given["model"] = firn_kv.Model([firn_kv.Group(2, kv_heads=2, head_dim=16)])
    exec(compile(cold, str(README), "exec"), given)
    assert numpy.array_equal(kv[:, :, ::-1].view(numpy.uint16), before.view(numpy.uint16))
