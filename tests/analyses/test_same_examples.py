"""Every part reads the texts of the one sample, and no other."""

import pytest

import regtune
from analyses.test_inspect import QUICK, model, questions, saved  # noqa: F401 (fixtures)
from regtune.analyses.inspection import inspect
from regtune.registry import ANALYSES
from tiny_tokenizer import examples, tiny_tokenizer

PAD, MASK = 1, 4
SETTINGS = QUICK | {"explanations": {"show": False}}


@pytest.fixture(scope="module")
def session(model):  # noqa: F811
    return regtune.open(model)


def read_by(session, part, data, folder):
    """Every row that the model's backbone reads during a part, without padding."""
    seen = []

    def keep(_module, args, kwargs):
        ids = args[0] if args else kwargs["input_ids"]
        seen.extend([i for i in row if i != PAD] for row in ids.tolist())

    hook = session.model.base_model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        settings = {part: SETTINGS.get(part, {})}
        found = inspect(session, parts=(part,), data=(data,), limit=3, output_dir=folder, settings=settings)
    finally:
        hook.remove()
    return seen, found[part].data["ids"]


def same(row, text):
    return len(row) == len(text) and all(one in (other, MASK) for one, other in zip(row, text, strict=True))


@pytest.mark.parametrize("part", list(ANALYSES))
def test_a_part_reads_every_text_of_the_sample_and_nothing_else(session, part, questions, tmp_path):  # noqa: F811
    tokenizer = tiny_tokenizer()
    sampled = [one for one in examples(6) if one.id in ("q0", "q2", "q4")]
    texts = [tokenizer(one.question, one.context)["input_ids"] for one in sampled]
    rows, ids = read_by(session, part, questions, tmp_path)
    assert ids == ["q0", "q2", "q4"]
    strangers = [tokenizer.decode(row) for row in rows if not any(same(row, text) for text in texts)]
    assert strangers == []
    assert all(text in rows for text in texts)
