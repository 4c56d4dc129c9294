"""The tutorial of docs/properties.md, as it is written: its files, its commands, and what they print."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "properties.md"
BLOCK = re.compile(r"^```(python|console) (\S+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def without_numbers(text):
    return re.sub(r"\d+(\.\d+)?", "#", text)


def test_the_tutorial_says_what_happens(tmp_path):
    ran = 0
    for language, name, text in BLOCK.findall(PAGE.read_text()):
        if language == "python":
            (tmp_path / name).write_text(text)
            continue
        command, *expected = text.splitlines()
        shell = command.removeprefix("$ ").replace("python", sys.executable, 1)
        done = subprocess.run(shell, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == int(name), done.stdout + done.stderr
        for line in expected:
            assert without_numbers(line) in without_numbers(done.stdout), (line, done.stdout)
        ran += 1
    assert ran == 4
