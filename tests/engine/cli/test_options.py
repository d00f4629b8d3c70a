"""Tables on the terminal show foreign text as it is, numbers to the right."""

from __future__ import annotations

import pytest

from simclr_engine.cli.options import add, show, table


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
