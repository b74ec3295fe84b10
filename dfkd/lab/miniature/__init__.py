"""The recipe of the bundled models: teacher, generator, a student's backbone, evaluation images.

The assets are used like any other weights and data, by `dfkd.models` and `dfkd.evaluation.data`;
`dfkd/bundled/MODEL_CARD.md` describes them. `dfkd pretrain` alone imports the modules here:

    recipe.py          the manifest                     -> settings and work folder of each stage
    icons.py           the icon package                 -> names, licences, what is held out
    clipart.py         the Open Clip Art Library        -> rendered drawings with names
    painting.py        pixels                           -> strokes, materials, grounds, finishes
    looks.py           looks, at random or of a domain  -> painted batches
    drawings.py        icons and clip art               -> cache, images, batches, comparisons
    captions.py        drawings and looks               -> captions and their tokens
    training.py        what the trainings share; each resumes from its last checkpoint
    teacher.py, generator.py, diffusion.py, classifier.py   the networks and their trainings
    evaluation_set.py  held-out drawings                -> the bundled evaluation set
    pretraining.py     the stages: the split of drawings, teacher, its image tower, generator
    scoring.py         exported files                   -> scores
    making.py          all stages in a row              -> assets with their model card

Start with `making.make`. In this package a *drawing* is an icon or a piece of clip art, a *row* is
its entry in the cache of rendered drawings, a *look* is a way to paint it, an *image* is a painted
drawing, and a *statement* is what a caption says about a look, in a word or two.
"""
