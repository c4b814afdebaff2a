"""Every recipe by name; fp32, which the others are compared with, comes first."""

from .fp8 import Fp8, Fp8Block
from .linear import Fp32, Recipe, W8A8Dynamic, W8A8SmoothQuant
from .w4a16 import W4A16

RECIPES: dict[str, type[Recipe]] = {
    recipe.name: recipe for recipe in (Fp32, W8A8SmoothQuant, W8A8Dynamic, W4A16, Fp8, Fp8Block)
}
