from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from dfkd.export.onnx_graphs import INPUT, OPSET, OUTPUT, export, load_graph, quantise
from dfkd.models.student import Student
from dfkd.utils.images import batch

SIZE = 32


def images(count: int) -> list[np.ndarray]:
    noise = np.random.default_rng(0)
    return [noise.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def student() -> Student:
    """Two convolutions with batch norm, whose statistics followed a few images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for inner, outer in ((3, 32), (32, 64)):
            layers += [nn.Conv2d(inner, outer, 3, 2, 1), nn.BatchNorm2d(outer), nn.ReLU()]
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        built = Student(nn.Sequential(*layers, *pool), nn.Linear(64, 3)).train()
        with torch.no_grad():
            for _ in range(10):
                built(torch.from_numpy(batch(images(16))))
    return built.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def graph(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export(student, SIZE, path)
    return path


@pytest.fixture(scope="module")
def int8(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("int8") / "int8.onnx"
    quantise(graph, path, images(4))
    return onnx.load(path)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_graph_gives_the_student_s_distances_for_any_batch(
    student: Student, graph: Path, count: int
) -> None:
    pixels = batch(images(count))
    found = load_graph(graph, threads=1)(pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, student(torch.from_numpy(pixels)).numpy(), atol=1e-5)
    if count > 1:
        assert np.abs(found[0] - found[1]).max() > 1e-3  # it does look at the image


def test_a_graph_names_what_it_takes_and_gives(graph: Path) -> None:
    model = onnx.load(graph)
    [source], [target] = model.graph.input, model.graph.output
    dimensions = [
        [d.dim_param or d.dim_value for d in port.type.tensor_type.shape.dim]
        for port in (source, target)
    ]
    assert (source.name, target.name) == (INPUT, OUTPUT) == ("pixels", "distances")
    assert dimensions == [["N", 3, SIZE, SIZE], ["N", 3]]
    assert {found.domain: found.version for found in model.opset_import}[""] == OPSET
    assert model.ir_version == 8  # the newest that onnxruntime 1.14 reads


def test_a_graph_is_one_file_that_tells_nothing_of_this_machine(graph: Path) -> None:
    assert [path.name for path in graph.parent.glob("model.onnx*")] == ["model.onnx"]
    model = onnx.load(graph, load_external_data=False)
    assert all(
        tensor.data_location != onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer
    )
    content = graph.read_bytes()
    for word in (str(Path(__file__).parents[2]), "site-packages", ".py"):
        assert word.encode() not in content


def test_the_same_student_gives_the_same_bytes(
    student: Student, graph: Path, tmp_path: Path
) -> None:
    export(student, SIZE, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == graph.read_bytes()


def test_int8_is_smaller_close_quiet_and_set_by_its_calibration_images(
    graph: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen, path = images(16), tmp_path / "int8.onnx"
    made = []
    for calibration in ([seen[0] // 8], seen[:1], seen, seen):
        quantise(graph, path, calibration)
        made.append(path.read_bytes())
    assert made[2] == made[3]
    assert len(set(made)) == 3  # each image counts
    assert path.stat().st_size < 0.4 * graph.stat().st_size
    assert capfd.readouterr() == ("", "")
    exact, small = (load_graph(file, threads=1)(batch(seen)) for file in (graph, path))
    assert 0 < np.abs(small - exact).max() < 0.3 * exact.std()


def test_the_last_layer_stays_float32(student: Student, int8: onnx.ModelProto) -> None:
    """The head has the student's own weights, and both convolutions have int8 ones of 7 bits."""
    [head] = [node for node in int8.graph.node if OUTPUT in node.output]
    assert head.op_type == "Gemm"
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in int8.graph.initializer}
    np.testing.assert_array_equal(weights[head.input[1]], student.head.weight.numpy())
    whole = [w for w in weights.values() if w.dtype == np.int8 and w.ndim == 4]
    assert len(whole) == 2
    assert all(np.abs(w.astype(int)).max() == 64 for w in whole)


def test_each_channel_has_a_scale_and_activations_have_no_sign(int8: onnx.ModelProto) -> None:
    values = {t.name: onnx.numpy_helper.to_array(t) for t in int8.graph.initializer}

    def inputs(kind: str) -> list[list[np.ndarray | None]]:
        return [list(map(values.get, n.input)) for n in int8.graph.node if n.op_type == kind]

    weights = [each for each in inputs("DequantizeLinear") if getattr(each[0], "ndim", 0) == 4]
    assert [scale.shape for _, scale, *_ in weights] == [(32,), (64,)]
    assert {str(zero.dtype) for *_, zero in inputs("QuantizeLinear")} == {"uint8"}
    assert int8.ir_version == 8


def test_sums_of_transformers_stay_float32(tmp_path: Path) -> None:
    """A graph with a layer norm, a sum around it, a product, and a last product."""
    noise = np.random.default_rng(0)
    values = [
        helper.make_tensor(name, onnx.TensorProto.FLOAT, shape, noise.normal(size=shape).ravel())
        for name, shape in (("scale", (3,)), ("inner", (3, 3)), ("head", (3, 2)))
    ]
    values.append(helper.make_tensor("axes", onnx.TensorProto.INT64, [2], [2, 3]))
    nodes = [
        helper.make_node("ReduceMean", [INPUT, "axes"], ["mean"], "mean", keepdims=0),
        helper.make_node("LayerNormalization", ["mean", "scale"], ["normed"], "norm"),
        helper.make_node("Add", ["mean", "normed"], ["sum"], "sum"),
        helper.make_node("MatMul", ["sum", "inner"], ["product"], "product"),
        helper.make_node("MatMul", ["product", "head"], [OUTPUT], "head"),
    ]
    ports = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *shape])
        for name, shape in ((INPUT, (3, SIZE, SIZE)), (OUTPUT, (2,)))
    ]
    graph = helper.make_graph(nodes, "residual", ports[:1], ports[1:], values)
    opset = helper.make_opsetid("", OPSET)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "a.onnx")
    quantise(tmp_path / "a.onnx", tmp_path / "b.onnx", images(4))
    found = onnx.load(tmp_path / "b.onnx").graph.node
    makers = {name: node.op_type for node in found for name in node.output}
    inputs = [(n.op_type, [makers.get(name) for name in n.input]) for n in found]
    assert ("Add", ["ReduceMean", "LayerNormalization"]) in inputs
    products = [sources for kind, sources in inputs if kind == "MatMul"]
    assert products == [["DequantizeLinear"] * 2, ["DequantizeLinear", None]]
