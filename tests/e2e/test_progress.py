"""What a person sees while a tree moves: one line that is rewritten on a terminal, plain lines elsewhere."""
import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading

import pytest

from harness import DONE, FAILED, GODWIT, NETWORK, PORT, STATE, UNSUPPORTED

BAR = re.compile(r"^(.*?) \[(#*)(\.*)\]")
COLOUR = re.compile(r"\x1b\[[0-9]*m")
WIDTH = 80


class Terminal:
    """A pseudo terminal, all that was written to it, and what it would show."""

    def __init__(self, width=WIDTH):
        self.outer, self.inner = pty.openpty()
        fcntl.ioctl(self.inner, termios.TIOCSWINSZ, struct.pack("4H", 24, width, 0, 0))
        self.written = b""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal any more
            while data := os.read(self.outer, 65536):
                self.written += data

    def close(self):
        """Nobody writes any more: reads what is left."""
        os.close(self.inner)
        self.reader.join(20)
        assert not self.reader.is_alive(), "somebody still has the terminal"
        os.close(self.outer)

    def text(self):
        return COLOUR.sub("", self.written.decode())

    def frames(self):
        """The progress line as it was drawn again and again."""
        return [frame for part in self.text().split("\r") for frame in [part.partition("\x1b[K")[0]] if frame and "\x1b[K" in part]

    def screen(self):
        """The lines that stay, the last one being where the cursor is; knows what godwit uses and nothing else."""
        lines, column = [""], 0
        for piece in re.findall(r"\r|\n|\x1b\[K|[^\r\n\x1b]+|\x1b", self.text()):
            if piece == "\r":
                column = 0
            elif piece == "\n":
                lines.append("")
                column = 0
            elif piece == "\x1b[K":
                lines[-1] = lines[-1][:column]
            else:
                assert piece != "\x1b", f"an escape sequence that is not expected: {self.text()!r}"
                lines[-1] = lines[-1][:column] + piece + lines[-1][column + len(piece):]
                column += len(piece)
        return lines


def migrate_on(pair, victim, terminal, *options, to=None, environment=None):
    """`godwit migrate` with the terminal as standard error; returns exit code and standard output."""
    argv = [GODWIT, "migrate", "--tree", victim.pid, "--to", to or f"{pair.b.address}:{PORT}", *pair.security(pair.a), "--state-dir", STATE, *options]
    with pair.a.popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=terminal.inner, text=True,
                      env={**os.environ, "TERM": "xterm", **(environment or {})}) as process:
        try:
            stdout, _ = process.communicate(timeout=50)
        except BaseException:
            process.kill()
            raise
    terminal.close()
    return process.returncode, stdout


def arrived(pair, victim):
    victim.host = pair.b
    victim.check_running()
    victim.finish()


def check_bars(frames):
    """Within a round the bar never goes back, each round begins at nothing, and no line is as wide as the terminal."""
    last = {}
    for frame in frames:
        assert len(frame) < WIDTH, f"as wide as the terminal: {frame!r}"
        if bar := BAR.match(frame):
            name, full, rest = bar.groups()
            done = len(full) / len(full + rest)
            assert done >= last.get(name, 0), f"the bar of {name} went back: {frames}"
            if name not in last:
                assert done < 1, f"{name} begins with a full bar: {frames}"
            last[name] = done
    return last


@pytest.mark.smoke
def test_a_terminal_gets_one_line_that_is_rewritten(pair):
    victim = pair.victim("memory", "--mb", "64", "--file", "{dir}/mapped")
    pair.serving(pair.b)
    terminal = Terminal()
    code, stdout = migrate_on(pair, victim, terminal, "--downtime-limit", "2000")
    assert code == DONE, terminal.screen()
    frames = terminal.frames()
    assert len(frames) >= 3, f"hardly drawn at all: {terminal.text()!r}"
    assert any(frame.startswith("round 0 [") for frame in frames), frames
    assert any(frame.startswith("restoring") for frame in frames), frames
    assert "round 0" in check_bars(frames)
    assert "\x1b[" in terminal.written.decode().replace("\x1b[K", ""), "no colour on a terminal that has it"
    assert terminal.screen() == [""], "something stayed on the terminal"
    assert stdout.startswith(f"pid {victim.pid} runs at ") and "\x1b" not in stdout
    arrived(pair, victim)


