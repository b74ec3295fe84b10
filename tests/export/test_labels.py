import json

import numpy as np
import torch

from dfkd.export.labels import labels_json


def test_each_name_has_its_vector_to_eight_decimals() -> None:
    texts = torch.tensor([[0.6, 0.8], [1 / 3, -(8**0.5) / 3]])
    content = labels_json(["wolf", "caf\u00e9"], texts)
    found = json.loads(content)
    assert list(found) == ["wolf", "caf\u00e9"]
    assert "caf\u00e9" in content  # people read it too
    np.testing.assert_allclose(list(found.values()), texts.tolist(), rtol=0, atol=5.1e-9)


def test_a_student_of_distances_has_a_list_of_names() -> None:
    assert json.loads(labels_json(["wolf", "ant"], None)) == ["wolf", "ant"]
