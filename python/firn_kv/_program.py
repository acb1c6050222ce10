"""The command `firn` of the wheel: hands over to the program that lies beside this file."""

import os
import pathlib
import sys


def main() -> None:
    program = pathlib.Path(__file__).with_name("bin") / "firn"
    os.execv(program, ["firn", *sys.argv[1:]])
