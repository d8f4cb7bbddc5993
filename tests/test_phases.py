"""The plan of a step, by hand from the config; and what no step can do, refused in a line that says what can be done."""

import pytest

from distgan import schema
from distgan.config import Config
from distgan.objectives import LOSSES, REGULARIZERS
from distgan.training.phases import Phase, cycle, due, measured_keys, phases, problems, update_share

ALTERNATING = {"train.update_order": "alternating"}
LAZY = {
    "objective.regularizers": "r1,r2,dragan,lecam",
    "objective.r1.interval": 16,
    "objective.r2.interval": 16,
    "objective.dragan.interval": 6,
}


def build(*changes):
    values = {}
    for change in changes:
        values |= change
    return schema.build(Config, values)


D_LAZY = [
    Phase("discriminator_every_6", ("discriminator",), False, ("dragan",), adversarial=False, interval=6),
    Phase("discriminator_every_16", ("discriminator",), False, ("r1", "r2"), adversarial=False, interval=16),
]


def test_phases():
    both = ("discriminator", "generator")
    assert phases(build()) == (Phase("both", both, True),)
    assert phases(build(LAZY)) == (Phase("both", both, True, ("lecam",)), *D_LAZY)
    alternating = build(ALTERNATING, LAZY, {"train.discriminator_updates": 2, "train.generator_batch_multiple": 3})
    assert phases(alternating) == (
        Phase("discriminator0", ("discriminator",), True, ("lecam",)),
        Phase("discriminator1", ("discriminator",), True, ("lecam",)),
        *D_LAZY,
        Phase("generator", ("generator",), False, fake_batches=3),
    )
    # What is added to the generator's loss, to both, or to none, which weighs and cuts in every phase.
    [first, second] = phases(build(ALTERNATING, {"objective.regularizers": "orthogonal,auxiliary,top_k,r1"}))
    assert first.regularizers == ("auxiliary", "top_k", "r1")
    assert second.regularizers == ("orthogonal", "auxiliary", "top_k")


def test_what_is_due():
    plan = phases(build(LAZY))
    assert cycle(plan) == 48
    names = {step: [phase.name.removeprefix("discriminator_") for phase in due(plan, step)] for step in range(97)}
    assert names[0] == names[48] == names[96] == ["both", "every_6", "every_16"]
    assert names[16] == names[32] == ["both", "every_16"]
    assert names[6] == names[42] == ["both", "every_6"]
    assert all(names[step] == ["both"] for step in range(1, 6))
    assert cycle(phases(build())) == 1


@pytest.mark.parametrize(
    ("changes", "discriminator"),
    [
        ({}, 1),
        ({"objective.regularizers": "r1,lecam"}, 1),
        ({"objective.regularizers": "r1", "objective.r1.interval": 16}, 16 / 17),
        (LAZY, 1 / (1 + 1 / 16 + 1 / 6)),
        ({"objective.regularizers": "r1", "objective.r1.interval": 4} | ALTERNATING, 4 / 5),
        (
            {"objective.regularizers": "r1", "objective.r1.interval": 4, "train.discriminator_updates": 3}
            | ALTERNATING,
            3 / (3 + 1 / 4),
        ),
    ],
)
def test_update_share(changes, discriminator):
    plan = phases(build(changes))
    assert update_share(plan, "discriminator") == pytest.approx(discriminator, rel=1e-12)
    assert update_share(plan, "generator") == 1


def test_measured_keys():
    logits = [f"d_logits/{kind}_{moment}" for moment in ("mean", "square") for kind in ("real", "fake")]
    of_discriminator = ["loss/discriminator", *logits, "d_sign/real", "d_sign/fake"]
    config = build({"objective.regularizers": "auxiliary,orthogonal,r1,top_k", "objective.r1.interval": 4})
    assert measured_keys(config) == tuple(
        [("both", key) for key in (*of_discriminator, "loss/auxiliary", "loss/generator")]
        + [("both", key) for key in ("loss/auxiliary_generator", "loss/orthogonal")]
        + [("both", "grad_norm/discriminator"), ("both", "grad_norm/generator")]
        + [("discriminator_every_4", "loss/r1"), ("discriminator_every_4", "grad_norm/discriminator_every_4")]
    )
    config = build(ALTERNATING, {"train.discriminator_updates": 2})
    assert [key for key, _ in measured_keys(config)] == ["discriminator0"] * 8 + ["discriminator1"] * 8 + [
        "generator"
    ] * 2


