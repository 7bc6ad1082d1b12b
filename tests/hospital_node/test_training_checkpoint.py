"""Public weights from elsewhere: what is taken by name and shape, what is said about the rest, and that no code is ever run."""

import hashlib
import io
import json
import os
import zipfile

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.numpy import save
from torch import nn
from training_world import plan

from hospital_node import cli, network
from hospital_node.checkpoint import read_checkpoint, start_from
from hospital_node.workshop import random_model
from proto.modelfile import Model, ModelFileError, encode_model, read_model
from proto.plan import Network

UNET = {"architecture": "UNet", "channels": (4, 8), "norm": "instance"}
PLAN = plan(network=UNET)


def pretrained(**changes):
    """Somebody's network, with weights that nothing here would draw."""
    module = network.build(Network.model_validate({**UNET, "labels": ("lesion",), **changes}))
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(5.0)
    return module


def bundle(folder, state, weights="model.pt", metadata='{"name": "spleen", "version": "0.5"}'):
    """The parts of a MONAI bundle that matter here."""
    (folder / "models").mkdir(parents=True)
    (folder / "configs").mkdir()
    (folder / "configs" / "metadata.json").write_text(metadata)
    path = folder / "models" / weights
    if weights.endswith(".pt"):
        torch.save(state, path)
    else:
        path.write_bytes(save({name: value.numpy() for name, value in state.items()}))
    return folder


def zipped(folder, out):
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, f"spleen/{path.relative_to(folder)}")
    return out


def torch_file(path, content):
    torch.save(content, path)
    return path


def taken(path, partial=False):
    return start_from(read_checkpoint(path), random_model(PLAN), partial=partial)


@pytest.mark.parametrize("form", ["folder", "zip", "folder with safetensors", "pt", "pt in a table", "safetensors"])
def test_every_form_gives_the_same_weights_by_name(tmp_path, form):
    module = pretrained()
    state = module.state_dict()
    path = {
        "folder": lambda: bundle(tmp_path / "b", state),
        "zip": lambda: zipped(bundle(tmp_path / "b", state), tmp_path / "b.zip"),
        "folder with safetensors": lambda: bundle(tmp_path / "b", state, "model.safetensors"),
        "pt": lambda: torch_file(tmp_path / "model.pt", state),
        "pt in a table": lambda: torch_file(tmp_path / "model.pth", {"epoch": 3, "model": state}),
        "safetensors": lambda: bundle(tmp_path / "b", state, "x.safetensors") / "models" / "x.safetensors",
    }[form]()
    model, match = taken(path)
    assert np.array_equal(model.vector, network.vector_of(module))
    assert match.complete
    assert len(match.taken) == len(model.layout.tensors)
    assert model.provenance["made-by"].startswith("MONAI bundle spleen 0.5" if form in {"folder", "zip"} else "")
    weights = tmp_path / "b" / "models" / "model.pt"
    if form in {"folder", "zip"}:
        assert model.provenance["checkpoint-sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_half_precision_is_read_as_what_it_is(tmp_path):
    module = pretrained()
    model, _ = taken(torch_file(tmp_path / "m.pt", {name: value.bfloat16() for name, value in module.state_dict().items()}))
    assert model.vector == pytest.approx(network.vector_of(module), rel=2**-8)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_a_wrappers_prefix_is_dropped_and_said(tmp_path, prefix):
    module = pretrained()
    path = torch_file(tmp_path / "m.pt", {prefix + name: value for name, value in module.state_dict().items()})
    model, match = taken(path)
    assert np.array_equal(model.vector, network.vector_of(module))
    assert next(match.lines()).endswith(f"taken by name and shape, without the prefix '{prefix}'")


def test_one_tensor_too_few_too_many_or_of_another_shape_is_refused_with_the_names(tmp_path):
    state = pretrained().state_dict()
    first, second, *_ = state
    fewer = {name: value for name, value in state.items() if name != first}
    for content, says in (
        (fewer, rf"1 missing in the file: {first}"),
        ({**state, "extra": torch.zeros(2)}, "1 of the file not used: extra"),
        ({**state, second: torch.zeros(1, 2)}, rf"1 of another shape: {second}"),
    ):
        with pytest.raises(ModelFileError, match=rf"does not fit the plan's network: .*{says}.*--partial"):
            taken(torch_file(tmp_path / "m.pt", content))


def test_partial_takes_what_fits_and_leaves_the_rest_as_it_was(tmp_path):
    other = pretrained(labels=("a", "b", "c"))  # more classes: the last block has another shape
    checkpoint = read_checkpoint(torch_file(tmp_path / "m.pt", {**other.state_dict(), "extra": torch.zeros(2)}))
    fresh = random_model(PLAN)
    model, match = start_from(checkpoint, fresh, partial=True)
    assert match.unused == ("extra",)
    assert match.unfit
    assert not match.missing
    after, before = model.layout.split(model.vector), fresh.layout.split(fresh.vector)
    theirs = {name: value.numpy() for name, value in other.state_dict().items()}
    assert all(np.array_equal(after[name], theirs[name]) for name in match.taken)
    assert all(np.array_equal(after[name], before[name]) for name in match.unfit)
    assert model.provenance["taken"] == f"{len(match.taken)} of {len(after)} tensors"


def test_batch_normalisation_in_the_file_is_named_as_the_reason(tmp_path):
    module = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4))
    state = {**pretrained().state_dict(), **{f"bn.{name}": value for name, value in module[1].state_dict().items()}}
    with pytest.raises(ModelFileError, match="running means of batch normalisation, which no node trains"):
        taken(torch_file(tmp_path / "m.pt", state))


