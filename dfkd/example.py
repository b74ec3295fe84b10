"""From two class names to a student: run it as a script, or cell by cell in an editor."""

# %% [markdown]
# # A first student
#
# Everything here runs on a laptop: the teacher and the generator are the bundled miniature ones,
# which know the words that icon sets use. It takes a few minutes without a GPU. Run it from the
# root of the repository; running a cell again finds what is finished.

# %% What to make
from pathlib import Path

import dfkd

classes = ["rocket", "tree"]
root = "runs/first-student"
synthesis = {"images_per_class": 24, "steps": 36}
distillation = {"epochs": 30}

# %% The manifest: one file, with other values for some of its keys
manifest = dfkd.read_manifest(
    "manifests/miniature.yaml",
    classes=classes,
    storage={"root": root},
    prompts={"method": "vanilla"},
    synthesis=synthesis,
    distillation=distillation,
)

# %% Images from class names alone
(version,) = dfkd.synthesize(manifest)
print(f"{version.images} images, {version.failed} failed")

# %% A student that learns from them
(student_of_vanilla,) = dfkd.distill(manifest)
print(student_of_vanilla.place.location)

# %% How well it does in six domains that neither model has seen
evaluated = dfkd.evaluate(manifest)
for line in evaluated.results["summary"]:
    print(f"{line['model']} {line['method']}: {100 * line['mean']:.1f}%")

# %% Ask it about pictures: here about the contact sheet of all that was made
student = dfkd.load_student(student_of_vanilla)
sheet = Path(root, "contact-sheet.png")
print(f"{sheet}: {student.predict([sheet])[0]}")
