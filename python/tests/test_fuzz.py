"""Some seconds of random calls with random arguments, in a process of its own; FIRN_FUZZ_SECONDS gives it longer."""

import pathlib
import subprocess
import sys


def test_random_calls_never_end_the_process():
    program = pathlib.Path(__file__).with_name("fuzz.py")
    done = subprocess.run([sys.executable, str(program), "8", "1"], capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, (done.returncode, done.stdout[-2000:], done.stderr[-8000:])
    assert " calls, " in done.stdout
