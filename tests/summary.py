"""Counts what ./run-tests ran: summary.py FOLDER [FAILED SECTION]... prints one closing line, exit code 0 if all is well.

A skip is expected only if it says why in a way that is listed here; any other counts as a failure.
"""
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

EXPECTED_SKIPS = ("release build:", "kernel:", "program:", "slow:")


def skip_is_expected(case, skipped):
    text = " ".join(filter(None, (skipped.get("message"), skipped.text, case.findtext("system-out"))))
    return any(reason in text for reason in EXPECTED_SKIPS)


def main(folder, sections):
    passed = skipped_count = 0
    failures = []
    for path in sorted(Path(folder).glob("*.xml")):
        for case in ElementTree.parse(path).iter("testcase"):
            name = f"{path.stem}: {case.get('classname', '')}.{case.get('name')}"
            skipped = case.find("skipped")
            if case.find("failure") is not None or case.find("error") is not None or case.get("status") == "fail":
                failures.append(name)
            elif skipped is None:
                passed += 1
            elif skip_is_expected(case, skipped):
                skipped_count += 1
            else:
                failures.append(f"{name} (unexpected skip)")
    for name in failures:
        print(f"FAILED {name}")
    for name in sections:
        print(f"FAILED section: {name}")
    # A section that failed without a failed test (a build, a crash of the runner) is a failure of its own.
    failed = max(len(failures), len(sections))
    if not passed and not failed:
        print("no test ran")
        failed = 1
    print(f"{passed} passed, {failed} failed, {skipped_count} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
