"""Style dictionaries of mix prompts, chosen by `prompts.styles`.

None of them holds a word that names a test domain, so that an evaluation domain stays unseen.
"""

from dfkd.manifest import Prompts

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

MINIATURE: tuple[str, ...] = ()


def dictionary(prompts: Prompts) -> tuple[str, ...]:
    """The style words that a manifest names or lists."""
    if prompts.styles == "paper":
        return PAPER
    if prompts.styles == "miniature":
        return MINIATURE
    return prompts.styles
