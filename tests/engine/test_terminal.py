"""Lines and tables on the terminal: foreign text is shown and never obeyed, in any encoding; numbers to the right."""

from __future__ import annotations

import ast
import io
import sys
import threading
import warnings
from pathlib import Path

import pytest

from simclr_engine.errors import counted, plain
from simclr_engine.terminal import add, prepare_streams, say, show, table, tell


def keep_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `prepare_streams` replaces is put back at the end of the test."""
    for home, name in ((warnings, "showwarning"), (sys, "excepthook"), (threading, "excepthook")):
        monkeypatch.setattr(home, name, getattr(home, name))


def test_numbers_stand_to_the_right_and_names_to_the_left(capsys: pytest.CaptureFixture[str]) -> None:
    made = table("name", "#images", rule=False)
    add(made, "ab", "5")
    add(made, "abcdef", "12,345")
    show(made)
    assert [row.rstrip() for row in capsys.readouterr().out.splitlines()] == [
        "name    images",
        "ab           5",
        "abcdef  12,345",
    ]


def test_a_rule_stands_below_the_header(capsys: pytest.CaptureFixture[str]) -> None:
    made = table("name", title="who", caption="end")
    add(made, "ab")
    show(made)
    title, header, rule, row, caption = (row.strip() for row in capsys.readouterr().out.splitlines())
    assert (title, header, set(rule), row, caption) == ("who", "name", {"─"}, "ab", "end")


def test_foreign_text_is_neither_markup_nor_control_codes(capsys: pytest.CaptureFixture[str]) -> None:
    made = table("a [bold]b[/bold]", title="[red]t")
    add(made, "[red]x[/red]\x1b[31m", style="dim")
    show(made, width=100)
    out = capsys.readouterr().out
    assert "[red]t" in out and "a [bold]b[/bold]" in out and r"[red]x[/red]\x1b[31m" in out and "\x1b" not in out


def test_output_that_is_no_terminal_has_the_width_that_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    made = table("words")
    add(made, "x" * 150)
    show(made, width=200)
    assert "x" * 150 in capsys.readouterr().out
    show(made, width=60)
    assert "x" * 61 not in capsys.readouterr().out


class Stream(io.TextIOWrapper):
    """A terminal of some encoding; `shown` is what it was sent."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict")

    @property
    def shown(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]  # a BytesIO


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii", "latin-1", "utf-8"])
def test_any_text_can_be_written_in_any_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    out, err = Stream(encoding), Stream(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    keep_hooks(monkeypatch)
    prepare_streams()
    made = table("class", "#accuracy", title="a → b")
    add(made, "caf\udce9 中\x1b[31m", "60 ± 1 %")
    show(made, width=40)
    tell("loss 1 → 2", "a\rb\nc")
    say("中\udce9")
    assert "\x1b" not in out.shown and "\r" not in out.shown.replace("\r\n", "\n")
    assert "caf\\udce9" in out.shown and "\\x1b[31m" in out.shown and r"a\rb\nc" in out.shown
    arrow = "→" if encoding == "utf-8" else "->"
    assert f"loss 1 {arrow} 2" in out.shown and f"a {arrow} b" in out.shown
    assert err.shown == ("中" if encoding == "utf-8" else r"\u4e2d") + "\\udce9\n"


def test_a_warning_of_the_command_line_is_one_escaped_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_hooks(monkeypatch)
    prepare_streams()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings._showwarnmsg(  # type: ignore[attr-defined]  # pytest replaces what `warn` calls
            warnings.WarningMessage(UserWarning("a\x1b[31m\nb"), UserWarning, "file.py", 1)
        )
    assert capsys.readouterr().err == "warning: a\\x1b[31m\\nb\n"


def test_a_traceback_is_escaped_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    keep_hooks(monkeypatch)
    prepare_streams()
    try:
        raise RuntimeError("node 'a\x1b]0;b\x07\n\u202e'")
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
        threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, None)))
    said = capsys.readouterr().err
    assert said.count("RuntimeError: node 'a\\x1b]0;b\\x07\n\\u202e'\n") == 2
    assert said.startswith("Traceback (most recent call last):\n") and not {"\x1b", "\x07", "\u202e"} & set(said)


@pytest.mark.parametrize("harmless", ["می‌خواهم", "👩‍👧", "a\u00a0b", "全角\u3000", "é"])
def test_letters_that_need_joiners_and_spaces_stay(harmless: str) -> None:
    assert plain(harmless) == harmless


@pytest.mark.parametrize(
    "obeyed", ["\x1b[2J", "\x9b31m", "\u202e", "\u2066", "\u2028", "\ud800", "\x7f", "\r", "\u200b"]
)
def test_what_a_terminal_or_browser_obeys_is_visible(obeyed: str) -> None:
    shown = plain(f"a{obeyed}b")
    assert obeyed[0] not in shown and "\\" in shown and shown.isprintable()


WRITERS = {
    "print",
    "click.echo",
    "click.secho",
    "click.style",
    "Console",
    "Text",
    "sys.stdout.write",
    "sys.stderr.write",
}
HOMES = {  # where such a call is at home
    "engine/terminal.py",
    "engine/progress.py",  # the bar, whose words are escaped
    "bench/store.py",  # JSON of a process of its own
}


def test_every_module_writes_through_the_terminal_module() -> None:
    strays = []
    root = Path(__file__).parents[2]
    for path in sorted(
        path for room in ("engine", "kernels", "export", "bench") for path in (root / room).rglob("*.py")
    ):
        if (name := path.relative_to(root).as_posix()) in HOMES:
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        strays += [f"{name}:{call.lineno}" for call in calls if ast.unparse(call.func) in WRITERS]
    assert strays == []


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 images"), (1, "1 image"), (50_000, "50,000 images"), ("1", "1 image"), ("2.5", "2.5 images")],
)
def test_one_thing_is_singular_and_thousands_are_grouped(number: int | str, said: str) -> None:
    assert counted(number, "image") == said
