"""A few drawings, the words of their captions, and the recipe of a tiny teacher."""

from dfkd.lab.miniature.drawings import DrawingRow
from dfkd.lab.miniature.recipe import TeacherRecipe

WORDS = ["a", "an", "the", "in", "style", "of", "dog", "alarm", "clock", "solar", "red", "*"]


def row(name: str, collection: str = "some", colour: bool = False, slot: int = 0) -> DrawingRow:
    return DrawingRow(
        collection, name, tuple(name.split()), ("bold",), ("Animals",), (), colour, slot
    )


def small_teacher() -> TeacherRecipe:
    return TeacherRecipe(
        embed_dim=16, image_width=8, text_width=16, text_heads=2, text_layers=1, steps=3,
        batch_size=8, groups=1, style_captions=2, warmup_steps=1, easy_steps=1,
        checkpoint_every=1, compile=False,
    )  # fmt: skip
