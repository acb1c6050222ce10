"""check_sdist.py SDIST BUILD_DIR: every file of the repository that the build in BUILD_DIR read is in the sdist."""

import pathlib
import subprocess
import sys
import tarfile

sdist, build = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]).resolve()
root = pathlib.Path(__file__).resolve().parents[2]
with tarfile.open(sdist) as archive:
    shipped = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
read = set()
for line in subprocess.run(["ninja", "-C", build, "-t", "deps"], check=True, capture_output=True, text=True).stdout.splitlines():
    path = (build / line.strip()).resolve()
    if line.startswith("    ") and path.is_relative_to(root) and not path.is_relative_to(root / "build"):
        read.add(str(path.relative_to(root)))
for line in (build / "build.ninja").read_text().split("RERUN_CMAKE", 1)[-1].split():
    path = pathlib.Path(line.rstrip("$"))
    if path.is_absolute() and path.is_relative_to(root) and not path.is_relative_to(root / "build") and path.is_file():
        read.add(str(path.relative_to(root)))
missing = sorted(read - shipped)
assert len(read) > 100, f"only {len(read)} files were read: was this built?"
assert not missing, f"not in {sdist.name}: {missing}"
for name in ("LICENSE", "pyproject.toml", "python/firn_kv/__init__.py", "python/firn_kv/py.typed"):
    assert name in shipped, name
print(f"{sdist.name} has all {len(read)} files that the build reads")
