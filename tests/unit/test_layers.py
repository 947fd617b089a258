"""Rules of the tree that a compiler does not check."""
import re
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
MAX_LINES = 500
# Each layer and what it may include; the agents do not include each other.
MAY_INCLUDE = {
    "common": {"common"},
    "transport": {"transport", "common"},
    "source-agent": {"source-agent", "transport", "common"},
    "dest-agent": {"dest-agent", "transport", "common"},
    "tools": {"tools", "source-agent", "dest-agent", "transport", "common"},
}
# Inside common, bottom-up: each may include only itself and what stands before it.
COMMON_ORDER = ["base", "image", "kernel", "remote", "recovery"]
LONG_BY_NATURE = {"LICENSE"}
# Left-overs of work that is not done, and places that exist on one machine only. In pieces, so that this file passes.
UNWANTED = ["TO" "DO", "FIX" "ME", r"\bX" r"XX\b", "HA" "CK", r"/wo" r"rk/", r"/ro" r"ot/", r"issue #?\d", r"\bwork" r"place\b"]


def tracked():
    """Files of the tree, with those that are new but not ignored."""
    listed = subprocess.run(["git", "-c", f"safe.directory={REPO}", "ls-files", "-co", "--exclude-standard", "-z"], cwd=REPO,
                            capture_output=True, check=True).stdout
    paths = [REPO / name for name in listed.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def texts(*suffixes):
    for path in tracked():
        if not suffixes or path.suffix in suffixes:
            try:
                yield path.relative_to(REPO), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def test_includes_point_one_way():
    wrong = []
    for path, text in texts(".h", ".cc", ".S", ".c"):
        layer = path.parts[0]
        for included in re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, flags=re.M):
            parts = included.split("/")
            if layer in MAY_INCLUDE and parts[0] not in MAY_INCLUDE[layer]:
                wrong.append(f"{path} includes {included}")
            if layer == "common" and len(path.parts) > 2 and len(parts) > 2 and parts[0] == "common":
                here, there = path.parts[1], parts[1]
                if here in COMMON_ORDER and there in COMMON_ORDER and COMMON_ORDER.index(there) > COMMON_ORDER.index(here):
                    wrong.append(f"{path} includes {included}")
    assert not wrong, "\n".join(wrong)


def test_includes_name_the_whole_path():
    wrong = [f"{path} includes {included}" for path, text in texts(".h", ".cc")
             for included in re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, flags=re.M)
             if "/" not in included or included.startswith(".")]
    assert not wrong, "\n".join(wrong)


def test_headers_are_guarded():
    wrong = [str(path) for path, text in texts(".h") if "#pragma once" not in text]
    assert not wrong, "\n".join(wrong)


def test_files_are_short():
    long = [f"{path}: {text.count(chr(10))} lines" for path, text in texts()
            if text.count("\n") >= MAX_LINES and path.name not in LONG_BY_NATURE]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("word", UNWANTED)
def test_nothing_unwanted_is_said(word):
    found = []
    for path, text in texts():
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(word, line, flags=re.I if word.islower() else 0):
                found.append(f"{path}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)


def test_openssl_stays_in_the_transport():
    wrong = [str(path) for path, text in texts(".h", ".cc") if re.search(r"#\s*include\s+<openssl", text) and path.parts[0] != "transport"]
    assert not wrong, "\n".join(wrong)
