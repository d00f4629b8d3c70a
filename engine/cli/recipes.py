"""`simclr-engine recipes`."""

from __future__ import annotations

import click

from ..terminal import add, show, styled, table, tell
from .options import print_json


@click.command(name="recipes")
@click.argument("name", metavar="[NAME|PATH]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout instead of text.")
def command(name: str | None, as_json: bool) -> None:
    """List the recipes with their origin and published results.

    With NAME or PATH, print all values of that recipe as TOML.

    \b
    simclr-engine recipes
    simclr-engine recipes cifar10-sgd
    """
    from ..recipe import Recipe, recipe_names

    if name is not None:
        recipe = Recipe.load(name)
        if as_json:
            print_json(recipe.to_tree())
        else:
            tell(*recipe.to_toml().rstrip("\n").split("\n"))
        return
    recipes = [Recipe.load(n) for n in recipe_names()]
    if as_json:
        print_json({"recipes": [{"name": r.name, "origin": r.origin, "published": r.published} for r in recipes]})
        return
    listed = table("recipe", "origin", "#epochs", "#batch", "#views", "optimizer", "published", rule=False)
    for r in recipes:
        results = r.published.get("results", [])
        published = "\n".join(f"{p['method']} {100 * p['accuracy']:.2f} % ({p['init']})" for p in results) or "–"
        figures = (str(r.train.epochs), str(r.train.batch_size), str(r.train.views))
        add(listed, r.name, r.origin, *figures, r.optimizer.name, styled(published))
    show(listed)
