"""The bundled models: teacher, generator, a student's backbone; evaluation images; their recipe.

The assets are used like any other weights and data, by `dfkd.models.teacher`,
`dfkd.models.generators`, `dfkd.models.backbone` and `dfkd.evaluation.data`;
`dfkd/bundled/MODEL_CARD.md` describes them.
All modules here belong to the recipe behind `jobs/pretrain.py`, which alone imports them:

    recipe.py          the manifest                    -> settings of each stage
    drawings           icons and clip art              -> pixels, names, batches of rows
    looks              rows and looks                  -> painted images
    captions.py        rows and looks                  -> captions, for tokenizer.py
    training           the networks and their trainings; each resumes (work_folder.py)
    pretraining.py     the stages: drawings, tokenizer, teacher and its tower, generator
    evaluation_set.py  held-out drawings               -> the bundled evaluation set
    scoring.py         exported files                  -> scores (fidelity.py, samples.py)
    making.py          all stages in a row             -> assets with their model card (card.py)

Start with `making.make`. In this package a *drawing* is an icon or a piece of clip art, a *row* is
its entry in the cache of rendered drawings, a *look* is a way to paint it, an *image* is a painted
drawing, and a *statement* is what a caption says about a look, in a word or two.
"""
