"""Texts of a class: its vanilla prompt, and its prompts in the styles of a dictionary.

`prompts.styles` selects the dictionary. The paper's names no domain of PACS, VLCS, ImageCLEF-DA and
VisDA-2017, and the miniature's no look that only the bundled evaluation set has, so that these stay
unseen. The paper's does have mosaic, a bundled domain, and infograph and quickdraw of DomainNet.
"""

import numpy as np
from torch import Tensor

from dfkd.config.hashing import derive_seed
from dfkd.config.manifest import Manifest
from dfkd.config.synthesis import Prompts
from dfkd.errors import ManifestError
from dfkd.models.labeller import Labeller, class_prompt

MIX_ALPHA = 1.0
"""Weights of mix are drawn from Beta(alpha, alpha), as in the paper."""

# Table 8 of the paper, spelled as printed.
_PAPER = (
    "image, graph, picture, figure, diagram, plot, Midcentury, fantasy, view, profile, "
    "pattern, drawing, chart, Art Nouveau, naive, mysterious, Camille Pissarro, Michelangelo "
    "Caravaggio, Claude Monet, Edgar Degas, Edvard Munch, Fauvism, Old-School Tattoo, science "
    "fiction, Futurism, Impressionism, Picasso, Pop Art, Modern art, Surreal Art, Pen and "
    "Ink, blurry, Sandro Botticelli, oil paints, watercolours, weird bananas, strange "
    "colours, binary, pencil illustration, geometric, Architectural, Retro, Directoire, "
    "Transitional, Empire, International, photorealism, hazy, Kerch, digital, daguerreotype, "
    "Medical, cult, Ambiguous, primitivism, icon, false-color, comic, graphic, film, favicon, "
    "macro, psychedelic, mosaic, nior, abstract expressionism, vintage, minimalism, long "
    "exposure, portrait, screenprint, surrealism, graffiti, cubism, infograph, quickdraw, "
    "realistic, pixel_style, woodcut, collage, pointillism, wash painting, flat illustration, "
    "folk, isometric, charcoal"
)
PAPER = tuple(_PAPER.split(", "))

# What the captions of the miniature teacher's training images tell of looks; no colours of grounds.
_MINIATURE = (
    "badge, banded, beige, black, blue, blurred, bold, brown, brush, checks, close, "
    "colourful, contour, crayon, cyan, dashed, dotted, doubled, embossed, engraved, fabric, "
    "faded, filled, foggy, framed, glass, glitch, glossy, glowing, gold, grainy, grass, "
    "green, grey, halftone, hatched, leaves, lime, lined paper, magenta, marble, maroon, "
    "metal, navy, night, oil painting, olive, orange, outline, paper, papercut, perspective, "
    "photocopy, pink, pixelated, poster, purple, rainbow, rays, red, rippled, rough, sand, "
    "sepia, shadow, sketchy, small, solid, speckled, spots, spray paint, squared paper, "
    "stencil, sticker, stitched, stone, stripes, sunset, teal, television, thin, tiled, "
    "tilted, upside down, water, watercolour, wavy, white, wood, worn, yellow"
)
MINIATURE = tuple(_MINIATURE.split(", "))


def dictionary(prompts: Prompts) -> tuple[str, ...]:
    """The style words of a manifest: a named dictionary, or the words that it lists."""
    if prompts.styles == "paper":
        return PAPER
    if prompts.styles == "miniature":
        return MINIATURE
    return prompts.styles


def mixture(prompts: Prompts, seed: int) -> tuple[int, int, float]:
    """Two different styles and the weight of the first, from the seed of a prompt of mix."""
    generator = np.random.default_rng(derive_seed(seed, 0))
    styles = len(dictionary(prompts))
    first, second = generator.choice(styles, size=2, replace=False).tolist()
    return first, second, float(generator.beta(MIX_ALPHA, MIX_ALPHA))


def class_text_embeddings(manifest: Manifest, model: Labeller, template: str = "") -> Tensor:
    """Unit embeddings [M, E] of the vanilla class prompts, for labels and zero-shot results.

    Args:
        template: the model's own; empty for `teacher.template`.
    """
    template = template or manifest.teacher.template
    return model.encode_text([class_prompt(template, meaning) for meaning in manifest.meanings])


def style_text_embeddings(manifest: Manifest, model: Labeller, meaning: str) -> Tensor:
    """Unit embeddings [S, E] of one class, by its meaning, in every style of the dictionary."""
    styles = dictionary(manifest.prompts)
    return model.encode_text([styled_prompt(manifest, meaning, style) for style in styles])


def check_styled_prompts(manifest: Manifest, model: Labeller) -> None:
    """Raise `ManifestError` if the prompt of a class in a style is longer than the context.

    The tokenizer would cut it silently, and different styles could have the same embedding.
    """
    limit = model.content_length
    for meaning in manifest.meanings:
        for style in dictionary(manifest.prompts):
            text = styled_prompt(manifest, meaning, style)
            if (length := len(model.content_tokens(text))) > limit:
                raise ManifestError(
                    "prompts.styles",
                    f"a class prompt in a style has at most {limit} tokens, this one {length}",
                    text,
                    "shorten the style, the name of the class or prompts.template",
                )


def styled_prompt(manifest: Manifest, meaning: str, style: str) -> str:
    """The prompt of a class, by its meaning, in a style."""
    return manifest.prompts.template.replace("{class}", meaning).replace("{style}", style)
