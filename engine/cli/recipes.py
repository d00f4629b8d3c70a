"""`simclr-engine recipes`."""

from __future__ import annotations

import click

from .options import print_json


@click.command(name="recipes")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(name: str | None, as_json: bool) -> None:
    """List the named recipes with origin and published result; with NAME, show that one whole."""
    from ..recipe import Recipe, recipe_names

    if name is not None:
        recipe = Recipe.load(name)
        if as_json:
            print_json(recipe.to_tree())
        else:
            click.echo(recipe.to_toml(), nl=False)
        return
    recipes = [Recipe.load(n) for n in recipe_names()]
    if as_json:
        print_json({"recipes": [{"name": r.name, "origin": r.origin, "published": r.published} for r in recipes]})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("recipe", "origin", "epochs", "batch", "views", "optimizer", "published"):
        table.add_column(column, justify="right" if column in ("epochs", "batch", "views") else "left")
    for r in recipes:
        published = "\n".join(
            f"{p['method']} {100 * p['accuracy']:.2f} % ({p['init']})" for p in r.published.get("results", [])
        )
        table.add_row(
            r.name,
            r.origin,
            str(r.train.epochs),
            str(r.train.batch_size),
            str(r.train.views),
            r.optimizer.name,
            published or "–",
        )
    Console().print(table)