def test_nothing_in_common_is_refused_even_where_partial_would_do(tmp_path):
    with pytest.raises(ModelFileError, match=r"another network than the plan's \(it has w; the network model"):
        taken(torch_file(tmp_path / "m.pt", {"w": torch.zeros(3)}), partial=True)


class Trap:
    """What a file of code looks like: reading it as a pickle would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path):
    path = torch_file(tmp_path / "m.pt", {**pretrained().state_dict(), "trap": Trap(tmp_path / "sprung")})
    with pytest.raises(ModelFileError, match="is no file of weights alone"):
        read_checkpoint(path)
    with pytest.raises(ModelFileError, match="is no file of weights alone"):
        read_checkpoint(bundle(tmp_path / "b", Trap(tmp_path / "sprung")))
    assert not (tmp_path / "sprung").exists()


def test_an_archive_writes_nothing_wherever_its_members_say_they_lie(tmp_path):
    buffer = io.BytesIO()
    torch.save(pretrained().state_dict(), buffer)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("../../outside/models/model.pt", buffer.getvalue())
    before = sorted(tmp_path.rglob("*"))
    assert taken(tmp_path / "b.zip")[1].complete
    assert sorted(tmp_path.rglob("*")) == before


def not_finite(state):
    name = next(iter(state))
    return {**state, name: torch.full_like(state[name], float("nan"))}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "none.pt", "there is no checkpoint"),
        (lambda folder: folder, r"neither models/model.safetensors nor models/model.pt, so it is no MONAI bundle with weights"),
        (lambda folder: write(folder / "m.pt", b"\x80\x02nonsense"), "is no file of weights alone"),
        (lambda folder: write(folder / "m.safetensors", b"nonsense"), "is no file of weights alone"),
        (lambda folder: write(folder / "b.zip", b"nonsense"), "cannot read the checkpoint"),
        (lambda folder: torch_file(folder / "m.pt", [torch.zeros(2)]), "0 tables of named tensors instead of one: list"),
        (
            lambda folder: torch_file(folder / "m.pt", {"a": {"w": torch.zeros(1)}, "b": {"w": torch.zeros(1)}}),
            "2 tables .* a, b",
        ),
        (lambda folder: torch_file(folder / "m.pt", not_finite(pretrained().state_dict())), "values that are not finite"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_a_sentence(tmp_path, make, says):
    with pytest.raises(ModelFileError, match=says) as caught:
        read_checkpoint(make(tmp_path))
    assert "\n" not in str(caught.value)


def write(path, content):
    path.write_bytes(content)
    return path


def test_absurd_sizes_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("hospital_node.checkpoint.MAX_BYTES", 100)
    state = pretrained().state_dict()
    for path in (
        torch_file(tmp_path / "m.pt", state),
        zipped(bundle(tmp_path / "b", state), tmp_path / "b.zip"),
        tmp_path / "b",
    ):
        with pytest.raises(ModelFileError, match="weights of 0 GiB, at most 0 are read"):
            read_checkpoint(path)


@pytest.mark.parametrize("metadata", ["", "[]", '{"name": ["x"]}', '{"name": "a\\u0000b\\n", "version": 1}'])
def test_strange_metadata_does_no_harm(tmp_path, metadata):
    made_by = taken(bundle(tmp_path / "b", pretrained().state_dict(), metadata=metadata))[0].provenance["made-by"]
    assert made_by.startswith("MONAI bundle")
    assert made_by.isprintable()


# ---- the command ----


@pytest.fixture
def plan_file(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(tomli_w.dumps(json.loads(PLAN.model_dump_json(exclude_none=True))))
    return path


def test_the_command_makes_a_start_of_a_bundle_and_reports(tmp_path, plan_file, capsys):
    module, out = pretrained(), tmp_path / "start.safetensors"
    source = zipped(bundle(tmp_path / "b", module.state_dict()), tmp_path / "b.zip")
    assert cli.main(["init-model", "--plan", str(plan_file), "--out", str(out), "--from", str(source)]) == 0
    model = read_model(out)
    assert np.array_equal(model.vector, network.vector_of(module))
    said = capsys.readouterr().out
    assert "MONAI bundle spleen 0.5, SHA-256" in said
    assert f"{len(model.layout.tensors)} of {len(model.layout.tensors)} tensors of the network taken" in said
    assert f'start_digest = "{model.digest.hex()}"' in said


def test_the_command_is_strict_unless_told_otherwise(tmp_path, plan_file, capsys):
    out = tmp_path / "start.safetensors"
    source = torch_file(tmp_path / "m.pt", {**pretrained().state_dict(), "extra": torch.zeros(2)})
    arguments = ["init-model", "--plan", str(plan_file), "--out", str(out), "--from", str(source)]
    assert cli.main(arguments) == 2
    assert "m.pt (torch file): the checkpoint does not fit the plan's network" in capsys.readouterr().err
    assert not out.exists()
    assert cli.main([*arguments, "--partial"]) == 0
    assert "1 of the file not used: extra" in capsys.readouterr().out
    assert cli.main([*arguments[:-2], "--partial"]) == 2
    assert "name them with --from" in capsys.readouterr().err


def test_a_model_file_of_this_network_is_taken_as_it_is(tmp_path, plan_file):
    made, out = random_model(PLAN), tmp_path / "start.safetensors"
    source = write(tmp_path / "own.safetensors", encode_model(Model(made.layout, made.vector, {"made-by": "pretraining"})))
    assert cli.main(["init-model", "--plan", str(plan_file), "--out", str(out), "--from", str(source)]) == 0
    assert read_model(out).provenance == {"made-by": "pretraining"}
    assert read_model(out).digest == made.digest
