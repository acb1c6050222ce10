"""The build backend of ../pyproject.toml, asked in its own folder."""

import os
import pathlib

os.chdir(pathlib.Path(__file__).resolve().parents[1])

from scikit_build_core.build import *  # noqa: E402,F401,F403
