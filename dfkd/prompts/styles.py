"""Texts of a class: its vanilla prompt, and its prompts in the styles of a dictionary.

`prompts.styles` selects the dictionary. No dictionary names a test domain, so the domains of the
evaluation stay unseen.
"""

from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.config.synthesis import Prompts
from dfkd.models.teacher import Teacher, class_prompt

# Table 8 of the paper, spelled as printed.
PAPER = (
    "image",
    "graph",
    "picture",
    "figure",
    "diagram",
    "plot",
    "Midcentury",
    "fantasy",
    "view",
    "profile",
    "pattern",
    "drawing",
    "chart",
    "Art Nouveau",
    "naive",
    "mysterious",
    "Camille Pissarro",
    "Michelangelo Caravaggio",
    "Claude Monet",
    "Edgar Degas",
    "Edvard Munch",
    "Fauvism",
    "Old-School Tattoo",
    "science fiction",
    "Futurism",
    "Impressionism",
    "Picasso",
    "Pop Art",
    "Modern art",
    "Surreal Art",
    "Pen and Ink",
    "blurry",
    "Sandro Botticelli",
    "oil paints",
    "watercolours",
    "weird bananas",
    "strange colours",
    "binary",
    "pencil illustration",
    "geometric",
    "Architectural",
    "Retro",
    "Directoire",
    "Transitional",
    "Empire",
    "International",
    "photorealism",
    "hazy",
    "Kerch",
    "digital",
    "daguerreotype",
    "Medical",
    "cult",
    "Ambiguous",
    "primitivism",
    "icon",
    "false-color",
    "comic",
    "graphic",
    "film",
    "favicon",
    "macro",
    "psychedelic",
    "mosaic",
    "nior",
    "abstract expressionism",
    "vintage",
    "minimalism",
    "long exposure",
    "portrait",
    "screenprint",
    "surrealism",
    "graffiti",
    "cubism",
    "infograph",
    "quickdraw",
    "realistic",
    "pixel_style",
    "woodcut",
    "collage",
    "pointillism",
    "wash painting",
    "flat illustration",
    "folk",
    "isometric",
    "charcoal",
)

# Words that the miniature teacher knows for stroke weights, finishes and colours.
MINIATURE = (
    "bold",
    "thin",
    "light",
    "duotone",
    "flat",
    "rounded",
    "sharp",
    "linear",
    "broken",
    "line",
    "soft",
    "noisy",
    "textured",
    "material",
    "red",
    "orange",
    "yellow",
    "green",
    "teal",
    "blue",
    "purple",
    "pink",
    "brown",
    "grey",
    "black",
    "monochrome",
)


def dictionary(prompts: Prompts) -> tuple[str, ...]:
    """The style words of a manifest: a named dictionary, or the words that it lists."""
    if prompts.styles == "paper":
        return PAPER
    if prompts.styles == "miniature":
        return MINIATURE
    return prompts.styles


def class_text_embeddings(manifest: Manifest, teacher: Teacher) -> Tensor:
    """Unit embeddings [M, E] of the vanilla class prompts, for labels and zero-shot results."""
    template = manifest.teacher.template
    return teacher.encode_text([class_prompt(template, name) for name in manifest.classes])


def style_text_embeddings(manifest: Manifest, teacher: Teacher, name: str) -> Tensor:
    """Unit embeddings [S, E] of one class in every style of the dictionary."""
    styles = dictionary(manifest.prompts)
    return teacher.encode_text([styled_prompt(manifest, name, style) for style in styles])


def styled_prompt(manifest: Manifest, name: str, style: str) -> str:
    """The prompt of a class in a style."""
    return manifest.prompts.template.replace("{class}", name).replace("{style}", style)
