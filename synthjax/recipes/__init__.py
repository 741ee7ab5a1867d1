"""Recipes: each study as one short file that calls the rooms in order."""

from synthjax.recipes import finetune, preference

RECIPES = {"finetune": finetune.run, "preference": preference.run}
