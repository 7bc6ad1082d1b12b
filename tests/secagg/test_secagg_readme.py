"""The specification cannot drift: cited steps exist, codes are listed, its numbers are the code's, its example runs."""

import re
from pathlib import Path

import pytest
from secagg_round import Federation, small_params

import secagg
from secagg import REFUSAL_CODES, RemoteError, Sparse, boxes, keystream, shamir
from secagg.statements import advert_statement

PACKAGE = Path(secagg.__file__).parent
README = (PACKAGE / "README.md").read_text()
CODE = {path.name: path.read_text() for path in sorted(PACKAGE.glob("*.py"))}
CITED = sorted({(name, step) for name, text in CODE.items() for step in re.findall(r"(?:[Ss]tep |# )(\d\.\d)\b", text)})


@pytest.mark.parametrize(("name", "step"), CITED)
def test_cited_steps_exist(name, step):
    assert re.search(rf"(?:^- |\. |; ){re.escape(step)} ", README, re.MULTILINE), f"{name} cites step {step}"


def test_many_steps_are_cited():
    assert len({step for _, step in CITED}) >= 12


@pytest.mark.parametrize("title", sorted({t for text in CODE.values() for t in re.findall(r"README, ([A-Z][a-z]+)\b", text)}))
def test_cited_sections_exist(title):
    assert re.search(rf"^##+ {title}\b", README, re.MULTILINE)


def test_refusals_are_the_codes():
    listed = dict(re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", README.split("## Refusals")[1], re.MULTILINE))
    assert listed == REFUSAL_CODES


def test_every_code_is_used_and_no_other():
    used = {code for text in CODE.values() for code in re.findall(r'RemoteError\(\s*[\w. !=\[\]]+,\s*"([a-z-]+)"', text)}
    used |= set(re.findall(r'blame if .*?, "([a-z-]+)"', CODE["statements.py"]))
    assert used == set(REFUSAL_CODES)
    with pytest.raises(AssertionError):
        RemoteError("x", "no-such-code", "text")


def test_numbers_are_those_of_the_code():
    assert f"words {keystream.SEGMENT_WORDS} s to {keystream.SEGMENT_WORDS} (s + 1) - 1 (2 MiB)" in README
    assert shamir.P == 2**256 + 297
    assert f"sealed: {boxes.BOX_BYTES} bytes" in README
    assert f"one share of {shamir.SHARE_BYTES} bytes" in README


def test_the_layout_of_an_advert_is_as_drawn():
    advert = Federation(small_params()).advertise().view.adverts["anna"]
    data = advert_statement("anna", advert.seal_key, advert.mask_key, advert.seed_commitment)
    assert data[:8] == b"\0\0\0\4anna"
    for offset, value in ((8, advert.seal_key), (44, advert.mask_key), (80, advert.seed_commitment)):
        assert data[offset : offset + 36] == b"\0\0\0\x20" + value
    assert len(data) == 116


def test_the_layout_of_a_sparse_advert_is_as_drawn():
    names = ("anna", "bern", "chur", "davos", "esch", "fully", "genf")
    advert = Federation(small_params(names, 5, graph=Sparse(4, 3))).advertise().view.adverts["anna"]
    data = advert_statement("anna", *advert.values, advert.neighbours)
    assert data[:116] == advert_statement("anna", *advert.values)
    assert data[116:] == b"\0\0\0\x10" + b"".join(place.to_bytes(4, "big") for place in advert.neighbours)


def test_every_test_file_that_is_named_exists():
    rows = re.findall(r"^\| (`.*?test_.*?\.py`) \|", README.split("## Tests")[1], re.MULTILINE)
    assert len(rows) >= 8
    for row in rows:
        first, *others = re.findall(r"`(.+?)`", row)
        folder = PACKAGE.parent / Path(first).parent
        for path in (PACKAGE.parent / first, *(folder / other for other in others)):
            assert path.is_file(), path


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("('anna', 'bern', 'chur')")


def test_it_ends_in_dated_decisions():
    decisions = README.split("\n## ")[-1]
    assert decisions.startswith("Decisions\n")
    assert all(line.startswith(("- **20", "  ")) for line in decisions.strip().splitlines()[2:])
