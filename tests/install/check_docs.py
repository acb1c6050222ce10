#!/usr/bin/env python3
"""Reads README and docs as a stranger does: from an empty folder, with nothing but what was installed.

Blocks of `sh` are run as they stand. Those that work in a checkout (./run, cmake) cannot be run from inside a test of that
checkout: of these, every ./run COMMAND must be one that ./run help lists. Every other mention of a firn command, in other blocks
and in lines of text, must name a command that there is and options that its help lists.

  check_docs.py --prefix DIR --source DIR --work DIR --model GGUF
"""
import argparse
import os
import pathlib
import re
import subprocess
import sys

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
# Of a checkout: built, fetched or measured there.
CHECKOUT = ("./run", "cmake", "pip", "git", "bench/")


def main():
    parser = argparse.ArgumentParser()
    for name in ("--prefix", "--source", "--work", "--model"):
        parser.add_argument(name, required=True)
    args = parser.parse_args()
    source, work = pathlib.Path(args.source), pathlib.Path(args.work)
    home = work / "home"
    home.mkdir(parents=True)
    environment = {
        "PATH": f"{args.prefix}/bin:/usr/bin:/bin",
        "HOME": str(home),
        "FIRN_SMOLLM2_GGUF": os.environ.get("FIRN_SMOLLM2_GGUF") or args.model,
    }
    if not os.path.exists(environment["FIRN_SMOLLM2_GGUF"]):
        environment["FIRN_SMOLLM2_GGUF"] = args.model
    wrong, ran, seen = [], 0, 0
    helps = {}

    def help_of(words):
        if words not in helps:
            got = subprocess.run(["firn", "help", *words], env=environment, capture_output=True, text=True)
            helps[words] = got.stdout if got.returncode == 0 else None
        return helps[words]

    listed = subprocess.run([str(source / "run"), "help"], capture_output=True, text=True).stdout

    def check_mention(place, text):
        """Commands and options of one line that speaks of the program."""
        nonlocal seen
        for call in re.finditer(r"(?:^|[\s;|`(])firn ((?:[a-z]+(?= |$|`))(?: [a-z]+(?= |$|`))?)([^;|`]*)", text):
            words = tuple(call.group(1).split())
            if help_of(words[:1]) is None:
                continue  # a sentence about firn
            if len(words) == 2 and help_of(words) is None:
                words = words[:1]
            seen += 1
            for option in re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]*)", call.group(2).split(" -- ")[0]):
                if not re.search(r"(?<![\w-])" + option + r"(?![\w-])", help_of(words)):
                    wrong.append(f"{place}: firn {' '.join(words)} has no {option}")
        for call in re.finditer(r"\./run ([a-z]+)", text):
            seen += 1
            if f"./run {call.group(1)}" not in listed:
                wrong.append(f"{place}: there is no ./run {call.group(1)}")

    for page in [source / "README.md", *sorted((source / "docs").glob("*.md"))]:
        text = page.read_text()
        for language, body in FENCE.findall(text):
            commands = [line for line in body.splitlines() if line.strip() and not line.lstrip().startswith("#")]
            if language == "sh" and not any(line.lstrip().startswith(CHECKOUT) for line in commands):
                ran += 1
                folder = work / f"block{ran}"
                folder.mkdir()
                got = subprocess.run(["bash", "-euo", "pipefail", "-c", body], cwd=folder, env=environment,
                                     text=True, errors="replace",
                                     stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                # 1 is what doctor says of this machine, which is no fault of the page.
                if got.returncode not in (0, 1) or (got.returncode == 1 and "firn doctor" not in body):
                    wrong.append(f"{page.name}: exit {got.returncode} of\n{body}\n{got.stdout[-2000:]}")
            elif language in ("", "sh", "text", "console"):
                for line in body.replace("\\\n", " ").splitlines():
                    check_mention(page.name, line.split(" #")[0])
        for span in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
            check_mention(page.name, span.replace("\n", " "))
    # What the program itself shows.
    for command in ("run", "config", "plan", "simulate", "trace", "doctor"):
        shown = help_of((command,)).split("Example", 1)
        for line in shown[1].splitlines()[1:] if len(shown) == 2 else []:
            line = line.strip()
            check_mention(f"firn help {command}", line)
            ran += 1
            folder = work / f"block{ran}"
            folder.mkdir()
            (folder / "requests.jsonl").write_text(
                '{"timestamp":0,"input_length":100,"output_length":10,"block_size":16,"hash_ids":[1,2,3,4,5,6]}\n')
            got = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, text=True,
                                 errors="replace", stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if got.returncode != 0 and not (got.returncode == 1 and command == "doctor"):
                wrong.append(f"firn help {command}: exit {got.returncode} of {line}\n{got.stdout[-2000:]}")
    for problem in wrong:
        print(problem)
    print(f"{ran} blocks and examples run, {seen} mentions checked, {len(wrong)} wrong")
    return 1 if wrong or ran < 10 or seen < 30 else 0


if __name__ == "__main__":
    sys.exit(main())