WHOLE_BATCH = {
    **{f"--objective.regularizers={name}": {"objective.regularizers": name} for name in ("dragan", "top_k")},
    "--objective.loss=relativistic_average": {"objective.loss": "relativistic_average"},
}


def test_what_looks_at_the_whole_batch():
    for flag, values in WHOLE_BATCH.items():
        [said] = problems(build(values, {"train.accumulation_steps": 2}), 1)
        assert said.startswith("--train.accumulation_steps=2")
        assert flag in said
        assert said.endswith(": 1 does")
        [said] = problems(build(values, {"jit_compile": True}), 2)
        assert f"--jit_compile with 2 replicas does not go with {flag}" in said
        assert said.endswith("use --strategy=single")
        for fine, replicas in (({}, 2), ({"jit_compile": True}, 1)):
            assert not list(problems(build(values, fine), replicas))
    others = {f"--objective.regularizers={name}": {"objective.regularizers": name} for name in REGULARIZERS.parts}
    others |= {f"--objective.loss={name}": {"objective.loss": name} for name in LOSSES.parts}
    for flag in others.keys() - WHOLE_BATCH.keys():
        assert not list(problems(build(others[flag], {"train.accumulation_steps": 2, "jit_compile": True}), 2)), flag


CONDITIONAL = ["--model.conditional"]
HEADED = ["--model.name=parts:Headed"]


def regularizers(names, *more):
    return [f"--objective.regularizers={names}", *more]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        *(
            (
                regularizers(name, *HEADED, "--model.discriminator_norm=batch"),
                ["=" + name, "--model.discriminator_norm=none or"],
            )
            for name in ("r1", "r2", "gradient_penalty", "dragan")
        ),
        (regularizers("dragan", "--train.accumulation_steps=2"), ["--train.accumulation_steps=2", "=dragan", "1 does"]),
        (regularizers("top_k", "--train.accumulation_steps=4"), ["--train.accumulation_steps=4", "=top_k", "1 does"]),
        (["--objective.loss=relativistic", *CONDITIONAL], ["=relativistic", "use --train.fake_labels=paired"]),
        (
            regularizers("top_k", "--objective.top_k.k=65"),
            ["--objective.top_k.k=65.0", "--train.global_batch=64: 64 is"],
        ),
        (
            regularizers("top_k", "--objective.top_k.k=linear:9:80:1"),
            ["k=linear:9.0:80.0:1.0 is more", "64 is the most"],
        ),
        (
            regularizers("lecam", "--objective.loss=wasserstein"),
            ["=lecam", "--objective.loss=wasserstein", "use hinge"],
        ),
        (regularizers("lecam,weight_clip"), ["lecam,weight_clip", "drop one"]),
        (
            regularizers("consistency,weight_clip", "--objective.loss=wasserstein"),
            ["consistency,weight_clip", "drop weight_clip"],
        ),
        (
            regularizers("weight_clip", *HEADED, "--model.discriminator_norm=spectral"),
            ["weight_clip", "use --model.discriminator_norm=none"],
        ),
        (regularizers("auxiliary", *CONDITIONAL), ["needs --model.head=auxiliary"]),
        (regularizers("auxiliary", *HEADED), ["--model.conditional"]),
        (regularizers("auxiliary", *HEADED, *CONDITIONAL, "--model.head=logit"), ["needs --model.head=auxiliary"]),
        (["--train.generator_batch_multiple=2"], ["=2 needs --train.update_order=alternating"]),
        (regularizers("r1,lecm"), ["is not a regularizer: 'lecm'; did you mean 'lecam'?"]),
        (regularizers("r1,lecam,r1"), ["names a regularizer twice"]),
        (
            regularizers("r1", "--objective.r1.interval=0"),
            ["--objective.r1.interval=0 is not a whole number, at least 1"],
        ),
        (regularizers("r1", "--objective.r1.gamma=-1"), ["--objective.r1.gamma=-1 is not a number", "at least 0"]),
        (["--objective.r1.gamma=1"], ["unknown flag --objective.r1.gamma"]),
        (["--train.freeze_discriminator=3"], ["--train.freeze_discriminator=3: it has 3 layers, 2 at most"]),
    ],
    ids=lambda value: None if isinstance(value, list) and "--" not in value[0] else " ".join(value)[:60],
)
def test_refusals(flags, said, refused, tmp_path):
    run_dir = tmp_path / "run"
    line = refused("train", f"--run_dir={run_dir}", "--tracking.wandb=disabled", *flags)
    for each in said:
        assert each in line
    assert not run_dir.exists()