def test_an_error_finds_a_clean_terminal(pair):
    victim = pair.victim("events")
    terminal = Terminal()
    code, stdout = migrate_on(pair, victim, terminal, to=f"{pair.b.address}:7999")
    assert code == NETWORK and stdout == "", terminal.screen()
    error, hint, *rest = terminal.screen()
    assert error.startswith("godwit: ") and hint.startswith("  hint: ") and rest == [""], terminal.screen()
    victim.check_running()


def test_giving_up_leaves_the_error_alone_on_the_terminal(pair):
    victim = pair.victim("memory", "--mb", "16", "--file", "{dir}/mapped")
    pair.serving(pair.b)
    terminal = Terminal()
    # Less than what does not depend on memory.
    code, stdout = migrate_on(pair, victim, terminal, "--downtime-limit", "1", "--max-rounds", "2")
    assert code == FAILED and stdout == "", terminal.screen()
    assert any(frame.startswith("round 1 [") for frame in terminal.frames()), terminal.frames()
    error, hint, *rest = terminal.screen()
    assert "does not converge" in error and hint.startswith("  hint: ") and rest == [""], terminal.screen()
    victim.check_running()
    victim.finish()


def test_json_and_the_progress_line_go_separate_ways(pair):
    victim = pair.victim("memory", "--mb", "16", "--file", "{dir}/mapped")
    pair.serving(pair.b)
    terminal = Terminal()
    code, stdout = migrate_on(pair, victim, terminal, "--json", "--downtime-limit", "2000", environment={"NO_COLOR": "1"})
    assert code == DONE and stdout.startswith("{") and stdout.endswith("}\n"), terminal.screen()
    assert terminal.frames() and terminal.screen() == [""]
    assert terminal.written.decode() == terminal.text(), "colours in spite of NO_COLOR"
    arrived(pair, victim)


@pytest.mark.parametrize("mode", ["pre-copy", "stop"])
def test_what_is_no_terminal_gets_plain_lines(pair, mode):
    victim = pair.victim("memory", "--mb", "16", "--file", "{dir}/mapped")
    pair.serving(pair.b)
    limit = ["--downtime-limit", "2000"] if mode == "pre-copy" else []
    outcome = pair.godwit(pair.a, "migrate", "--tree", victim.pid, "--to", f"{pair.b.address}:{PORT}", "--mode", mode, *limit,
                          *pair.security(pair.a), "--state-dir", STATE).expect(DONE)
    assert not re.search(r"[\x1b\r]", outcome.stderr + outcome.stdout)
    lines = outcome.stderr.splitlines()
    assert all(line.startswith("godwit: ") for line in lines), lines
    assert "godwit: restoring at the destination" in lines, lines
    rounds = [line for line in lines if re.match(r"godwit: round \d+ done: \d+ pages", line)]
    assert len(rounds) == len(set(rounds)) and bool(rounds) == (mode == "pre-copy"), lines
    assert not re.search(r"\bnan\b|\binf\b|e\+", outcome.stderr + outcome.stdout)
    arrived(pair, victim)


def test_json_without_a_terminal_is_silent(pair):
    victim = pair.victim("events")
    pair.serving(pair.b)
    assert pair.send(victim.pid, pair.a).expect(DONE).stderr == ""
    arrived(pair, victim)


@pytest.mark.smoke
@pytest.mark.parametrize("options, code, says", [
    (["--mode", "hybrid"], UNSUPPORTED, "--mode hybrid"),
    (["--compress", "zstd"], UNSUPPORTED, "--compress zstd"),
])
def test_what_is_not_carried_yet_is_refused_by_name(pair, options, code, says):
    victim = pair.victim("events")
    outcome = pair.godwit(pair.a, "migrate", "--tree", victim.pid, "--to", f"{pair.b.address}:{PORT}", *options, *pair.security(pair.a)).expect(code)
    assert says in outcome.stderr and "hint: " in outcome.stderr, outcome.stderr
    victim.check_running()
