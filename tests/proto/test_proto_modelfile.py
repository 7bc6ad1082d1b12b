"""Model files: read back bit for bit, and every wrong file refused with its name."""

import numpy as np
import pytest
from safetensors.numpy import save

from proto.layout import Layout
from proto.modelfile import Model, ModelFileError, encode_model, read_model, read_provenance

LAYOUT = Layout((("conv.weight", (2, 3)), ("conv.bias", (1,)), ("scale", ())))


def test_a_model_comes_back_with_its_layout_and_provenance(tmp_path):
    model = Model(LAYOUT, np.arange(8, dtype=np.float32), {"made-by": "pretraining"})
    path = tmp_path / "m.safetensors"
    path.write_bytes(encode_model(model))
    again = read_model(path)
    assert again.layout == LAYOUT
    assert np.array_equal(again.vector, model.vector)
    assert again.provenance == {"made-by": "pretraining"}
    assert again.digest == model.digest
    assert read_provenance(path) == {"made-by": "pretraining"}


def test_missing_foreign_cut_and_non_finite_files_are_named(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(ModelFileError, match="there is no model file"):
        read_model(path)
    whole = encode_model(Model(LAYOUT, np.arange(8, dtype=np.float32)))
    for content in (b"", b"junk" * 10, whole[:-4], whole.replace(b"layout", b"lay0ut")):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=r"m\.safetensors"):
            read_model(path)
    for content in (b"", b"junk" * 10):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=r"m\.safetensors"):
            read_provenance(path)
    path.write_bytes(encode_model(Model(LAYOUT, np.full(8, np.nan, np.float32))))
    with pytest.raises(ModelFileError, match="not finite"):
        read_model(path)


def test_tensors_that_do_not_fit_the_layout_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    tensors = {"a": np.zeros(3, np.float32)}
    path.write_bytes(save(tensors, metadata={"layout": Layout((("a", (4,)),)).to_json()}))
    with pytest.raises(ModelFileError, match="another shape"):
        read_model(path)
    path.write_bytes(save(tensors))
    with pytest.raises(ModelFileError, match="layout"):
        read_model(path)
